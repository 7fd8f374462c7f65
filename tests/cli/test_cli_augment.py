"""--augment and --augment-draws: what they become, what they study, where they are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from cli_cases import FEW, refuses, succeeds, write_foreign

from landscape.cli import options as opt
from landscape.cli.entry import app
from landscape.data import load_dataset
from landscape.errors import LandscapeError
from landscape.loading import CheckpointSource, load_risk
from landscape.risk import ModelRisk
from landscape.risk.augmented import RedrawnRisk

CIFAR = ("--model", "convnet", "--dataset", "cifar10", "--data-dir")
COMMANDS = typer.main.get_command(app).commands


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A small network for CIFAR images: ResNets take seconds for what is asked here."""
    return write_foreign(tmp_path_factory.mktemp("small") / "a.pth", "convnet")


@pytest.fixture(scope="module")
def on_cifar(small, cifar):
    """Return a risk of the CIFAR network under some augmentation."""

    def load(**options):
        return load_risk(small, model="convnet", dataset="cifar10", data_dir=cifar, device="cpu", **options)

    return load


@pytest.mark.parametrize("command", ["inspect", "spectrum", "perturb", "flatness", "surface", "figures"])
def test_every_analysis_takes_the_augmentation(command):
    def source(*words):
        out = [] if command == "inspect" else ["--out", "out"]
        given = COMMANDS[command].make_context(command, ["a.pth", *out, *words]).params
        return opt.checkpoint_source(given["checkpoint"], given)

    assert (source().augment, source().augment_draws, source().augment_seed) == ("none", 4, 0)
    chosen = source("--augment", "frozen", "--augment-draws", "7")
    assert (chosen.augment, chosen.augment_draws) == ("frozen", 7)
    if command != "inspect":  # the seed is the root of every random stream
        assert source("--augment", "redraw", "--seed", "5").augment_seed == 5


def test_impossible_values_are_refused_in_one_line(checkpoint, tmp_path):
    refuses(tmp_path, "inspect", checkpoint, "--augment", "forzen", match="unknown augment 'forzen'.*frozen")
    refuses(
        tmp_path,
        "inspect",
        checkpoint,
        "--augment-draws",
        "0",
        match="--augment-draws: expected a whole number, at least 1, got 0",
    )


@pytest.mark.parametrize("augment", ["frozen", "redraw"])
def test_a_data_set_without_augmentation_refuses(augment, checkpoint, tmp_path):
    match = f"--augment {augment}: the data set digits-lt is trained without augmentation; choose --augment none"
    refuses(tmp_path, "inspect", checkpoint, "--augment", augment, match=match)
    arguments = ["spectrum", checkpoint, *FEW, "--out", tmp_path / "new" / "out.nc", "--augment", augment]
    refuses(tmp_path, *arguments, match=match)
    with pytest.raises(LandscapeError, match=match):
        load_risk(checkpoint, augment=augment)


@pytest.mark.parametrize(
    ("command", "what"),
    [("perturb", "a perturbation analysis"), ("flatness", "a flatness analysis"), ("surface", "a surface")],
)
def test_a_moving_function_has_no_surface(command, what, small, cifar, tmp_path):
    arguments = [command, small, *CIFAR, cifar, *FEW, "--out", tmp_path / "new" / "out.nc"]
    refuses(tmp_path, *arguments, "--augment", "redraw", match=f"{what} needs a fixed function.*none or frozen")


def test_inspect_averages_over_frozen_draws_and_counts_images(small, cifar, on_cifar):
    options = (*CIFAR, cifar, "--split", "train", "--json")
    found = {}
    for augment in ("none", "frozen", "redraw"):
        printed = json.loads(succeeds("inspect", small, *options, "--augment", augment, "--augment-draws", "2"))
        lanes = {row["lane"]: row for row in printed["lanes"]}
        found[augment] = lanes["all"]["loss"]
        assert lanes["all"]["num_examples"] == 30
    assert len(set(found.values())) == 3
    risk = on_cifar(augment="frozen", augment_draws=2)
    assert found["frozen"] == pytest.approx(float(risk.losses(risk.theta).mean()), rel=1e-9)


def test_results_record_the_augmentation(on_cifar):
    plain, frozen = on_cifar(), on_cifar(augment="frozen", augment_draws=2, augment_seed=3)
    redrawn = on_cifar(augment="redraw", augment_seed=3)
    assert plain.attributes["augmentation"] == "none"
    assert frozen.attributes["augmentation"] == "frozen, 2 draws of crop-flip, seed 3"
    assert redrawn.attributes["augmentation"] == "redraw, crop-flip"
    assert redrawn.attributes["augment_seed"] == 3
    assert isinstance(frozen, ModelRisk)
    assert isinstance(redrawn, RedrawnRisk)
    assert frozen.class_counts.tolist() == plain.class_counts.tolist() == [3] * 10


def test_an_image_keeps_its_draws_whatever_the_cap(on_cifar, cifar):
    one, all_three = (on_cifar(augment="frozen", augment_draws=2, max_per_class=n) for n in (1, None))
    stored = [risk._examples.inputs.view(10, -1, 2, 3, 32, 32) for risk in (one, all_three)]
    assert torch.equal(stored[0][:, 0], stored[1][:, 0])
    other = on_cifar(augment="frozen", augment_draws=2, max_per_class=1, augment_seed=1)
    assert not torch.equal(one._examples.inputs, other._examples.inputs)
    train = load_dataset("cifar10", data_dir=cifar).train
    drawn = stored[1].flatten(0, 2)
    assert not torch.equal(drawn, train.images[torch.argsort(train.labels, stable=True)].repeat_interleave(2, 0))


def test_the_source_checks_what_it_is_given():
    with pytest.raises(LandscapeError, match="unknown augment 'always'"):
        CheckpointSource("a.pth", augment="always")
