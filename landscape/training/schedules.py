"""Published learning-rate schedules, scaled to any number of epochs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from landscape.errors import LandscapeError, unknown_name

# Published for 200 epochs: 5 of warm-up, decays after 160 and 180. All are stated as fractions of 200.
REFERENCE_EPOCHS = 200
WARMUP_EPOCHS = 5
MILESTONES = (160, 180)


def _stepped(epoch: int, num_epochs: int, after_first: float, after_second: float) -> float:
    """Return the factor of a warm-up with two steps; whole numbers only, so that no rounding moves a milestone."""
    warmed = (epoch + 1) * REFERENCE_EPOCHS  # the released scripts count epochs from 1
    if warmed <= WARMUP_EPOCHS * num_epochs:
        return warmed / (WARMUP_EPOCHS * num_epochs)
    # An epoch decays if it *starts* at a milestone or later, so that the single epoch of a trial runs at the full rate.
    started = epoch * REFERENCE_EPOCHS
    if started >= MILESTONES[1] * num_epochs:
        return after_second
    return after_first if started >= MILESTONES[0] * num_epochs else 1.0


def _ldam(epoch: int, num_epochs: int) -> float:
    """LDAM-DRW and Saddle-LongTail, ``adjust_learning_rate``: the second factor is 1e-4, not 1e-2."""
    return _stepped(epoch, num_epochs, 0.01, 0.0001)


def _multistep(epoch: int, num_epochs: int) -> float:
    """MiSLAS and GCL, first stage."""
    return _stepped(epoch, num_epochs, 0.1, 0.01)


def _ccsam(epoch: int, num_epochs: int) -> float:
    """CC-SAM, first stage: its scheduler is stepped before the epoch, so everything happens one epoch of 200 early."""
    warmed = (epoch + 1) * REFERENCE_EPOCHS
    if warmed < WARMUP_EPOCHS * num_epochs:
        share = warmed / (WARMUP_EPOCHS * num_epochs)
        return (1.0 - share) / 3.0 + share
    started = epoch * REFERENCE_EPOCHS + num_epochs
    return 0.1 ** sum(started >= milestone * num_epochs for milestone in MILESTONES)


def _steps(
    epoch: int,
    num_epochs: int,
    *,
    milestones: Sequence[float] = MILESTONES,
    factor: float = 0.1,
    warmup: float = 0,
    of: float = REFERENCE_EPOCHS,
) -> float:
    """Times ``factor`` after each milestone, after a linear warm-up; milestones and warm-up are epochs out of ``of``."""
    warmed = (epoch + 1) * of
    if warmed <= warmup * num_epochs:
        return warmed / (warmup * num_epochs)
    return float(factor) ** sum(epoch * of >= milestone * num_epochs for milestone in milestones)


def _cosine(epoch: int, num_epochs: int) -> float:
    """From 1 towards 0, no warm-up; the first epoch has factor 1."""
    return 0.5 * (1.0 + math.cos(math.pi * epoch / num_epochs))


def _cosine_shifted(epoch: int, num_epochs: int) -> float:
    """cRT, LWS, ImbSAM and SSE-SAM as released, stepped before the epoch: the last one has the rate 0."""
    return _cosine(epoch + 1, num_epochs)


def _cosine_gnm(epoch: int, num_epochs: int) -> float:
    """GNM-PT as released, stepped after the epoch with the old index: the first two epochs have factor 1."""
    return _cosine(max(epoch - 1, 0), num_epochs)


def _cosine_warmup(epoch: int, num_epochs: int, *, warmup: float = 10, of: float = 100) -> float:
    """Linear warm-up over ``warmup`` epochs out of ``of``, then a cosine over the rest."""
    warmed = (epoch + 1) * of
    if warmed <= warmup * num_epochs:
        return warmed / (warmup * num_epochs)
    length = warmup * num_epochs / of
    return 0.5 * (1.0 + math.cos(math.pi * max(epoch - length, 0.0) / (num_epochs - length)))


def _gcl_stage2(epoch: int, num_epochs: int) -> float:
    """GCL, second stage (CC-SAM's beyond CIFAR): 0.1 (1 + cos), a fifth of a cosine."""
    return 0.1 * (1.0 + math.cos(math.pi * epoch / num_epochs))


def _constant(epoch: int, num_epochs: int) -> float:
    return 1.0


SCHEDULES: dict[str, Callable[..., float]] = {
    "ldam": _ldam,
    "multistep": _multistep,
    "ccsam": _ccsam,
    "steps": _steps,
    "cosine": _cosine,
    "cosine-shifted": _cosine_shifted,
    "cosine-gnm": _cosine_gnm,
    "cosine-warmup": _cosine_warmup,
    "gcl-stage2": _gcl_stage2,
    "constant": _constant,
}
STEPPED: frozenset[str] = frozenset({"ldam", "multistep", "ccsam", "steps"})  # constant between drops


def learning_rate(schedule: str, epoch: int, *, num_epochs: int, lr: float, **options: Any) -> float:
    """Return the learning rate of one epoch.

    With e the epoch and E the number of epochs, factors of lr:

    - ``ldam`` warms up linearly over the first 5/200 of the epochs, then multiplies by 0.01 after 160/200 and by 0.0001
      after 180/200 (LDAM-DRW, Cao et al. 2019, released code; Saddle-LongTail, VS); ``multistep`` uses 0.1 and 0.01
      (MiSLAS, GCL); ``ccsam`` warms up from 1/3 and is one epoch of 200 ahead of it (CC-SAM, released code);
    - ``steps``: times ``factor`` after each of the ``milestones``, epochs out of ``of``, after a linear ``warmup``: for
      example ``milestones=(320, 360), of=400`` (NCL), ``milestones=(100, 120), of=150`` (LPF-SGD);
    - ``cosine`` is (1 + cos(pi e / E)) / 2; ``cosine-shifted`` the same at e + 1 (cRT, LWS, ImbSAM, SSE-SAM as released:
      the last epoch trains at 0); ``cosine-gnm`` at e - 1, 1 in the first epoch (GNM-PT as released);
      ``cosine-warmup`` after a linear ``warmup`` of so many epochs out of ``of``, 10 of 100 as in VPT, whose release
      counts the warm-up from 0 and trains its first epoch at the rate 0;
    - ``gcl-stage2`` is 0.1 (1 + cos(pi e / E)) (GCL, second stage, released code); ``constant`` is 1.

    Parameters
    ----------
    schedule
        A name in ``SCHEDULES``.
    epoch
        Counted from 0.
    num_epochs
        Length of the whole training, E.
    lr
        The base learning rate.
    options
        Of ``steps`` and ``cosine-warmup``.

    Returns
    -------
    float
        The learning rate of this epoch.

    Examples
    --------
    >>> [learning_rate("ldam", epoch, num_epochs=200, lr=0.1) for epoch in (4, 159, 160, 180)]
    [0.1, 0.1, 0.001, 1e-05]
    """
    return lr * SCHEDULES[schedule](epoch, num_epochs, **options)


def check_schedule(name: str, options: Mapping[str, Any]) -> None:
    """Raise LandscapeError for an unknown schedule, an option that it does not have, or a value out of range."""
    if name not in SCHEDULES:
        raise unknown_name("schedule", name, SCHEDULES)
    known = [
        option for option in inspect.signature(SCHEDULES[name]).parameters if option not in ("epoch", "num_epochs")
    ]
    for option, value in options.items():
        if option not in known:
            raise unknown_name(f"option of schedule '{name}'", option, known or ["(none)"])
        numbers = value if option == "milestones" and isinstance(value, list | tuple) else [value]
        if option == "milestones" and not isinstance(value, list | tuple):
            raise LandscapeError(f"schedule '{name}': expected milestones such as 160,180, got {value!r}")
        for number in numbers:
            is_number = isinstance(number, int | float) and not isinstance(number, bool)
            if not is_number or not math.isfinite(number) or number < 0 or (option == "of" and number == 0):
                raise LandscapeError(f"schedule '{name}': expected {option} to be finite and >= 0, got {number!r}")
    if options.get("warmup", 0) >= options.get("of", 100 if name == "cosine-warmup" else REFERENCE_EPOCHS):
        raise LandscapeError(f"schedule '{name}': the warm-up of {options['warmup']} epochs leaves none to train")
