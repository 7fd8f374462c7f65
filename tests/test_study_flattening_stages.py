"""A small version of the study of flattening operators in either stage."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # analyses is not installed

from analyses.flattening_stages.picture import changes, draw_bars
from analyses.flattening_stages.study import (
    OPERATORS,
    RECIPES,
    STAGES,
    Operator,
    available,
    recipe_spec,
    study,
    with_operator,
)
from landscape.errors import LandscapeError
from landscape.training import METHODS, split_stages


def test_an_operator_acts_in_the_stages_that_are_asked_for():
    spec = recipe_spec("cRT", epochs=3, second_epochs=2, dataset="digits-lt")
    seen = {}
    for stages in STAGES:
        first, second = split_stages(with_operator(spec, Operator("sam", {"rho": 0.2}), stages))
        seen[stages] = (first.optimizer, second.optimizer)
        assert (first.epochs, second.epochs) == (3, 2)
        assert (second if "2" in stages else first).optimizer_options == {"rho": 0.2}
    assert seen == {"1": ("sam", "sgd"), "2": ("sgd", "sam"), "1,2": ("sam", "sam")}


def test_deferred_recipes_share_their_epochs():
    first, second = split_stages(recipe_spec("LDAM-DRW", epochs=10, second_epochs=3, dataset="digits-lt"))
    assert (first.epochs, second.epochs, second.reweight, first.reweight) == (8, 2, "cb", "none")
    assert first.loss == second.loss == "ldam"
    assert second.trainable == "all"
    for name in ("MP", "SWA"):
        assert OPERATORS[name].on_head
    if "m2m" not in METHODS:
        with pytest.raises(LandscapeError, match="recipe M2m needs the method m2m"):
            recipe_spec("M2m", epochs=10, second_epochs=None)
    with pytest.raises(LandscapeError, match="unknown recipe 'crt': known: GCL"):
        recipe_spec("crt", epochs=10, second_epochs=None)
    assert set(RECIPES) >= {"cRT", "M2m", "LDAM-DRW", "MiSLAS", "GCL"}


def test_a_small_study(tmp_path):
    settings = {"recipes": ["cRT", "LDAM-DRW"], "operators": ["sam"], "seeds": [0, 1], "epochs": 2, "second_epochs": 1}
    rows = [asdict(row) for row in study(tmp_path, dataset="digits-lt", model="mlp", batch_size=64, **settings)]
    table = pd.DataFrame(rows)
    assert len(table) == 2 * 2 * (1 + len(STAGES))
    # A first stage is trained once: those without an operator in it are one.
    same = [(tmp_path / f"cRT-0-{name}" / "stage-1" / "run.json").read_bytes() for name in ("-", "sam-2")]
    assert same[0] == same[1]
    moved = changes(table)
    own = table[(table.recipe == "cRT") & (table.seed == 1)].set_index(["operator", "stages"])["tail"]
    other = table[(table.recipe == "cRT") & (table.seed == 0)].set_index(["operator", "stages"])["tail"]
    expected = ((own["sam", "2"] - own["", ""]) + (other["sam", "2"] - other["", ""])) / 2
    found = moved.set_index(["recipe", "operator", "stages", "lane"]).loc[("cRT", "sam", "2", "tail")]
    assert found.change == pytest.approx(expected)
    assert found.seeds == 2
    draw_bars(table, tmp_path / "bars.png")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert list(available(["sam"])) == ["sam"]
