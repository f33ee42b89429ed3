from __future__ import annotations

from dataclasses import replace

import pytest

from deblur import losses
from deblur.errors import UsageError
from deblur.networks import NETWORKS
from deblur.recipes import RECIPES, Recipe, recipe

COSINE = Recipe("pix2pix", 1, 1, learning_rate=1e-3, warmup_steps=10, schedule="cosine")


@pytest.mark.parametrize("name", RECIPES)
def test_the_named_recipes_name_what_there_is(name: str) -> None:
    found = recipe(name)
    assert found.network in NETWORKS
    assert found.pixel in losses.PIXEL
    if found.size_px is not None:
        assert found.size_px % NETWORKS[found.network].stride == 0


def test_the_report_s_recipe_is_the_report_s() -> None:
    found = recipe("report")
    assert (found.network, found.epochs, found.batch_size) == ("pix2pix", 40, 1)
    assert (found.pixel, found.pixel_weight, found.adversarial_weight) == ("l1", 100, 1)
    assert (found.learning_rate, found.beta_1) == (2e-4, 0.5)
    assert {found.learning_rate_at(step, 40_000) for step in (0, 1, 39_999)} == {2e-4}
    assert (found.clip_norm, found.average) == (None, 0)


def test_a_misspelt_recipe() -> None:
    with pytest.raises(UsageError, match=r"no training recipe 'reprot'; there are .*report"):
        recipe("reprot")


def test_the_rate_rises_and_falls() -> None:
    rates = [COSINE.learning_rate_at(step, 110) for step in range(110)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9] == pytest.approx(1e-3)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[60] == pytest.approx(1e-3 * 0.5, rel=0.01)
    assert 1e-6 <= rates[-1] < 2e-6


def test_steps_beyond_the_last_have_the_last_rate() -> None:
    assert COSINE.learning_rate_at(500, 110) == pytest.approx(1e-6)
    assert replace(COSINE, warmup_steps=200).learning_rate_at(150, 110) < 1e-3
