"""Where a training changes its rule: a second stage, re-weighting, the optimizer's switch, steps of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from landscape.training.schedules import SCHEDULES, STEPPED

# Where a stage without training stands: after the last epoch of the stage before it, and before any other.
NO_TRAINING = 0.5


class Stage(NamedTuple):
    """A change of the training rule: the epochs done when it happens, and what happens."""

    epoch: int
    text: str


def epochs_done(record: Mapping[str, Any]) -> float | None:
    """Return the epochs behind a checkpoint, from its record, those of a first stage included; None if it says nothing.

    A stage without training counts as half an epoch, so that its checkpoint follows that of the stage before.

    Examples
    --------
    >>> epochs_done({"epoch": 3}), epochs_done({"epoch": 3, "epochs_before": 200}), epochs_done({})
    (3, 203, None)
    """
    epoch, before = record.get("epoch"), record.get("epochs_before") or 0
    if isinstance(epoch, bool) or not isinstance(epoch, int | float) or not isinstance(before, int):
        return None
    return before + (NO_TRAINING if epoch == 0 and before else epoch)


def training_stages(record: Mapping[str, Any]) -> tuple[Stage, ...]:
    """Return the changes of rule within a training, from a checkpoint's record, in the order of time.

    Deferred re-weighting (DRW) at its first epoch, the switch of SSE-SAM at ceil(gamma epochs), and the drops of the
    schedules that are constant between them. Changes before the first and after the last epoch are none. A second stage
    begins after the epochs of the first, and the first one's changes come before. An empty tuple where the record says
    nothing.

    Examples
    --------
    >>> training_stages({"epochs": 10, "reweight": "drw", "drw_epoch": 8, "schedule": "cosine"})
    (Stage(epoch=8, text='deferred re-weighting'),)
    >>> training_stages({"epochs": 5, "stage": "crt", "epochs_before": 10, "started_from": {"epochs": 10}})
    (Stage(epoch=10, text='second stage, crt'),)
    """
    own = _changes(record)
    before = record.get("epochs_before")
    if not record.get("stage") or not isinstance(before, int):
        return own
    first = record.get("started_from")
    earlier = training_stages(first) if isinstance(first, Mapping) else ()
    later = (Stage(before + stage.epoch, stage.text) for stage in own)
    return (*earlier, Stage(before, f"second stage, {record['stage']}"), *later)


def _changes(record: Mapping[str, Any]) -> tuple[Stage, ...]:
    """Return the changes of rule within one stage."""
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
        schedule, given = SCHEDULES[str(record["schedule"])], record.get("schedule_options") or {}
        factors = [schedule(epoch, epochs, **given) for epoch in range(epochs)]
        for epoch in range(1, epochs):
            if factors[epoch] < factors[epoch - 1]:
                add(epoch, "learning rate drops")
    return tuple(Stage(epoch, ", ".join(found[epoch])) for epoch in sorted(found))
