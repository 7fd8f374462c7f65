"""Trainings in two stages: what each second stage changes, what it leaves, and that a killed one ends with the same bits."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from landscape.checkpoint import read_checkpoint
from landscape.errors import LandscapeError
from landscape.loading import CheckpointSource, load_checkpoint, load_risk
from landscape.losses import GCL, LOSSES, CrossEntropy
from landscape.models import build_model
from landscape.training import (
    SECOND_STAGES,
    TrainSpec,
    epochs_done,
    estimate_training,
    evaluate,
    read_history,
    split_stages,
    train,
    training_stages,
    two_stages,
    untrained_checkpoint,
)
from landscape.training.folder import BEST, CHECKPOINT, RECORD, STATE
from landscape.training.heads import add_scale, tau_normalise, with_folded_scale
from landscape.training.loop import begin_epoch
from landscape.training.setup import build_run
from landscape.trajectory import order_snapshots

CPU = torch.device("cpu")
TINY = {"model": "convnet", "epochs": 2, "batch_size": 64, "lr": 0.05, "optimizer": "sgd", "schedule": "constant"}


class Smoothed(CrossEntropy):
    """Stands in for label-aware smoothing where it is not registered."""

    def __init__(self, class_counts, *, smooth_head=0.3, smooth_tail=0.0):
        super().__init__(class_counts)


class FocalGCL(GCL):
    """Stands in for GCL where it has no focal factor yet."""

    def __init__(self, class_counts, *, scale=30.0, margin=0.0, noise_mul=0.5, gamma=0.0):
        super().__init__(class_counts, scale=scale, margin=margin, noise_mul=noise_mul)


@pytest.fixture(scope="module", autouse=True)
def losses():
    with pytest.MonkeyPatch.context() as patch:
        if "label-aware" not in LOSSES:
            patch.setitem(LOSSES, "label-aware", Smoothed)
        if "gamma" not in inspect.signature(LOSSES["gcl"]).parameters:
            patch.setitem(LOSSES, "gcl", FocalGCL)
        yield


def tiny(name, options=None, **fields):
    """Return a training of two epochs with a second stage of two."""
    short = {} if name == "tau-norm" else {"epochs": 2}
    given = {**short, **(options or {})}
    return two_stages(name, **{**TINY, "mixup": 0.0, "schedule_options": {}, **fields}, second_options=given)


def stop_after(num_epochs):
    def progress(done, total, text):
        if done == num_epochs:
            raise KeyboardInterrupt

    return progress


def states(out):
    """Return the weights after the first and after the second stage."""
    return [read_checkpoint(path / CHECKPOINT).state_dict for path in (out / "stage-1", out)]


def changed(out):
    first, second = states(out)
    return {name for name in second if not torch.equal(first[name], second[name])}


STATISTICS = {f"bn{i}.{name}" for i in (1, 2, 3) for name in ("running_mean", "running_var", "num_batches_tracked")}
HEAD = {"linear.weight", "linear.bias"}
CHANGES = {
    "crt": HEAD | STATISTICS,
    "tau-norm": HEAD,
    "lws": HEAD | STATISTICS,
    "mislas": HEAD | STATISTICS,
    "gcl": {"linear.weight"},
    "ccsam": HEAD | STATISTICS,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every second stage, trained once."""
    folder = tmp_path_factory.mktemp("runs")
    for name in SECOND_STAGES:
        train(tiny(name, snapshot_every=1), folder / name)
    return folder


@pytest.mark.parametrize("name", SECOND_STAGES)
def test_only_what_a_second_stage_trains_changes(runs, name):
    first, second = states(runs / name)
    assert list(first) == list(second)
    assert all(first[entry].shape == second[entry].shape for entry in first)
    names = {entry for entry in first if not entry.startswith("bn")} | {e for e in first if "running" in e}
    assert changed(runs / name) & names == CHANGES.get(name, names) & names


