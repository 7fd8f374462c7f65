"""Runs with every method on long-tailed digits: trained, killed and resumed, refused where they make no sense."""

from __future__ import annotations

import pytest
import torch

from landscape.checkpoint import load_weights, read_checkpoint
from landscape.data import load_dataset
from landscape.errors import LandscapeError
from landscape.models import build_model
from landscape.training import METHODS, TrainSpec, estimate_training, train
from landscape.training.folder import CHECKPOINT

# Quick settings under which every method does what it is for within three epochs.
OPTIONS = {
    "plain": {},
    "m2m": {"warm": 0.4, "gamma": 0.1, "num_steps": 2},
    "paco": {"queue": 100, "dim": 8},
    "gpaco": {"queue": 100, "dim": 8},
    "glmc": {"dim": 8},
}
# What is left: methods of other files, which have tests of their own.
NAMES = [name for name in METHODS if name in OPTIONS]


def tiny(method, **options):
    mixup = 0.5 if method == "plain" else 0.0
    fields = {"model": "convnet", "epochs": 3, "batch_size": 64, "method_options": OPTIONS[method], "mixup": mixup}
    return TrainSpec(**fields | {"method": method} | options)


def stop_after(num_epochs):
    def progress(done, total, text):
        if done == num_epochs:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(("method", "num_epochs"), [*((name, 1) for name in NAMES), ("m2m", 2)])
def test_a_killed_run_ends_with_the_bits_of_a_whole_one(tmp_path, method, num_epochs):
    """M2m's warm-up ends after two epochs: the snapshot of the network is taken after, or restored with, the resumption."""
    before = torch.get_rng_state()
    spec = tiny(method, optimizer="sam")
    whole = train(spec, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(spec, tmp_path / "killed", progress=stop_after(num_epochs))
    assert not (tmp_path / "killed" / CHECKPOINT).exists()
    assert train(spec, tmp_path / "killed", resume=True).read_bytes() == whole.read_bytes()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", NAMES)
def test_the_checkpoint_holds_the_classifier_alone(tmp_path, method):
    spec = tiny(method, epochs=2, optimizer="imbsam")
    checkpoint = read_checkpoint(train(spec, tmp_path))
    model = build_model("convnet", num_classes=10, in_channels=1, image_size=8)
    assert sorted(checkpoint.state_dict) == sorted(model.state_dict())
    load_weights(model, checkpoint)
    assert checkpoint.spec["method"] == method
    assert checkpoint.spec["method_options"] == OPTIONS[method]


def test_methods_differ_from_plain_training(tmp_path):
    few = {"model": "mlp", "epochs": 2, "batch_size": 256}  # two epochs: M2m translates in the second
    paths = {name: train(tiny(name, mixup=0.0, **few), tmp_path / name) for name in NAMES}
    paths["mixup"] = train(tiny("plain", **few), tmp_path / "mixup")
    weights = {name: read_checkpoint(path).state_dict["linear.weight"] for name, path in paths.items()}
    for name in weights:
        assert name == "plain" or not torch.equal(weights[name], weights["plain"])


def test_m2m_without_translation_is_plain_training(tmp_path):
    m2m = train(tiny("m2m", epochs=2, method_options={"warm": 1.0}), tmp_path / "m2m")
    plain = train(tiny("plain", epochs=2, mixup=0.0), tmp_path / "plain")
    ours, theirs = (read_checkpoint(path).state_dict for path in (m2m, plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_m2m_takes_a_trained_classifier(tmp_path):
    path = train(tiny("plain", model="mlp", epochs=2, mixup=0.0), tmp_path / "erm")
    options = OPTIONS["m2m"] | {"classifier": str(path), "warm": 0.0, "gamma": 0.0}
    spec = tiny("m2m", epochs=2, method_options=options)
    whole = train(spec, tmp_path / "whole")  # a convnet, translated with an MLP
    with pytest.raises(KeyboardInterrupt):
        train(spec, tmp_path / "killed", progress=stop_after(1))
    assert train(spec, tmp_path / "killed", resume=True).read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("method", NAMES)
def test_a_run_can_be_estimated(method):
    seconds, num_bytes = estimate_training(tiny(method))
    assert seconds > 0
    assert num_bytes > load_dataset("digits-lt").train.images.numel()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "m3m"}, "unknown method 'm3m': did you mean 'm2m'"),
        (
            {"method": "glmc", "method_options": {"contrst_weight": 1}},
            "unknown option of method 'glmc' 'contrst_weight'",
        ),
        ({"method": "plain", "method_options": {"mixed_labels": "first"}}, "unknown choice of mixed_labels 'first'"),
        (
            {"method": "m2m", "method_options": {"beta": 1.5}},
            r"'m2m': expected beta to be a number >= 0 and <= 1, got 1\.5",
        ),
        ({"method": "m2m", "method_options": {"num_steps": 2.5}}, r"num_steps to be a whole number >= 0, got 2\.5"),
        ({"method": "m2m", "method_options": {"start": "pixel"}}, "unknown start of method 'm2m' 'pixel'"),
        (
            {"method": "m2m", "method_options": {"classifier": "gone.safetensors"}},
            r"got 'gone\.safetensors': not there",
        ),
        ({"method": "paco", "method_options": {"queue": 0}}, "'paco': expected queue to be a whole number >= 1, got 0"),
        (
            {"method": "paco", "method_options": {"momentum": 2}},
            "expected momentum to be a number >= 0 and <= 1, got 2",
        ),
        ({"method": "gpaco", "method_options": {"smooth": -1}}, "expected smooth to be a number >= 0 and <= 1, got -1"),
        ({"method": "paco", "method_options": {"key_augmentation": "shfit"}}, "unknown augmentation 'shfit'"),
        ({"method": "glmc", "method_options": {"box": "round"}}, "unknown box of method 'glmc' 'round'"),
        ({"method": "paco", "loss": "vs"}, "method 'paco' goes with loss='ce' only, got 'vs'"),
        ({"method": "glmc", "reweight": "drw"}, "method 'glmc' goes with reweight='none' only, got 'drw'"),
        ({"method": "m2m", "mixup": 1.0}, r"method 'm2m' goes with mixup=0\.0 only, got 1\.0"),
        ({"method": "paco", "optimizer": "sam", "optimizer_options": {"roh": 1}}, "unknown option of sam 'roh'"),
        ({"method": "glmc", "optimizer": "ccsam"}, "optimizer 'ccsam' needs the criterion of plain training"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_data_are_read(options, message):
    with pytest.raises(LandscapeError, match=message):
        TrainSpec(**options)


def test_m2m_needs_a_classifier_that_knows_something(tmp_path):
    with pytest.raises(LandscapeError, match="without warm-up needs a trained classifier"):
        train(tiny("m2m", method_options={"warm": 0.0}), tmp_path)
