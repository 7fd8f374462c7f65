"""Specs, schedules and the evaluation loop."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from landscape.data import Split, load_dataset
from landscape.errors import LandscapeError
from landscape.training import SCHEDULES, Evaluation, TrainSpec, evaluate, learning_rate


@pytest.mark.parametrize(
    ("schedule", "after_160", "after_180"),
    [("ldam", 0.01, 0.0001), ("multistep", 0.1, 0.01)],
)
def test_published_milestones(schedule, after_160, after_180):
    rates = [learning_rate(schedule, epoch, num_epochs=200, lr=0.1) for epoch in range(200)]
    factors = [e / 5 if e <= 5 else after_180 if e > 180 else after_160 if e > 160 else 1 for e in range(1, 201)]
    published = [0.1 * factor for factor in factors]
    assert rates == pytest.approx(published, rel=1e-15)


@pytest.mark.parametrize("num_epochs", [10, 40, 60, 90, 400])
def test_milestones_scale(num_epochs):
    factors = [learning_rate("ldam", epoch, num_epochs=num_epochs, lr=1.0) for epoch in range(num_epochs)]
    assert factors.count(0.0001) == num_epochs // 10
    assert factors.count(0.01) == num_epochs // 10
    assert factors[-1] == 0.0001
    assert factors == sorted(factors[: num_epochs // 2]) + factors[num_epochs // 2 :]


def test_cosine_and_constant():
    rates = [learning_rate("cosine", epoch, num_epochs=4, lr=2.0) for epoch in range(4)]
    assert rates == pytest.approx([2.0, 1.0 + math.sqrt(0.5), 1.0, 1.0 - math.sqrt(0.5)])
    assert {learning_rate("constant", epoch, num_epochs=4, lr=2.0) for epoch in range(4)} == {2.0}


# Their published forms: a fifth of a cosine, and one whose last epoch has the rate 0.
SLOW = {"gcl-stage2", "cosine-shifted"}


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name not in SLOW])
def test_a_trial_of_one_or_two_epochs_runs_at_the_full_rate(schedule):
    """Scaled by their ends, the milestones would swallow such a run and train it at a ten-thousandth of the rate."""
    assert learning_rate(schedule, 0, num_epochs=1, lr=0.1) == 0.1
    assert learning_rate(schedule, 1, num_epochs=2, lr=0.1) >= 0.05


def test_defaults_depend_on_the_data_set():
    cifar = TrainSpec(dataset="cifar10-lt", data_dir="data")
    assert (cifar.model, cifar.epochs, cifar.batch_size, cifar.lr) == ("resnet32", 200, 128, 0.1)
    assert (cifar.weight_decay, cifar.schedule, cifar.drw_epoch) == (2e-4, "ldam", 160)
    assert TrainSpec().model == "convnet"
    assert TrainSpec(epochs=7, lr=0.2).epochs == 7


def test_spec_survives_json():
    spec = TrainSpec(mean=[0.3], std=[0.4], optimizer="sam", optimizer_options={"rho": 0.2}, loss="vs")
    assert TrainSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_head_follows_the_loss():
    assert TrainSpec(loss="ldam").resolved_head == "cosine"
    assert TrainSpec(loss="focal").resolved_head == "linear"
    assert TrainSpec(loss="ldam", head="linear").resolved_head == "linear"
    assert TrainSpec(loss="ldam", loss_options={"logits_scaled": True}).resolved_head == "linear"


@pytest.mark.parametrize(
    ("drw_start", "epochs", "expected"),
    [(0.8, 200, 160), (0.7, 10, 7), (0.8, 5, 4), (0.5, 3, 2), (0.0, 3, 0), (1.0, 3, 3)],
)
def test_drw_epoch(drw_start, epochs, expected):
    assert TrainSpec(drw_start=drw_start, epochs=epochs).drw_epoch == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "digits"}, "unknown data set 'digits': did you mean 'digits-lt'"),
        ({"model": "resnet21"}, "unknown model 'resnet21'"),
        ({"loss": "cee"}, "unknown loss 'cee': did you mean 'ce'"),
        ({"optimizer": "smm"}, "unknown optimizer 'smm': did you mean 'sam'"),
        ({"base": "adam"}, "unknown base optimizer 'adam': did you mean 'adamw'"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin': did you mean 'cosine'"),
        ({"reweight": "dwr"}, "unknown reweighting 'dwr'"),
        ({"head": "cos"}, "unknown head 'cos'"),
        ({"bn_statistics": "last"}, "unknown BatchNorm rule 'last'"),
        ({"epochs": 0}, "epochs: expected a whole number, at least 1, got 0"),
        ({"batch_size": 2.5}, r"batch_size: expected a whole number, at least 1, got 2\.5"),
        ({"seed": -1}, "seed: expected a whole number, at least 0, got -1"),
        ({"lr": float("nan")}, "lr to be a finite number >= 0, got nan"),
        ({"lr": "fast"}, "lr to be a finite number >= 0, got 'fast'"),
        ({"weight_decay": -1.0}, r"weight_decay to be a finite number >= 0, got -1\.0"),
        ({"momentum": 1.5}, r"momentum between 0 and 1, got 1\.5"),
        ({"optimizer": "sam", "optimizer_options": {"roh": 1}}, "unknown option of sam 'roh': did you mean 'rho'"),
        ({"optimizer": "sam", "optimizer_options": {"rho": -1.0}}, "rho must be a finite number >= 0, got -1"),
        ({"loss": "vs", "loss_options": {"gama": 1}}, "unknown option of loss 'vs' 'gama': did you mean 'gamma'"),
    ],
)
def test_bad_specs(options, message):
    with pytest.raises(LandscapeError, match=message):
        TrainSpec(**options)


def test_unknown_field_in_a_saved_spec():
    with pytest.raises(LandscapeError, match="unknown training option 'epoch': did you mean 'epochs'"):
        TrainSpec.from_dict({"epoch": 3})


class Noisy(nn.Module):
    """Different in training mode, and with a part that its owner keeps in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.frozen = nn.Dropout(0.5).eval()
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        return self.linear(self.frozen(self.dropout(images.flatten(1))))


