"""Where a training changes its rule: deferred re-weighting, the optimizer's stage switch, steps of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from landscape.training.schedules import MILESTONES, REFERENCE_EPOCHS

STEPPED = ("ldam", "multistep")


class Stage(NamedTuple):
    """A change of the training rule: the epochs done when it happens, and what happens."""

    epoch: int
    text: str


def training_stages(record: Mapping[str, Any]) -> tuple[Stage, ...]:
    """Return the changes of rule within a training, from a checkpoint's record, in the order of time.

    Deferred re-weighting (DRW) at its first epoch, the switch of SSE-SAM at ceil(gamma epochs), and the milestones of the
    schedules that have some, at 160/200 and 180/200 of the epochs. Changes before the first and after the last epoch
    are none. An empty tuple where the record says nothing.

    Examples
    --------
    >>> training_stages({"epochs": 10, "reweight": "drw", "drw_epoch": 8, "schedule": "cosine"})
    (Stage(epoch=8, text='deferred re-weighting'),)
    """
    epochs = record.get("epochs")
    if not isinstance(epochs, int):
        return ()
    found: dict[int, list[str]] = {}

    def add(epoch: float, text: str) -> None:
        if 0 < epoch < epochs:
            found.setdefault(math.ceil(epoch), []).append(text)

    if record.get("reweight") == "drw" and isinstance(record.get("drw_epoch"), int):
        add(record["drw_epoch"], "deferred re-weighting")
    options = record.get("optimizer_options")
    gamma = options.get("gamma") if isinstance(options, Mapping) else None
    if record.get("optimizer") == "ssesam" and isinstance(gamma, int | float):
        add(round(gamma * epochs, 9), "SSE-SAM leaves the head")  # 0.7 * 10 is 7.000000000000001 or so
    if record.get("schedule") in STEPPED:
        for milestone in MILESTONES:
            add(milestone * epochs / REFERENCE_EPOCHS, "learning rate drops")
    return tuple(Stage(epoch, ", ".join(found[epoch])) for epoch in sorted(found))
