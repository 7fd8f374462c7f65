"""The network that is evaluated and written, where a method makes another one of the trained one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, update_bn

from landscape.checkpoint import read_checkpoint
from landscape.loading import CheckpointSource, load_checkpoint
from landscape.optimizers import OPTIMIZERS, Term
from landscape.training import SCHEDULES, TrainSpec, evaluate, read_history, train
from landscape.training.folder import CHECKPOINT


@dataclass(frozen=True)
class Averaging:
    """Plain descent and the mean of all epochs' weights, at a learning rate of its own."""

    rate: float = 0.02
    name: ClassVar[str] = "averaging"
    needs: ClassVar[frozenset[str]] = frozenset()

    def terms(self, batch):
        return [Term()]

    def companion(self, model):
        return Mean(self, model)


class Mean:
    def __init__(self, rule, model):
        self.rule, self.model, self.average = rule, model, AveragedModel(model)

    def learning_rate(self, scheduled, *, epoch, num_epochs, lr):
        assert (scheduled, lr) == (0.05, 0.05)
        return self.rule.rate / (epoch + 1)

    def end_epoch(self, epoch, num_epochs):
        self.average.update_parameters(self.model)

    def export(self, batches):
        if any("running_mean" in name for name, _ in self.average.named_buffers()):
            update_bn(batches(), self.average)
        return self.average.module

    def state_dict(self):
        return {"average": self.average.state_dict()}

    def load_state_dict(self, state):
        self.average.load_state_dict(state["average"])


@pytest.fixture(autouse=True)
def averaging(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "averaging", Averaging)


def spec_of(**options):
    fields = {"model": "convnet", "epochs": 3, "batch_size": 64, "lr": 0.05, "schedule": "constant"}
    return TrainSpec(**fields | {"optimizer": "averaging", "snapshot_every": 1} | options)


def test_the_mean_of_the_epochs_is_evaluated_and_written(tmp_path, monkeypatch):
    train(spec_of(), tmp_path / "averaged")
    history = read_history(tmp_path / "averaged")
    assert list(history["lr"]) == pytest.approx([0.02, 0.01, 0.02 / 3])
    files = [tmp_path / "averaged" / f"epoch-000{epoch}.safetensors" for epoch in (1, 2, 3)]
    monkeypatch.setitem(SCHEDULES, "harmonic", lambda epoch, num_epochs: 1 / (epoch + 1))
    train(spec_of(optimizer="sgd", lr=0.02, schedule="harmonic"), tmp_path / "sgd")
    own = [read_checkpoint(tmp_path / "sgd" / file.name).state_dict["conv2.weight"].double() for file in files]
    for epochs, file in enumerate(files, start=1):
        mean = read_checkpoint(file).state_dict["conv2.weight"].double()
        assert torch.allclose(mean, sum(own[:epochs]) / epochs, rtol=1e-5, atol=1e-7)
    for file, accuracy in zip(files, history["test_accuracy/all"]):
        loaded = load_checkpoint(CheckpointSource(file))
        assert evaluate(loaded.model, loaded.dataset.test, loaded.dataset).pooled(range(10))[1] == accuracy
    assert (tmp_path / "averaged" / CHECKPOINT).read_bytes() == files[2].read_bytes()


def test_the_first_mean_is_the_first_epoch_with_statistics_of_its_training_pass(tmp_path):
    """Its weights are those of plain descent, its statistics not those that training left behind."""
    mean = read_checkpoint(train(spec_of(epochs=1), tmp_path / "averaged")).state_dict
    plain = read_checkpoint(train(spec_of(epochs=1, optimizer="sgd", lr=0.02), tmp_path / "sgd")).state_dict
    differ = {name for name in mean if not torch.equal(mean[name], plain[name])}
    assert differ == {f"bn{i}.{name}" for i in (1, 2, 3) for name in ("running_mean", "running_var")}


def test_statistics_that_are_held_fixed_stay_as_they_are(tmp_path):
    options = {"optimizer": "averaging", "epochs": 2, "lr": 0.05, "schedule": "constant", "sampler": "uniform"}
    for rule in ("update", "frozen"):
        spec = spec_of(
            optimizer="sgd", epochs=1, second_stage="crt", second_options={**options, "frozen_batchnorm": rule}
        )
        train(spec, tmp_path / rule)
        first, second = (
            read_checkpoint(folder / CHECKPOINT).state_dict for folder in (tmp_path / rule / "stage-1", tmp_path / rule)
        )
        assert torch.equal(first["bn2.running_var"], second["bn2.running_var"]) == (rule == "frozen")
        assert torch.equal(first["conv2.weight"], second["conv2.weight"])
        assert not torch.equal(first["linear.weight"], second["linear.weight"])


@pytest.mark.parametrize("optimizer", ["averaging", "swa", "spectral-norm"])
@pytest.mark.parametrize("second_stage", [None, "crt"])
def test_a_killed_run_ends_with_the_bits_of_an_uninterrupted_one(tmp_path, optimizer, second_stage):
    options = {"optimizer": optimizer, "epochs": 3, "schedule": "constant", "sampler": "uniform", "sampler_options": {}}
    spec = spec_of(optimizer=optimizer, second_stage=second_stage, second_options=options if second_stage else {})

    def stop(done, total, text):
        if done == total - 1:
            raise KeyboardInterrupt

    train(spec, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(spec, tmp_path / "killed", progress=stop)
    train(spec, tmp_path / "killed", resume=True)
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.safetensors"))
    assert len(files) == (8 if second_stage else 4)
    assert all((tmp_path / "whole" / f).read_bytes() == (tmp_path / "killed" / f).read_bytes() for f in files)
    plain = build_state(tmp_path)
    assert all(list(read_checkpoint(tmp_path / "whole" / file).state_dict) == plain for file in files)


def build_state(folder):
    """Return the names of a network that nothing was done to."""
    return list(read_checkpoint(train(spec_of(optimizer="sgd", epochs=1), folder / "plain")).state_dict)
