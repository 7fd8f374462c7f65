"""Trainings in two stages: the second starts from the weights of the first, usually with the backbone held fixed.

A second stage is a training run like any other. It differs from the first by fields of the specification alone, so any
loss, sampler and optimizer goes with either stage. The first stage is a complete run in the folder ``stage-1``.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from landscape.errors import LandscapeError, unknown_name
from landscape.training.spec import TrainSpec

FIRST = "stage-1"
START = f"{FIRST}/checkpoint.safetensors"
# What a second stage takes from the first: the task and the machine; the rest has the defaults of a specification.
SHARED = (
    "dataset", "data_dir", "imbalance_ratio", "profile", "selection", "group_rule", "mean", "std", "train_list", "test_list",
    "relabel", "resize", "cache_dir", "download", "model",
    "model_options", "head", "loss", "loss_options", "base", "lr", "momentum", "weight_decay", "batch_size",
    "bn_statistics", "seed", "augment", "augmentation", "precision", "compile", "accumulate", "evaluate_every",
)  # fmt: skip


@dataclass(frozen=True)
class SecondStage:
    """What a second stage changes.

    Attributes
    ----------
    source
        Paper and released code.
    changes
        Fields of :class:`TrainSpec` that differ from those taken over from the first stage (``SHARED``).
    """

    source: str
    changes: dict[str, Any] = field(default_factory=dict)


SECOND_STAGES: dict[str, SecondStage] = {
    "crt": SecondStage(
        source="Kang et al., Decoupling Representation and Classifier, ICLR 2020: classifier re-training",
        changes={
            "trainable": "head",
            "reinitialise_head": True,
            "epochs": 10,
            "schedule": "cosine",
        },
    ),
}


def split_stages(spec: TrainSpec) -> tuple[TrainSpec, TrainSpec]:
    """Return the specifications of the two stages of a training with a second stage.

    Raises
    ------
    LandscapeError
        If the second stage is unknown, or an option of it is no field of a specification or not allowed there.
    """
    if spec.second_stage not in SECOND_STAGES:
        raise unknown_name("second stage", str(spec.second_stage), SECOND_STAGES)
    names = [entry.name for entry in dataclasses.fields(TrainSpec)]
    for name in spec.second_options:
        if name not in names:
            raise unknown_name("option of the second stage", name, names)
        if name in ("start", "second_stage", "second_options"):
            raise LandscapeError(
                f"second stage '{spec.second_stage}': '{name}' cannot be set, there are two stages only"
            )
    first = dataclasses.replace(spec, second_stage=None, second_options={})
    shared = {name: getattr(spec, name) for name in SHARED}
    changes = {**shared, **SECOND_STAGES[spec.second_stage].changes, **spec.second_options}
    return first, TrainSpec(**{**changes, "start": START})


def first_folder(out: str | os.PathLike[str]) -> Path:
    """Return the folder of the first stage of a training in ``out``."""
    return Path(out) / FIRST
