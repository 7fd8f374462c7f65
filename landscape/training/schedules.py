"""Published learning-rate schedules, scaled to any number of epochs."""

from __future__ import annotations

import math
from collections.abc import Callable

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


def _cosine(epoch: int, num_epochs: int) -> float:
    """From 1 towards 0, no warm-up (ImbSAM, SSE-SAM, GNM); the first epoch has factor 1."""
    return 0.5 * (1.0 + math.cos(math.pi * epoch / num_epochs))


def _constant(epoch: int, num_epochs: int) -> float:
    return 1.0


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "ldam": _ldam,
    "multistep": _multistep,
    "cosine": _cosine,
    "constant": _constant,
}


def learning_rate(schedule: str, epoch: int, *, num_epochs: int, lr: float) -> float:
    """Return the learning rate of one epoch.

    ``ldam`` warms up linearly over the first 5/200 of the epochs, then multiplies by 0.01 after 160/200 and by 0.0001
    after 180/200 (LDAM-DRW, Cao et al. 2019, released code); ``multistep`` uses 0.1 and 0.01 (MiSLAS, GCL);
    ``cosine`` is lr (1 + cos(pi e / E)) / 2; ``constant`` is lr.

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

    Returns
    -------
    float
        The learning rate of this epoch.

    Examples
    --------
    >>> [learning_rate("ldam", epoch, num_epochs=200, lr=0.1) for epoch in (4, 159, 160, 180)]
    [0.1, 0.1, 0.001, 1e-05]
    """
    return lr * SCHEDULES[schedule](epoch, num_epochs)
