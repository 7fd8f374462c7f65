"""The training loop on long-tailed digits: repeatable, resumable, and honest about what went wrong."""

from __future__ import annotations

import csv
import json
import logging

import pytest
import torch
from torch.nn import functional

from landscape.checkpoint import load_weights, read_checkpoint
from landscape.data import load_dataset
from landscape.errors import LandscapeError
from landscape.losses import COSINE_LOSSES, LOSSES, Reweighting, build_loss
from landscape.models import build_model
from landscape.optimizers import OPTIMIZERS
from landscape.training import Objective, TrainSpec, evaluate, learning_rate, train, training_stages
from landscape.training.folder import CHECKPOINT, HISTORY, RECORD, STATE


def tiny(**options):
    return TrainSpec(**{"model": "mlp", "epochs": 3, "batch_size": 64, "lr": 0.05} | options)


def stop_after(num_epochs):
    def progress(done, total, text):
        if done == num_epochs:
            raise KeyboardInterrupt

    return progress


def read_history(out):
    with (out / HISTORY).open() as file:
        return list(csv.DictReader(file))


def without_seconds(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def killed_and_resumed(spec, out, num_epochs=2):
    with pytest.raises(KeyboardInterrupt):
        train(spec, out, progress=stop_after(num_epochs))
    assert not (out / CHECKPOINT).exists()
    return train(spec, out, resume=True)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(tmp_path, optimizer):
    spec = tiny(optimizer=optimizer, reweight="drw", drw_start=0.3)
    whole = train(spec, tmp_path / "whole")
    resumed = killed_and_resumed(spec, tmp_path / "killed", num_epochs=1)
    assert resumed.read_bytes() == whole.read_bytes()
    assert without_seconds(read_history(tmp_path / "killed")) == without_seconds(read_history(tmp_path / "whole"))
    counts = [json.loads((tmp_path / run / RECORD).read_text())["timings"] for run in ("whole", "killed")]
    assert counts[0]["num_forwards"] == counts[1]["num_forwards"] > 0
    assert counts[0]["num_backwards"] == counts[1]["num_backwards"] > 0


@pytest.mark.parametrize(
    "options",
    [
        {"model": "convnet", "bn_statistics": "first-pass", "optimizer": "sam"},
        {"loss": "gcl", "optimizer": "sam"},
        {"base": "adamw", "lr": 0.002},
        {"schedule": "multistep", "snapshot_every": 1, "evaluate_every": 2},
    ],
    ids=["batch-norm", "noisy-loss", "adamw", "trajectory"],
)
def test_resuming_covers_buffers_noise_and_base_state(tmp_path, options):
    spec = tiny(**options)
    whole = train(spec, tmp_path / "whole")
    resumed = killed_and_resumed(spec, tmp_path / "killed")
    assert resumed.read_bytes() == whole.read_bytes()
    names = [sorted(file.name for file in (tmp_path / run).iterdir()) for run in ("whole", "killed")]
    assert names[0] == names[1]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains(tmp_path, loss):
    spec = tiny(loss=loss, epochs=4)
    checkpoint = read_checkpoint(train(spec, tmp_path))
    assert checkpoint.spec["head"] == ("cosine" if loss in COSINE_LOSSES else "linear")
    losses = [float(row["train_loss"]) for row in read_history(tmp_path)]
    assert losses[-1] < losses[0]


def test_seed_decides_the_bits(tmp_path):
    first, again, other = (train(tiny(seed=s), tmp_path / name) for s, name in ((0, "a"), (0, "b"), (1, "c")))
    assert first.read_bytes() == again.read_bytes()
    first, other = read_checkpoint(first).state_dict, read_checkpoint(other).state_dict
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_global_random_state_is_untouched(tmp_path):
    before = torch.get_rng_state()
    train(tiny(model="convnet", optimizer="gnm", loss="gcl"), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_small_networks_train_on_one_thread_and_give_the_others_back(tmp_path, num_threads):
    seen, before = [], torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads)
        path = train(tiny(model="convnet"), tmp_path / "a", progress=lambda *_: seen.append(torch.get_num_threads()))
        assert (set(seen), torch.get_num_threads()) == ({1}, num_threads)
        torch.set_num_threads(1)
        assert train(tiny(model="convnet"), tmp_path / "b").read_bytes() == path.read_bytes()
    finally:
        torch.set_num_threads(before)


def test_default_digits_run_learns_the_head_better_than_the_tail(tmp_path):
    accuracy = read_checkpoint(train(TrainSpec(epochs=30), tmp_path)).spec["accuracy"]
    assert accuracy["all"] > 0.85
    assert accuracy["head"] > accuracy["tail"] + 0.1


def test_checkpoint_needs_no_companion(tmp_path):
    spec = tiny(loss="ldam", loss_options={"max_margin": 0.3}, optimizer="sam", optimizer_options={"rho": 0.1})
    checkpoint = read_checkpoint(train(spec, tmp_path))
    saved = checkpoint.spec
    dataset = load_dataset(**saved["data"])
    shape = {name: saved[name] for name in ("num_classes", "in_channels", "image_size", "head")}
    model = build_model(saved["model"], **shape)
    load_weights(model, checkpoint)
    criterion = build_loss(saved["loss"], saved["class_counts"], **saved["loss_options"])
    again = evaluate(model, dataset.test, dataset, criterion=criterion)
    last = read_history(tmp_path)[-1]
    everything = range(dataset.num_classes)
    assert again.pooled(everything) == (float(last["test_loss/all"]), float(last["test_accuracy/all"]))
    assert saved["accuracy"]["9"] == float(last["test_accuracy/9"])
    assert saved["optimizer_options"]["rho"] == 0.1
    assert saved["class_counts"] == list(dataset.train_counts)
    assert saved["epoch"] == 3


def test_history_columns(tmp_path):
    train(tiny(evaluate_every=2), tmp_path)
    rows = read_history(tmp_path)
    lanes = ["all", "head", "medium", "tail", *map(str, range(10))]
    tests = [f"test_{kind}/{lane}" for kind in ("loss", "accuracy") for lane in lanes]
    assert list(rows[0]) == ["epoch", "lr", "train_loss", "seconds", *tests]
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["test_loss/all"] != "" for row in rows] == [False, True, True]  # every second, and the last