@pytest.mark.parametrize("name", SECOND_STAGES)
def test_a_checkpoint_of_a_second_stage_is_a_plain_network(runs, name):
    """It is analysed like any other, and its numbers are those of the training."""
    loaded = load_checkpoint(CheckpointSource(runs / name / CHECKPOINT))
    last = read_history(runs / name).iloc[-1]
    accuracy = evaluate(loaded.model.eval(), loaded.dataset.test, loaded.dataset).pooled(range(10))[1]
    assert accuracy == last["test_accuracy/all"] == loaded.spec["accuracy"]["all"]
    assert load_risk(runs / name / CHECKPOINT, max_per_class=2).theta.isfinite().all()
    assert loaded.spec["stage"] == name
    assert loaded.spec["epochs_before"] == 2
    assert loaded.spec["started_from"]["epochs"] == 2


@pytest.mark.parametrize("name", SECOND_STAGES)
@pytest.mark.parametrize("killed_after", [1, 3])
def test_a_killed_training_ends_with_the_bits_of_an_uninterrupted_one(runs, tmp_path, name, killed_after):
    spec = tiny(name, snapshot_every=1)
    if name == "tau-norm" and killed_after == 3:
        killed_after = 2  # there is no third epoch
    with pytest.raises(KeyboardInterrupt):
        train(spec, tmp_path, progress=stop_after(killed_after))
    train(spec, tmp_path, resume=True)
    files = sorted(path.relative_to(runs / name) for path in (runs / name).rglob("*.safetensors"))
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.safetensors"))
    assert all((tmp_path / file).read_bytes() == (runs / name / file).read_bytes() for file in files)
    assert not list(tmp_path.rglob(STATE))


def test_a_classifier_is_drawn_anew_or_taken_over(runs):
    heads = {}
    for name in ("crt", "lws"):
        run = build_run(split_stages(tiny(name))[1], CPU, folder=runs / name)
        heads[name] = run.model.linear.weight.detach()
    first = read_checkpoint(runs / "crt" / "stage-1" / CHECKPOINT).state_dict["linear.weight"]
    began = build_run(split_stages(tiny("crt"))[0], CPU).model.linear.weight.detach()
    assert torch.equal(heads["lws"], first)
    assert not torch.isclose(heads["crt"], first).any()
    assert not torch.isclose(heads["crt"], began).any()  # nor what the first stage began with
    assert heads["crt"].std().item() == pytest.approx(began.std().item(), rel=0.2)


def test_stage_one_is_a_run_of_its_own(runs, tmp_path):
    first = split_stages(tiny("crt", snapshot_every=1))[0]
    assert train(first, tmp_path).read_bytes() == (runs / "crt" / "stage-1" / CHECKPOINT).read_bytes()


# ---- tau-normalisation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tau", "bias"), [(0.0, "keep"), (0.7, "drop"), (1.0, "drop"), (2.0, "keep")])
def test_tau_normalisation_is_the_formula(tau, bias):
    head = nn.Linear(5, 3).double()
    weight, offset = (parameter.detach().numpy().copy() for parameter in (head.weight, head.bias))
    tau_normalise(head, tau, bias=bias)
    norms = np.sqrt((weight**2).sum(axis=1))
    assert head.weight.detach().numpy() == pytest.approx(weight / norms[:, None] ** tau, rel=1e-14)
    assert head.bias.detach().numpy() == pytest.approx(offset if bias == "keep" else 0.0)


def test_tau_normalisation_of_a_run(runs):
    first, second = states(runs / "tau-norm")
    assert second["linear.weight"].norm(dim=1).tolist() == pytest.approx([1.0] * 10, rel=1e-6)
    assert torch.equal(second["linear.bias"], torch.zeros(10))
    assert first["linear.bias"].abs().max() > 0
    assert len(read_history(runs / "tau-norm")) == 3


