"""Trainings in two stages: the second starts from the weights of the first, usually with the backbone held fixed.

A second stage is a training run like any other. It differs from the first by fields of the specification alone, so any
loss, sampler and optimizer goes with either stage. The first stage is a complete run in the folder ``stage-1``.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import LandscapeError, unknown_name
from landscape.files import one_line, require_file
from landscape.training import folder as files
from landscape.training.spec import OPTIONS, TrainSpec
from landscape.training.stages import NO_TRAINING

if TYPE_CHECKING:
    import pandas as pd

FIRST = "stage-1"
STARTS = {"last": f"{FIRST}/{files.CHECKPOINT}", "best": f"{FIRST}/{files.BEST}"}
# What a stage has for itself; everything else, the task and the machine, a second stage takes from the first.
OWN = (
    "start", "trainable", "reinitialise_head", "frozen_batchnorm", "tau", "tau_bias", "scale_head", "head_lr_factor",
    "reweight", "drw_start", "method", "method_options", "mixup", "second_stage", "second_options", "optimizer",
    "optimizer_options", "epochs", "schedule", "schedule_options", "sampler", "sampler_options", "stage",
)  # fmt: skip
FIXED = ("second_stage", "second_options", "stage")  # no option of a second stage


@dataclass(frozen=True)
class SecondStage:
    """What a second stage changes.

    Attributes
    ----------
    source
        Paper and released code, what of it is not public, and what differs here.
    changes
        Fields of :class:`TrainSpec` that differ from the defaults (``OWN``) or from the first stage (all others).
    lr_factor
        Learning rate relative to the first stage's.
    first
        Fields of the published first stage that differ from the data set's recipe; see :func:`two_stages`.
    by_dataset
        Further changes by data set, or by data set and imbalance ratio (``cifar10-lt/50``).
    """

    source: str
    changes: dict[str, Any] = field(default_factory=dict)
    lr_factor: float = 1.0
    first: dict[str, Any] = field(default_factory=dict)
    by_dataset: dict[str, dict[str, Any]] = field(default_factory=dict)


def _mislas(head: float, tail: float, lr_factor: float, *, frozen_batchnorm: str = "update") -> dict[str, Any]:
    """Return a released setting of MiSLAS: smoothing of head and tail, learning rate of the classifier, BatchNorm."""
    return {
        "loss_options": {"smooth_head": head, "smooth_tail": tail},
        "head_lr_factor": lr_factor,
        "frozen_batchnorm": frozen_batchnorm,
    }


CLASS_AWARE: dict[str, Any] = {"sampler": "class-aware", "sampler_options": {"num_samples_cls": 4}}

SECOND_STAGES: dict[str, SecondStage] = {
    "crt": SecondStage(
        source=(
            "Kang et al., Decoupling Representation and Classifier, ICLR 2020: classifier re-training. The release's cosine "
            "is one epoch ahead (schedule=cosine-shifted: its last epoch trains at the rate 0)"
        ),
        changes={"trainable": "head", "reinitialise_head": True, "epochs": 10, "schedule": "cosine", **CLASS_AWARE},
    ),
    "tau-norm": SecondStage(
        source=(
            "Kang et al., ICLR 2020: the classifier's weights over the power tau of their norms, without training. tau was "
            "chosen on a validation set among 0, 0.1, ..., 2; the default 1 is ours"
        ),
        changes={"tau": 1.0, "epochs": 0},
    ),
    "lws": SecondStage(
        source="Kang et al., ICLR 2020: learnable weight scaling; 5 epochs are released for ImageNet-LT and iNaturalist 2018",
        changes={"trainable": "head-scale", "scale_head": True, "epochs": 5, "schedule": "cosine", **CLASS_AWARE},
    ),
    "mislas": SecondStage(
        source=(
            "Zhong et al., MiSLAS, CVPR 2021: label-aware smoothing on the classifier and a scale per class, BatchNorm "
            "shifted to the class-aware sampler (not on CIFAR-10-LT). Where nothing is released: the settings of ImageNet-LT"
        ),
        changes={
            "trainable": "head",
            "scale_head": True,
            "loss": "label-aware",
            "epochs": 10,
            "schedule": "cosine",
            **CLASS_AWARE,
            **_mislas(0.3, 0.0, 0.05),
        },
        first={"mixup": 1.0, "schedule": "multistep"},  # mixup 0.2 and a cosine beyond CIFAR
        by_dataset={
            "cifar10-lt": _mislas(0.3, 0.0, 0.5, frozen_batchnorm="frozen"),
            "cifar10-lt/50": _mislas(0.2, 0.0, 0.2, frozen_batchnorm="frozen"),
            "cifar10-lt/10": _mislas(0.1, 0.0, 0.2, frozen_batchnorm="frozen"),
            "cifar100-lt": _mislas(0.4, 0.1, 0.2),
            "cifar100-lt/50": _mislas(0.3, 0.0, 0.1),
            "cifar100-lt/10": _mislas(0.2, 0.0, 0.1),
            "imagenet-lt": _mislas(0.3, 0.0, 0.05),
            "inaturalist18": _mislas(0.3, 0.0, 0.05),
            "places-lt": _mislas(0.4, 0.1, 0.05),
        },
    ),
    "gcl": SecondStage(
        source=(
            "Li et al., Gaussian Clouded Logit Adjustment, CVPR 2022, released code for CIFAR: the classifier alone on a fixed "
            "backbone, from the best epoch on the test images (here: the last; start=best). An earlier release has "
            "lr 0.2 and head_lr_factor 0.2"
        ),
        changes={
            "trainable": "head",
            "frozen_batchnorm": "frozen",
            "loss": "gcl",
            "loss_options": {"scale": 20.0, "margin": 0.1, "noise_mul": 0.5, "gamma": 1.0},
            "mixup": 1.0,
            "epochs": 30,
            "schedule": "gcl-stage2",
            "head_lr_factor": 0.1,
            "sampler": "balanced",
        },
        first={"loss": "gcl", "mixup": 1.0, "schedule": "multistep", "batch_size": 64},
    ),
    "ccsam": SecondStage(
        source=(
            "Zhou et al., Class-Conditional SAM, CVPR 2023, released code for CIFAR: the classifier on adversarial features, "
            "at a tenth of the learning rate, from the best epoch on the test images (here: the last; start=best). "
            "Beyond CIFAR schedule=gcl-stage2. CIFAR-100-LT: method_options.up_limit=0.3"
        ),
        changes={
            "trainable": "head",
            "method": "adversarial-features",
            "epochs": 30,
            "schedule": "constant",
            "sampler": "class-aware",
            "sampler_options": {"num_samples_cls": 1},
        },
        lr_factor=0.1,
        first={"optimizer": "ccsam", "mixup": 1.0, "schedule": "ccsam", "batch_size": 64},
        by_dataset={"cifar100-lt": {"method_options": {"up_limit": 0.3}}},
    ),
    "deferred": SecondStage(
        source=(
            "Ours: the last fifth of a training with deferred re-weighting (Cao et al., LDAM-DRW, NeurIPS 2019) as a stage of its "
            "own, so that either part can have an optimizer of its own. The momentum starts anew"
        ),
        changes={
            "trainable": "all",
            "reweight": "cb",
            "epochs": 40,
            "schedule": "steps",
            "schedule_options": {"milestones": [0, 100], "factor": 0.01},
        },
        # The first 160 of 200 epochs, before the first drop.
        first={"epochs": 160, "schedule": "steps", "schedule_options": {"milestones": [], "warmup": 5, "of": 160}},
    ),
}


def two_stages(name: str, **fields: Any) -> TrainSpec:
    """Return a training whose second stage is ``name`` and whose first stage is the one published with it.

    Parameters
    ----------
    name
        A name in ``SECOND_STAGES``.
    fields
        Of :class:`TrainSpec`; they override the published ones.

    Examples
    --------
    >>> spec = two_stages("ccsam", dataset="cifar10-lt", data_dir="data")
    >>> spec.optimizer, spec.schedule, split_stages(spec)[1].method
    ('ccsam', 'ccsam', 'adversarial-features')
    """
    return TrainSpec(**{**_entry(name).first, **fields, "second_stage": name})


def split_stages(spec: TrainSpec) -> tuple[TrainSpec, TrainSpec]:
    """Return the specifications of the two stages of a training with a second stage.

    The second has the first one's task and machine, the published changes, and the ``second_options`` of ``spec``. Dotted
    names set one option: ``optimizer_options.rho``. ``start`` is ``last`` (the default) or ``best``, which makes the first
    stage keep the weights of its best epoch on the test images.

    Raises
    ------
    LandscapeError
        If the second stage is unknown, an option of it is no field of a specification or not allowed there, or the second
        stage cannot have the classifier of the first.
    """
    entry = _entry(str(spec.second_stage))
    given = _nested(spec)
    start = given.pop("start", "last")
    if start not in STARTS:
        raise LandscapeError(f"second stage '{spec.second_stage}': expected start to be last or best, got {start!r}")
    keep_best = spec.keep_best or start == "best"
    first = dataclasses.replace(spec, second_stage=None, second_options={}, keep_best=keep_best)
    shared = {f.name: getattr(spec, f.name) for f in dataclasses.fields(TrainSpec) if f.name not in OWN}
    # The classifier keeps its kind, whatever the second stage's loss would prefer.
    shared |= {"lr": first.lr * entry.lr_factor, "head": first.resolved_head}
    ratio = None if spec.imbalance_ratio is None else f"{spec.dataset}/{spec.imbalance_ratio:g}"
    published = {**entry.changes, **entry.by_dataset.get(spec.dataset, {}), **entry.by_dataset.get(str(ratio), {})}
    fields = _combined(_combined(shared, published), given)
    second = TrainSpec(**{**fields, "start": STARTS[start], "stage": spec.second_stage})
    is_meant_for = dataclasses.replace(second, head="auto", scale_head=False, trainable="all", tau=None).resolved_head
    if second.loss != first.loss and (is_meant_for, second.resolved_head) == ("cosine", "linear"):
        raise LandscapeError(
            f"second stage '{spec.second_stage}': the loss {second.loss} is defined on cosines, but the first stage has a "
            f"linear head: train it with --loss {second.loss} or --head cosine"
        )
    return first, second


def first_folder(out: str | os.PathLike[str]) -> Path:
    """Return the folder of the first stage of a training in ``out``."""
    return Path(out) / FIRST


def read_history(out: str | os.PathLike[str]) -> pd.DataFrame:
    """Return the history of a training in ``out``, that of a first stage before it; epochs count through."""
    import pandas as pd

    path = require_file(Path(out) / files.HISTORY, "the history of a training")
    with one_line(f"{path} is not the history of a training, or is damaged"):
        history = pd.read_csv(path)
        if not {"epoch", "seconds"} <= set(history):
            raise ValueError("expected the columns 'epoch' and 'seconds'")
        earlier = first_folder(out) / files.HISTORY
        if not earlier.is_file():
            return history
        first = pd.read_csv(earlier)
        history["epoch"] = history["epoch"].where(history["epoch"] > 0, NO_TRAINING) + int(first["epoch"].max())
        return pd.concat([first, history], ignore_index=True)


def _entry(name: str) -> SecondStage:
    if name not in SECOND_STAGES:
        raise unknown_name("second stage", name, SECOND_STAGES)
    return SECOND_STAGES[name]


def _nested(spec: TrainSpec) -> dict[str, Any]:
    """Return the second stage's options, ``{"optimizer_options.rho": 0.1}`` as ``{"optimizer_options": {"rho": 0.1}}``."""
    names = [f.name for f in dataclasses.fields(TrainSpec) if f.name not in FIXED]
    nested: dict[str, Any] = {}
    for dotted, value in spec.second_options.items():
        name, _, option = dotted.partition(".")
        if name in FIXED:
            raise LandscapeError(
                f"second stage '{spec.second_stage}': '{name}' cannot be set, there are two stages only"
            )
        if name not in names:
            raise unknown_name("option of the second stage", name, names)
        if option and name not in OPTIONS:
            raise LandscapeError(f"second stage '{spec.second_stage}': '{name}' has no options, got '{dotted}'")
        nested[name] = {**nested.get(name, {}), option: value} if option else value
    return nested


def _combined(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with the changes; options are added to those there are, unless what they belong to changes."""
    combined = {**fields, **changes}
    for options in OPTIONS:
        owner = options.removesuffix("_options")
        is_same = owner not in changes or changes[owner] == fields.get(owner)
        if options in fields or options in changes:
            combined[options] = {**(fields.get(options, {}) if is_same else {}), **changes.get(options, {})}
    return combined