def test_record_and_trajectory(tmp_path):
    spec = tiny(snapshot_every=2, optimizer="sam")
    train(spec, tmp_path)
    record = json.loads((tmp_path / RECORD).read_text())
    num_batches = -(-sum(load_dataset("digits-lt").train_counts) // spec.batch_size)
    assert record["finished"] is True
    assert TrainSpec.from_dict(record["spec"]) == spec
    assert record["timings"]["num_forwards"] == record["timings"]["num_backwards"] == 2 * 3 * num_batches
    assert record["timings"]["images_per_second"] > 0
    assert record["environment"]["device"] == "cpu"
    kept = [f"epoch-000{epoch}.safetensors" for epoch in (1, 2, 3)]
    assert [read_checkpoint(tmp_path / name).spec["epoch"] for name in kept] == [1, 2, 3]
    assert (tmp_path / kept[-1]).read_bytes() == (tmp_path / CHECKPOINT).read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == [CHECKPOINT, *kept, HISTORY, RECORD]


def test_resuming_a_finished_run_does_nothing_and_says_so(tmp_path, caplog):
    path = train(tiny(), tmp_path)
    before, calls = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}, []
    with caplog.at_level(logging.INFO, logger="landscape"):
        assert train(tiny(), tmp_path, resume=True, progress=lambda *call: calls.append(call)) == path
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before
    assert "already finished" in caplog.text
    assert [(done, total) for done, total, _ in calls] == [(3, 3)]
    assert "already finished" in calls[0][2]


def test_resume_without_a_run_starts_one(tmp_path):
    assert train(tiny(epochs=1), tmp_path / "new", resume=True).exists()


@pytest.mark.parametrize("is_finished", [True, False])
def test_another_spec_is_not_resumed(tmp_path, is_finished):
    if is_finished:
        train(tiny(), tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt):
            train(tiny(), tmp_path, progress=stop_after(1))
    with pytest.raises(LandscapeError, match=r"started with lr 0\.05 \(asked for 0\.1\), seed 0 \(asked for 7\)"):
        train(tiny(lr=0.1, seed=7), tmp_path, resume=True)


def test_nothing_is_overwritten_unasked(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), tmp_path, progress=stop_after(1))
    with pytest.raises(LandscapeError, match="holds an unfinished run"):
        train(tiny(), tmp_path)
    train(tiny(), tmp_path, resume=True)
    with pytest.raises(LandscapeError, match="holds a finished run"):
        train(tiny(), tmp_path)


def test_what_was_computed_stays_when_something_fails(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), tmp_path, progress=stop_after(2))
    assert len(read_history(tmp_path)) == 2
    assert json.loads((tmp_path / RECORD).read_text())["finished"] is False


