"""What the values of options must be, whichever command they belong to."""

from __future__ import annotations

import math
from collections.abc import Callable

from landscape.errors import LARGEST_SEED, LandscapeError, require_whole, unknown_name

DEVICES = ("auto", "cpu", "cuda")


def known_device(name: str) -> str:
    """Return the name of a device that exists somewhere; whether it exists here is found out when it is used."""
    if name.partition(":")[0] not in DEVICES:
        raise unknown_name("device", name, DEVICES)
    return name


def finite_ratio(value: float | None) -> float | None:
    """Return a finite imbalance ratio."""
    if value is not None and not math.isfinite(value):
        raise LandscapeError(f"--imbalance-ratio: expected a finite number, at least 1, got {value}")
    return value


def positive_rate(value: float | None) -> float | None:
    """Return a learning rate that moves something."""
    if value is not None and not 0 < value < math.inf:
        raise LandscapeError(f"--lr: expected a positive number, got {value:g}")
    return value


def seed(value: int | None) -> int | None:
    """Return a root of random streams."""
    if value is not None:
        require_whole("--seed", value, 0, LARGEST_SEED)
    return value


def at_least_one(flag: str) -> Callable[[int | None], int | None]:
    """Return what checks an option that is left out rather than set to 0."""

    def check(value: int | None) -> int | None:
        if value is not None:
            require_whole(flag, value, 1)
        return value

    return check
