"""What a recipe is, and what was published for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Published:
    """One published row: top-1 test accuracies in percent; None where a number was not published.

    Attributes
    ----------
    source
        Where it was read. The papers' own numbers are of the best epoch on the test set, unless the source says otherwise.
    all, head, medium, tail
        Accuracy over all test images, and per group in the source's own grouping.
    imbalance_ratio
        Of the training set; None for data sets that have one ratio only.
    """

    source: str
    all: float | None = None
    head: float | None = None
    medium: float | None = None
    tail: float | None = None
    imbalance_ratio: float | None = None


@dataclass(frozen=True)
class Recipe:
    """One named setting.

    Attributes
    ----------
    title
        Paper, venue, year.
    settings_from
        Where the settings were read: released scripts, a paper, a third party's re-run.
    changes
        Fields of :class:`landscape.training.TrainSpec` that differ from the data set's defaults.
    published
        Rows to compare with.
    differences
        What is known to differ from what was published, or could not be verified; one sentence each.
    """

    title: str
    settings_from: str
    changes: Mapping[str, Any]
    published: tuple[Published, ...] = ()
    differences: tuple[str, ...] = field(default=())


def at_ratios(source: str, **accuracies: float) -> tuple[Published, ...]:
    """Return one row per imbalance ratio, from keywords such as ``r100=70.7``.

    Examples
    --------
    >>> [(row.imbalance_ratio, row.all) for row in at_ratios("slide", r200=65.68, r100=70.70)]
    [(200.0, 65.68), (100.0, 70.7)]
    """
    return tuple(Published(source, all=value, imbalance_ratio=float(key[1:])) for key, value in accuracies.items())


def by_groups(source: str, values: tuple[float, float, float, float], ratio: float | None = None) -> Published:
    """Return a row from (head, medium, tail, all)."""
    head, medium, tail, everything = values
    return Published(source, all=everything, head=head, medium=medium, tail=tail, imbalance_ratio=ratio)