def test_tau_normalisation_needs_weights():
    with pytest.raises(LandscapeError, match="weights of class 1 are all 0"):
        tau_normalise(nn.Linear(2, 2).requires_grad_(False).apply(lambda head: head.weight[1].zero_()), 1.0)
    with pytest.raises(LandscapeError, match="tau-normalisation needs trained weights"):
        TrainSpec(tau=1.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tau-norm", "tau-normalisation of a cosine head changes nothing, it normalises its weights"),
        ("lws", "a cosine head cannot hold a scale per class, it normalises its weights"),
        ("mislas", "a cosine head cannot hold a scale per class"),
    ],
)
@pytest.mark.parametrize("loss", ["ldam", "gcl"])
def test_a_cosine_head_is_refused_before_anything_is_trained(tmp_path, name, message, loss):
    with pytest.raises(LandscapeError, match=message):
        train(tiny(name, loss=loss), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    cosine = build_model("mlp", num_classes=3, in_channels=1, image_size=4, head="cosine")
    for change in (add_scale, lambda head: tau_normalise(head, 1.0)):
        with pytest.raises(LandscapeError, match="needs a linear head, got NormedLinear"):
            change(cosine.linear)


# ---- learnable weight scaling -------------------------------------------------------------------------------------


def test_a_folded_scale_is_a_factor_of_the_logits():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    inputs = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = model(inputs)
    add_scale(model[2])
    assert torch.equal(model(inputs), plain)
    with torch.no_grad():
        model[2].scale.copy_(torch.tensor([0.5, 1.0, 3.0]))
    folded = with_folded_scale(model)
    assert torch.allclose(folded(inputs), plain * torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64), rtol=1e-13)
    assert torch.equal(model(inputs), plain * model[2].scale)
    assert list(folded.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert "2.scale" in model.state_dict()
    perturbed = {"weight": model[2].weight, "bias": model[2].bias, "scale": torch.zeros(3, dtype=torch.float64)}
    assert torch.func.functional_call(model[2], perturbed, (plain.new_ones(1, 6),)).abs().max() == 0


def test_weight_scaling_trains_one_number_per_class(runs):
    first, second = states(runs / "lws")
    ratios = second["linear.weight"] / first["linear.weight"]
    assert torch.allclose(ratios, ratios[:, :1].expand_as(ratios), rtol=1e-5)
    assert torch.allclose(second["linear.bias"], first["linear.bias"] * ratios[:, 0], rtol=1e-5)
    assert (ratios[:, 0] - 1).abs().min() > 1e-6


def test_mislas_has_two_learning_rates(tmp_path):
    first, second = split_stages(tiny("mislas", {"schedule": "constant", "head_lr_factor": 0.25}))
    train(first, tmp_path / "stage-1")
    run = build_run(second, CPU, folder=tmp_path)
    assert begin_epoch(run, 0) == 0.05
    shapes = [[tuple(p.shape) for p in group["params"]] for group in run.optimizer.param_groups]
    assert shapes == [[(10,)], [(10, 32), (10,)]]  # the scale; weight and bias
    assert [group["lr"] for group in run.optimizer.param_groups] == [0.05, 0.0125]


# ---- how a second stage is described ------------------------------------------------------------------------------


def test_the_task_is_shared_and_the_training_is_not():
    spec = tiny("crt", imbalance_ratio=5.0, weight_decay=1e-3, optimizer="sam", reweight="drw", seed=3, accumulate=2)
    first, second = split_stages(spec)
    for name in ("imbalance_ratio", "weight_decay", "seed", "model", "batch_size", "lr", "accumulate", "loss"):
        assert getattr(second, name) == getattr(first, name) == getattr(spec, name)
    assert (second.optimizer, second.reweight, second.mixup) == ("sgd", "none", 0.0)
    assert (second.sampler, second.sampler_options) == ("class-aware", {"num_samples_cls": 4})
    assert split_stages(tiny("ccsam"))[1].lr == pytest.approx(0.005)


def test_the_classifier_keeps_its_kind_and_options_go_with_what_they_belong_to():
    first = {"loss": "ldam", "loss_options": {"max_margin": 0.3}}
    second = split_stages(tiny("crt", **first))[1]
    assert (second.loss_options, second.resolved_head) == ({"max_margin": 0.3}, "cosine")
    second = split_stages(tiny("crt", {"loss": "ce"}, **first))[1]
    assert (second.loss, second.loss_options, second.resolved_head) == ("ce", {}, "cosine")
    with pytest.raises(
        LandscapeError, match="the loss gcl is defined on cosines, but the first stage has a linear head"
    ):
        split_stages(tiny("crt", {"loss": "gcl"}))


def test_dotted_names_set_one_option():
    options = {"optimizer": "sam", "optimizer_options.rho": 0.3, "sampler_options.num_samples_cls": 2}
    second = split_stages(tiny("crt", options))[1]
    assert second.optimizer_options == {"rho": 0.3}
    assert second.sampler_options == {"num_samples_cls": 2}
    second = split_stages(tiny("ccsam", {"method_options.div": 3.0}, dataset="cifar100-lt", data_dir="data"))[1]
    assert second.method_options == {"up_limit": 0.3, "div": 3.0}


@pytest.mark.parametrize(
    ("dataset", "ratio", "expected"),
    [
        ("cifar10-lt", None, (0.3, 0.0, 0.5, "frozen")),
        ("cifar10-lt", 10.0, (0.1, 0.0, 0.2, "frozen")),
        ("cifar100-lt", 100.0, (0.4, 0.1, 0.2, "update")),
        ("cifar100-lt", 50, (0.3, 0.0, 0.1, "update")),
    ],
)
def test_mislas_has_the_released_settings_of_each_data_set(dataset, ratio, expected):
    spec = two_stages("mislas", dataset=dataset, data_dir="data", imbalance_ratio=ratio)
    first, second = split_stages(spec)
    head, tail, factor, batchnorm = expected
    assert second.loss_options == {"smooth_head": head, "smooth_tail": tail}
    assert (second.head_lr_factor, second.frozen_batchnorm) == (factor, batchnorm)
    assert (first.mixup, first.schedule, second.mixup, second.epochs) == (1.0, "multistep", 0.0, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch": 3}, "unknown option of the second stage 'epoch': did you mean 'epochs'"),
        ({"optimiser_options.rho": 3}, "unknown option of the second stage 'optimiser_options'"),
        ({"lr.rho": 3}, "'lr' has no options, got 'lr.rho'"),
        ({"second_stage": "lws"}, "'second_stage' cannot be set, there are two stages only"),
        ({"start": "stage.safetensors"}, "expected start to be last or best, got 'stage.safetensors'"),
        ({"optimizer": "sam", "optimizer_options.roh": 3}, "unknown option of sam 'roh'"),
        ({"trainable": "head-scale"}, "trainable 'head-scale' needs scale_head"),
        ({"scale_head": 1}, "expected scale_head to be true or false, got 1"),
    ],
)
def test_bad_options_are_found_before_anything_is_trained(tmp_path, options, message):
    with pytest.raises(LandscapeError, match=message):
        train(tiny("crt", options), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(LandscapeError, match="unknown second stage 'ctr': did you mean 'crt'"):
        split_stages(replace(tiny("crt"), second_stage="ctr"))
    with pytest.raises(LandscapeError, match="epochs: expected a whole number, at least 1, got 0"):
        TrainSpec(epochs=0)


def test_another_run_in_the_way_is_found_before_the_first_stage_trains(tmp_path):
    train(TrainSpec(model="mlp", epochs=1), tmp_path)
    with pytest.raises(LandscapeError, match="holds a finished run"):
        train(tiny("crt"), tmp_path)
    with pytest.raises(LandscapeError, match="cannot resume"):
        train(tiny("crt"), tmp_path, resume=True)
    assert not (tmp_path / "stage-1").exists()


# ---- last and best epoch ------------------------------------------------------------------------------------------


def test_the_second_stage_may_start_from_the_best_epoch_of_the_first(tmp_path):
    spec = tiny("crt", {"start": "best", "epochs": 1}, epochs=4, lr=0.5, optimizer="sgd", evaluate_every=1)
    train(spec, tmp_path)
    history = read_history(tmp_path / "stage-1")
    best = int(history.loc[history["test_accuracy/all"].idxmax(), "epoch"])
    stored = read_checkpoint(tmp_path / "stage-1" / BEST)
    assert stored.spec["epoch"] == best
    record = json.loads((tmp_path / "stage-1" / RECORD).read_text())
    reported = record["accuracy"]
    assert (reported["best_epoch"]["epoch"], reported["last_epoch"]["epoch"]) == (best, 4)
    assert reported["best_epoch"]["selected_on"] == "test set"
    assert reported["best_epoch"]["test_accuracy"]["all"] == history["test_accuracy/all"].max()
    second = read_checkpoint(tmp_path / CHECKPOINT)
    assert second.spec["started_from"]["epoch"] == second.spec["epochs_before"] == best
    assert torch.equal(second.state_dict["conv1.weight"], stored.state_dict["conv1.weight"])


def test_the_first_of_equal_epochs_is_the_best(tmp_path):
    train(TrainSpec(model="mlp", epochs=3, lr=0.0, keep_best=True), tmp_path)
    assert read_checkpoint(tmp_path / BEST).spec["epoch"] == 1
    assert json.loads((tmp_path / RECORD).read_text())["accuracy"]["best_epoch"]["epoch"] == 1


def test_mirror_images_at_the_test(tmp_path):
    path = train(TrainSpec(model="mlp", epochs=2, test_time_flip=True), tmp_path)
    loaded = load_checkpoint(CheckpointSource(path))
    images = loaded.dataset.normalise(loaded.dataset.test.images)
    logits = (loaded.model(images) + loaded.model(images.flip(3))) / 2
    expected = (logits.argmax(1) == loaded.dataset.test.labels).double().mean().item()
    reported = json.loads((tmp_path / RECORD).read_text())["accuracy"]["last_epoch"]
    assert reported["test_flip_accuracy"]["all"] == pytest.approx(expected, abs=1e-12)
    assert reported["test_flip_accuracy"]["all"] != reported["test_accuracy"]["all"]
    last = read_history(tmp_path).iloc[-1]
    assert last["test_flip_accuracy/all"] == pytest.approx(expected, abs=1e-12)
    assert "test_flip_loss/all" not in last


# ---- around -------------------------------------------------------------------------------------------------------


def test_snapshots_of_both_stages_are_one_trajectory(runs):
    paths = [*(runs / "crt" / "stage-1").glob("epoch-*"), *(runs / "crt").glob("epoch-*")]
    snapshots = order_snapshots(paths)
    assert [snapshot.epoch for snapshot in snapshots] == [1, 2, 3, 4]
    assert [training_stages(s.record) for s in snapshots] == [()] * 2 + [((2, "second stage, crt"),)] * 2
    pair = order_snapshots([runs / "tau-norm" / CHECKPOINT, runs / "tau-norm" / "stage-1" / CHECKPOINT])
    assert [snapshot.epoch for snapshot in pair] == [2, 2.5]


def test_changes_of_rule_of_both_stages_are_in_order():
    first = {"epochs": 10, "epoch": 10, "reweight": "drw", "drw_epoch": 8, "schedule": "multistep"}
    record = {"epochs": 4, "stage": "deferred", "epochs_before": 10, "started_from": first, "schedule": "steps"}
    record["schedule_options"] = {"milestones": [0, 100]}
    assert training_stages(record) == (
        (8, "deferred re-weighting, learning rate drops"),
        (9, "learning rate drops"),
        (10, "second stage, deferred"),
        (12, "learning rate drops"),
    )
    assert epochs_done({"epoch": True}) is None


def test_histories_of_both_stages_count_through(runs):
    history = read_history(runs / "ccsam")
    assert list(history["epoch"]) == [1, 2, 3, 4]
    assert list(read_history(runs / "tau-norm")["epoch"]) == [1, 2, 2.5]
    assert list(read_history(runs / "ccsam" / "stage-1")["epoch"]) == [1, 2]


@pytest.mark.parametrize("name", SECOND_STAGES)
def test_the_estimate_adds_the_stages(tmp_path, name):
    spec = tiny(name)
    seconds, size = estimate_training(spec)
    assert seconds > 0
    assert size > 0
    stored = read_checkpoint(untrained_checkpoint(spec, tmp_path))
    assert stored.spec["loss"] == split_stages(spec)[1].loss
    assert "linear.scale" not in stored.state_dict


def test_progress_counts_both_stages(tmp_path):
    calls = []
    train(tiny("crt"), tmp_path, progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [call[2].partition(":")[0] for call in calls] == ["stage 1", "stage 1", "crt", "crt"]
