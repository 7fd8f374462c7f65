"""What a run says about itself: the record in its checkpoint and in ``run.json``."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from landscape.results import versions
from landscape.training import folder as files
from landscape.training.setup import Run


def _accuracy(run: Run) -> dict[str, float]:
    """Return the test accuracy per lane after the last epoch; empty if it was not evaluated."""
    if not run.history:
        return {}
    columns = {name.partition("/"): value for name, value in run.history[-1].items()}
    lanes = {lane: value for (kind, _, lane), value in columns.items() if kind == "test_accuracy"}
    return {lane: value for lane, value in lanes.items() if not math.isnan(value)}  # an empty group; JSON has no NaN


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
        "trainable": spec.trainable,
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
        "schedule": spec.schedule,
        "batch_size": spec.batch_size,
        "bn_statistics": spec.bn_statistics,
        "epochs": spec.epochs,
        "epoch": len(run.history),
        "seed": spec.seed,
        "versions": versions(),
        "accuracy": _accuracy(run),
    }


def run_record(run: Run, *, is_finished: bool) -> dict[str, Any]:
    """Return what ``run.json`` holds: specification, checkpoint record, environment and timings."""
    seconds = [row["seconds"] for row in run.history]
    return {
        "finished": is_finished,
        "spec": run.spec.to_dict(),
        "checkpoint": checkpoint_spec(run),
        "environment": files.describe_environment(run.device),
        "timings": {
            **run.resources.timings(seconds, run.device),
            "num_processes": run.processes.size,
            "num_forwards": run.optimizer.num_forwards,
            "num_backwards": run.optimizer.num_backwards,
        },
    }
