from __future__ import annotations

import pytest

from deblur.divergence import Diverged, Watch

FINE = {
    "generator": 3.0, "error": 0.05, "discriminator": 1.0, "gradient_norm_generator": 2.0,
    "gradient_norm_discriminator": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", FINE)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_told_with_step_and_keys(name: str, value: float) -> None:
    watch = Watch()
    watch.last_good = "step-00000006"
    watch.add(6, ["a.jpg"], FINE)
    watch.add(
        7, ["trip/b.jpg", "c.jpg"], {**FINE, name: value}
    )  # judged when the next one is there
    with pytest.raises(Diverged) as caught:
        watch.add(8, ["d.jpg"], FINE)
    text = str(caught.value)
    assert "in step 8: " in text  # people count from 1
    assert f"{name} is not finite" in text
    assert "trip/b.jpg, c.jpg" in text
    assert "step-00000006" in text


def test_before_a_checkpoint_all_steps_are_judged() -> None:
    watch = Watch()
    watch.add(0, ["a"], {**FINE, "error": float("nan")})
    with pytest.raises(Diverged, match="none"):
        watch.settle()


def test_an_explosion_is_ten_steps_in_a_row() -> None:
    watch = Watch()
    for step in range(200):
        hard = step % 10 == 0  # a photo that is six times as hard as the others is none
        watch.add(step, [f"{step}"], {**FINE, "error": 0.3 if hard else 0.05})
    for step in range(200, 209):
        watch.add(step, [f"{step}"], {**FINE, "error": 0.6})
    watch.add(209, ["209"], {**FINE, "error": 0.6})
    with pytest.raises(Diverged, match=r"in step 201: from then on .* The step saw 200\."):
        watch.settle()


def test_the_first_steps_may_be_wild() -> None:
    watch = Watch()
    for step in range(90):
        watch.add(step, [], {**FINE, "error": 0.01 if step < 40 else 1.0})
    watch.settle()


def test_many_keys_are_cut_short() -> None:
    watch = Watch()
    watch.add(0, [f"{number}.jpg" for number in range(100)], {**FINE, "error": float("inf")})
    with pytest.raises(Diverged, match=r"7\.jpg, \.\.\.\. The last"):
        watch.settle()
