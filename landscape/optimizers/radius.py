r"""How the radius rho of a method changes during training; the rules of the SAM family share it.

A rule takes part by having the options of :class:`Scheduled`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Literal, Protocol

from landscape.errors import LandscapeError
from landscape.optimizers.terms import Rule, check_choice, check_option

Schedule = Literal["constant", "step", "linear", "linear-released"]
SCHEDULES = ("constant", "step", "linear", "linear-released")


class Scheduled(Rule, Protocol):
    """A rule whose radius may follow the epoch."""

    @property
    def rho(self) -> float:
        """The radius of a constant schedule."""

    @property
    def schedule(self) -> Schedule:
        """A name in ``SCHEDULES``."""

    @property
    def rho_steps(self) -> tuple[float, ...]:
        """The radii of ``step``, one more than breakpoints."""

    @property
    def rho_epochs(self) -> tuple[float, ...]:
        """The breakpoints of ``step``."""

    @property
    def rho_range(self) -> tuple[float, ...]:
        """First and last radius of ``linear``."""


def check_schedule(rule: Scheduled) -> None:
    """Check the options of a schedule; lists and texts such as "0.1,0.2" (from a command line) become tuples."""
    check_option(rule, "rho", rule.rho)
    check_choice(rule, "schedule", rule.schedule, SCHEDULES)
    for option in ("rho_steps", "rho_epochs", "rho_range"):
        object.__setattr__(rule, option, _numbers(rule, option, getattr(rule, option)))
    if len(rule.rho_steps) != len(rule.rho_epochs) + 1:
        raise LandscapeError(
            f"{rule.name}: rho_steps must hold one radius more than rho_epochs holds breakpoints, "
            f"got {len(rule.rho_steps)} and {len(rule.rho_epochs)}"
        )
    if len(rule.rho_range) != 2:
        raise LandscapeError(f"{rule.name}: rho_range must be the first and the last radius, got {rule.rho_range}")


def schedule_needs(rule: Scheduled) -> frozenset[str]:
    """Return what the schedule needs to know: nothing, or the epoch."""
    return frozenset() if rule.schedule == "constant" else frozenset({"num_epochs"})


def radius_at(rule: Scheduled, epoch: int, num_epochs: int | None) -> float:
    r"""Return the radius of an epoch.

    ``constant`` is rho. ``step`` is the first of ``rho_steps`` whose breakpoint is not passed: with epochs counted from 1,

    .. math:: \rho(e) = \rho_i \ \text{with the least } i \text{ such that } e \le b_i, \text{ the last beyond all } b_i

    where a breakpoint below 1 stands for that share of the epochs. ``linear`` goes from the first to the last radius of
    ``rho_range``,

    .. math:: \rho(e) = \rho_a + (\rho_b - \rho_a) \frac{e - 1}{E - 1}

    and ``linear-released`` rounds that to float16.

    Parameters
    ----------
    rule
        The rule, with the options above.
    epoch
        Counted from 0.
    num_epochs
        Length of the training E; may be None for ``constant``.

    Notes
    -----
    Source: Rangwani et al. (Saddle-LongTail, NeurIPS 2022), released code. Published there: CIFAR 0.05, 0.1, 0.5, 0.6 with
    breakpoints 5, 160, 180 of 200 epochs (the defaults of ``sam``; present, but its runs use ``constant``); ImageNet-LT
    0.05, 0.1, 0.5, 0.5 with 5, 60, 75 of 90; iNaturalist 0.05, 0.1, 0.1, 0.2 with the same; linear from 0.05 to 0.8.

    Examples
    --------
    >>> from landscape.optimizers import SAM
    >>> rule = SAM(schedule="step", rho_steps=(0.05, 0.1, 0.5, 0.5), rho_epochs=(5, 60, 75))
    >>> [radius_at(rule, epoch, 90) for epoch in (4, 5, 59, 60)]
    [0.05, 0.1, 0.1, 0.5]
    """
    if rule.schedule == "constant":
        return rule.rho
    assert num_epochs is not None
    if rule.schedule == "step":
        for radius, breakpoint in zip(rule.rho_steps, rule.rho_epochs):
            last = breakpoint if breakpoint >= 1 else round(breakpoint * num_epochs, 9)  # 0.7 * 10 is not quite 7
            if epoch + 1 <= last:
                return radius
        return rule.rho_steps[-1]
    first, last = rule.rho_range
    radius = first + (last - first) * epoch / max(num_epochs - 1, 1)
    # Through the two bytes of a half: no tensor is made, so nothing can wait for a device.
    return float(struct.unpack("e", struct.pack("e", radius))[0]) if rule.schedule == "linear-released" else radius


def _numbers(rule: Rule, option: str, value: object) -> tuple[float, ...]:
    parts: Sequence[object]
    if isinstance(value, str):
        parts = value.split(",")
    else:
        parts = value if isinstance(value, list | tuple) else [value]
    try:
        numbers = tuple(float(part) for part in parts)  # type: ignore[arg-type]  # what float refuses is caught
    except (TypeError, ValueError):
        numbers = (math.nan,)
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise LandscapeError(f"{rule.name}: {option} must be finite numbers >= 0 such as 0.1,0.2, got {value!r}")
    return numbers
