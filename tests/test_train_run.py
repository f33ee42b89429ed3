from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from deblur.errors import UsageError
from deblur.recipes import BEST, Recipe
from deblur.storage import open_store
from jobs import train_run

PLAN = train_run.Plan(
    BEST, "photo", True, 128, "auto", 0, 180, 20, "f" * 64, None, 20_000, 45, 450, None
)


def other(value: Any) -> Any:
    """Return something else of the same kind."""
    if value is None:
        return 7
    return f"{value}-" if isinstance(value, str) else value + 1


@pytest.mark.parametrize("name", [field.name for field in fields(train_run.Plan)])
def test_another_plan_in_the_same_place_is_refused(name: str, tmp_path: Path) -> None:
    home = open_store(tmp_path)
    train_run.claim(home, PLAN, "deblur train", "photos")
    train_run.claim(home, PLAN, "deblur train", "photos")
    if name == "recipe":
        plans = {
            f"recipe.{field.name}": replace(
                PLAN, recipe=replace(BEST, **{field.name: other(getattr(BEST, field.name))})
            )
            for field in fields(Recipe)
        }
    else:
        plans = {name: replace(PLAN, **{name: other(getattr(PLAN, name))})}
    for told, plan in plans.items():
        with pytest.raises(UsageError, match=rf"another configuration \({told} .*, now .*\)"):
            train_run.claim(home, plan, "deblur train", "photos")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"plan": 3}', '{"plan": {"recipe": 3}}', "\xff"])
def test_what_another_program_configures_is_no_run(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(
        UsageError, match=r"config\.json is not a run's: give the run a place of its"
    ):
        train_run.claim(open_store(tmp_path), PLAN, "deblur train", "photos")


@pytest.mark.parametrize("left", ["model/card.json", "checkpoints/step-00000007/state.npz"])
def test_a_model_or_checkpoints_of_which_nothing_is_known_are_no_run(
    left: str, tmp_path: Path
) -> None:
    (tmp_path / left).parent.mkdir(parents=True)
    (tmp_path / left).write_text("{}")
    with pytest.raises(UsageError, match=r"holds (model|checkpoints)/ and no config\.json"):
        train_run.claim(open_store(tmp_path), PLAN, "deblur train", "photos")
    assert not (tmp_path / "config.json").exists()
