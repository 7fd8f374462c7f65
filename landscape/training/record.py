"""What a run says about itself: the record in its checkpoint and in ``run.json``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from landscape.results import versions
from landscape.training import folder as files
from landscape.training.setup import Run

# What a record keeps of the run whose weights it started from.
KEPT = (
    "stage", "epochs_before", "epoch", "epochs", "loss", "loss_options", "reweight", "drw_epoch", "method",
    "method_options", "mixup", "sampler", "optimizer", "optimizer_options", "schedule", "schedule_options", "batch_size",
    "base_options", "seed", "accuracy",
)  # fmt: skip


def _accuracy(row: Mapping[str, Any] | None, kind: str = "test_accuracy") -> dict[str, float]:
    """Return the test accuracy per lane in a row of the history; empty if it was not evaluated."""
    columns = {name.partition("/"): value for name, value in (row or {}).items()}
    lanes = {lane: value for (own, _, lane), value in columns.items() if own == kind}
    return {lane: value for lane, value in lanes.items() if not math.isnan(value)}  # an empty group; JSON has no NaN


def best_row(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the row of the epoch with the best accuracy on the test images, the first of equals; None if there is none."""
    evaluated = [row for row in history if "test_accuracy/all" in row]
    return max(evaluated, key=lambda row: row["test_accuracy/all"], default=None)


def reported_accuracy(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the test accuracies of the last epoch and of the best one, each with its epoch and how it was chosen.

    LDAM, Saddle-LongTail, VS, CC-SAM, ImbSAM, SSE-SAM and GNM report the best epoch on the test images, which is a
    selection on the test set: its accuracy is biased upwards.
    """
    rows = {"last_epoch": (history[-1] if history else None, "none"), "best_epoch": (best_row(history), "test set")}
    reported: dict[str, Any] = {}
    for name, (row, selection) in rows.items():
        if row is None or not _accuracy(row):
            continue
        reported[name] = {"epoch": row["epoch"], "selected_on": selection, "test_accuracy": _accuracy(row)}
        if flipped := _accuracy(row, "test_flip_accuracy"):
            reported[name]["test_flip_accuracy"] = flipped
    return reported


def checkpoint_spec(run: Run) -> dict[str, Any]:
    """Return what the checkpoint says about itself; nothing in it depends on when or how fast the run was."""
    spec, dataset = run.spec, run.dataset
    return {
        "model": spec.model,
        "model_options": spec.model_options,
        "head": spec.resolved_head,
        "num_classes": dataset.num_classes,
        "class_names": list(dataset.class_names),
        "in_channels": dataset.train.images.shape[1],
        "image_size": dataset.image_size,
        "loss": spec.loss,
        "loss_options": spec.loss_options,
        "class_counts": list(dataset.train_counts),
        "reweight": spec.reweight,
        "reweight_beta": spec.reweight_beta,
        "drw_epoch": spec.drw_epoch,
        "data": dataset.recipe,
        "groups": {"rule": dataset.groups.rule, "members": {k: list(v) for k, v in dataset.groups.members.items()}},
        "normalization": {"mean": list(dataset.mean), "std": list(dataset.std)},
        "start": spec.start,
        "stage": spec.stage,
        "epochs_before": _epochs_before(run),
        "started_from": {name: value for name, value in (run.started_from or {}).items() if name in KEPT} or None,
        "trainable": spec.trainable,
        "tau": spec.tau,
        "method": spec.method,
        "method_options": spec.method_options,
        "mixup": spec.mixup,
        "sampler": spec.sampler,
        "sampler_options": spec.sampler_options,
        "augmentation": dataset.augmentation if spec.augment else "none",
        "precision": spec.precision,
        "optimizer": spec.optimizer,
        "optimizer_options": dataclasses.asdict(run.optimizer.rule),  # type: ignore[call-overload]  # with its defaults
        "base": spec.base,
        "base_options": spec.base_options,
        "head_lr_factor": spec.head_lr_factor,
        "frozen_batchnorm": spec.frozen_batchnorm,
        "schedule": spec.schedule,
        "schedule_options": spec.schedule_options,
        "batch_size": spec.batch_size,
        "bn_statistics": spec.bn_statistics,
        "epochs": spec.epochs,
        "epoch": run.epochs_done,
        "seed": spec.seed,
        "versions": versions(),
        "accuracy": _accuracy(run.history[-1] if run.history else None),
    }


def _epochs_before(run: Run) -> int:
    """Return the epochs of the stages before this one; other starts are pre-training, which counts for none."""
    if run.spec.stage is None or run.started_from is None:
        return 0
    return int(run.started_from.get("epochs_before") or 0) + int(run.started_from.get("epoch") or 0)


def run_record(run: Run, *, is_finished: bool) -> dict[str, Any]:
    """Return what ``run.json`` holds: specification, checkpoint record, environment and timings."""
    seconds = [row["seconds"] for row in run.history if row["epoch"] > 0]
    return {
        "finished": is_finished,
        "spec": run.spec.to_dict(),
        "checkpoint": checkpoint_spec(run),
        "accuracy": reported_accuracy(run.history),
        "environment": files.describe_environment(run.device),
        "timings": {
            **run.resources.timings(seconds, run.device),
            "num_processes": run.processes.size,
            "num_forwards": run.optimizer.num_forwards,
            "num_backwards": run.optimizer.num_backwards,
        },
    }