def test_evaluation_against_a_loop_over_classes():
    dataset, model = load_dataset("digits-lt"), Noisy().double()
    result = evaluate(model, dataset.train, dataset, batch_size=37)
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)
    model.eval()
    logits = model(dataset.normalise(dataset.train.images, dtype=torch.float64)).detach()
    labels = dataset.train.labels
    for c in range(10):
        mine = labels == c
        assert torch.isclose(result.loss[c], functional.cross_entropy(logits[mine], labels[mine]), rtol=1e-12)
        assert result.accuracy[c] == (logits[mine].argmax(1) == c).double().mean()
    assert tuple(result.num_examples.tolist()) == dataset.train_counts
    loss, accuracy = result.pooled(range(10))
    assert loss == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-12)
    assert accuracy == pytest.approx((logits.argmax(1) == labels).double().mean().item(), rel=1e-12)


def test_mode_is_restored_after_a_failure():
    dataset, model = load_dataset("digits-lt"), Noisy()
    with pytest.raises(ZeroDivisionError):
        evaluate(model, dataset.test, dataset, criterion=lambda logits, labels: 1 / 0)
    assert model.training


def test_classes_without_images():
    dataset = load_dataset("digits-lt")
    keep = dataset.train.labels != 3
    result = evaluate(Noisy(), Split(dataset.train.images[keep], dataset.train.labels[keep]), dataset)
    assert math.isnan(result.loss[3])
    assert result.pooled([3, 4]) == (result.loss[4].item(), result.accuracy[4].item())
    assert all(math.isnan(value) for value in result.pooled([3]))
    assert all(math.isnan(value) for value in result.pooled([]))


def test_pooling_weighs_classes_by_their_images():
    numbers = torch.tensor([1.0, 2.0], dtype=torch.float64)
    loss, accuracy = Evaluation(numbers, numbers / 4, torch.tensor([30, 10])).pooled([0, 1])
    assert (loss, accuracy) == (1.25, 0.3125)