def test_damaged_state_is_named(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), tmp_path, progress=stop_after(1))
    whole = (tmp_path / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LandscapeError, match=r"state\.pt is damaged"):
        train(tiny(), tmp_path, resume=True)


def test_divergence_names_epoch_rate_and_optimizer(tmp_path):
    spec = tiny(lr=1e30, schedule="constant", optimizer="sam")
    with pytest.raises(LandscapeError, match=r"diverged in epoch 1 of 3.*optimizer sam, learning rate 1e\+30"):
        train(spec, tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()


def test_unwritable_folder_and_missing_device(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LandscapeError, match=r"cannot write to the output folder .*file/run"):
        train(tiny(), tmp_path / "file" / "run")
    with pytest.raises(LandscapeError, match="cannot compute on device 'quantum'"):
        train(tiny(), tmp_path, device="quantum")


def test_objective_averages_like_weighted_cross_entropy():
    counts, generator = [50, 20, 5], torch.Generator().manual_seed(0)
    objective = Objective(build_loss("ce", counts), Reweighting("drw", counts, start_epoch=2))
    logits = torch.randn(16, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (16,), generator=generator)
    weights = objective.reweighting.class_weights
    plain, weighted = (functional.cross_entropy(logits, labels, weight=w) for w in (None, weights))
    for epoch, expected in ((0, plain), (1, plain), (2, weighted)):
        objective.epoch = epoch
        assert torch.isclose(objective(logits, labels).mean(), expected, rtol=1e-12)
    assert abs(plain - weighted) > 1e-3
    focal = Objective(build_loss("focal", counts, weights_inside=True), objective.reweighting)
    for epoch, is_weighted in ((1, False), (2, True)):  # by the loss itself, and only once
        focal.epoch = epoch
        assert torch.equal(focal(logits, labels), focal.loss(logits, labels, is_weighted=is_weighted))


def test_drw_changes_nothing_before_its_epoch(tmp_path):
    plain, drw = (tiny(epochs=5, snapshot_every=1, reweight=kind) for kind in ("none", "drw"))
    train(plain, tmp_path / "plain")
    train(drw, tmp_path / "drw")
    for epoch, is_same in ((3, True), (4, True), (5, False)):  # 0.8 of 5 epochs
        files = (tmp_path / run / f"epoch-{epoch:04d}.safetensors" for run in ("plain", "drw"))
        a, b = (read_checkpoint(file).state_dict for file in files)
        assert all(torch.equal(a[name], b[name]) for name in a) is is_same


# ---- snapshots and stages -----------------------------------------------------------------------------------------


def test_snapshots_are_the_first_every_nth_and_the_last_epoch():
    spec = tiny(epochs=11, snapshot_every=4)
    assert [epoch for epoch in range(1, 12) if spec.is_snapshot(epoch)] == [1, 4, 8, 11]
    assert not any(tiny(epochs=11).is_snapshot(epoch) for epoch in range(1, 12))


def test_a_resumed_run_leaves_the_snapshots_of_an_uninterrupted_one(tmp_path):
    spec = tiny(snapshot_every=2)
    train(spec, tmp_path / "whole")
    killed_and_resumed(spec, tmp_path / "killed", num_epochs=2)
    for path in (tmp_path / "whole").glob("epoch-*.safetensors"):
        assert (tmp_path / "killed" / path.name).read_bytes() == path.read_bytes()


def test_stages_are_where_the_rule_changes(tmp_path):
    spec = tiny(epochs=10, reweight="drw", schedule="multistep", optimizer="ssesam", optimizer_options={"gamma": 0.3})
    record = {"epochs": 10, "reweight": "drw", "drw_epoch": spec.drw_epoch, "schedule": "multistep"}
    record |= {"optimizer": "ssesam", "optimizer_options": {"gamma": 0.3}}
    rates = [learning_rate(spec.schedule, epoch, num_epochs=10, lr=1.0) for epoch in range(10)]
    drops = [epoch for epoch in range(1, 10) if rates[epoch] < 0.5 * rates[epoch - 1]]
    stages = training_stages(record)
    assert drops == [8, 9]
    assert stages == (
        (3, "SSE-SAM leaves the head"),
        (8, "deferred re-weighting, learning rate drops"),
        (9, "learning rate drops"),
    )
    assert training_stages({}) == training_stages({"epochs": 10, "schedule": "cosine"}) == ()
    assert training_stages(record | {"optimizer_options": {"gamma": 1.0}})[0].epoch == 8
