"""Published settings by name: each is a training that can be built, and the command line overrides it."""

from __future__ import annotations

import pytest
import typer

from landscape.cli import options as opt
from landscape.cli.entry import app
from landscape.errors import LandscapeError
from landscape.recipes import RECIPES, recipe_changes, recipe_spec
from landscape.training.second_stages import split_stages


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_training(name):
    spec = recipe_spec(name)
    assert spec.dataset == name.partition("/")[0]
    for field, value in recipe_changes(name).items():
        if not isinstance(value, dict):
            assert getattr(spec, field) == value
    if spec.second_stage is not None:
        assert split_stages(spec)[1].stage == spec.second_stage


@pytest.mark.parametrize("name", RECIPES)
def test_published_accuracies_are_percentages(name):
    for row in RECIPES[name].published:
        values = [v for v in (row.all, row.head, row.medium, row.tail) if v is not None]
        assert values
        assert all(1 < v < 100 for v in values)
        if None not in (row.head, row.tail, row.all):
            assert min(row.head, row.medium, row.tail) <= row.all <= max(row.head, row.medium, row.tail)


def given(**options):
    """Return what a command line with these options hands to train_spec."""
    command = typer.main.get_command(app).commands["train"]
    words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    return command.make_context("train", ["--out", "x", *words]).params


def test_options_override_a_recipe():
    spec = opt.train_spec(given(recipe="cifar10-lt/ldam-drw+sam", epochs=20, optimizer_option="rho=0.1"))
    assert (spec.epochs, spec.optimizer, spec.optimizer_options, spec.loss) == (20, "sam", {"rho": 0.1}, "ldam")


def test_another_optimizer_does_not_inherit_options():
    spec = opt.train_spec(given(recipe="cifar10-lt/ldam-drw+sam", optimizer="gnm"))
    assert (spec.optimizer, spec.optimizer_options) == ("gnm", {})
    assert opt.train_spec(given(recipe="cifar10-lt/vs+sam", loss="ce")).loss_options == {}


def test_the_seed_is_the_recipes_unless_given():
    assert opt.train_spec(given(recipe="cifar10-lt/imbsam")).seed == 9826
    assert opt.train_spec(given(recipe="cifar10-lt/imbsam", seed=3)).seed == 3


def test_a_recipe_is_for_its_data_set():
    with pytest.raises(LandscapeError, match="is for cifar10-lt"):
        opt.train_spec(given(recipe="cifar10-lt/ce", dataset="digits-lt"))


def test_unknown_recipes_name_the_near_ones():
    with pytest.raises(LandscapeError, match=r"cifar10-lt/ldam-sam.*did you mean 'cifar10-lt/ldam-drw\+sam'"):
        recipe_spec("cifar10-lt/ldam-sam")
    with pytest.raises(LandscapeError, match="known: cifar10-lt, cifar100-lt"):
        recipe_spec("mnist-lt/ce")
