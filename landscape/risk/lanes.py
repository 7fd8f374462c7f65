"""Lanes: named weightings of the classes. A class, a group, the whole data set and any mixture are all just rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from landscape.errors import LandscapeError, unknown_name
from landscape.risk.protocol import ClassRisk

GroupAverage = Literal["examples", "classes"]
LaneChoice = str | int | Sequence[str | int] | Mapping[str, Sequence[float]]
logger = logging.getLogger(__name__)

EVERYTHING = ("classes", "groups", "all")


@dataclass(frozen=True)
class Lanes:
    """L named rows of weights over C classes.

    Attributes
    ----------
    names, kinds, groups
        Per lane: its name; ``class``, ``group``, ``all`` or ``mixture``; the group that a class belongs to (else "").
    weights
        (L, C) float64 on the CPU: the lane's risk is ``sum_c weights[l, c] * L_c``.
    num_examples
        Examples that enter each lane.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    groups: tuple[str, ...]
    weights: Tensor
    num_examples: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)


def _split(choice: LaneChoice) -> list[str | int]:
    if isinstance(choice, str):
        parts = [part.strip() for part in choice.split(",")]
        if not all(parts):
            raise LandscapeError(
                f"lanes: expected names or numbers of classes and groups, none of them empty, got '{choice}'"
            )
        twice = next((part for part in parts if parts.count(part) > 1), None)
        if twice is not None:
            raise LandscapeError(f"lanes: '{twice}' is named twice in '{choice}': name it once")
        return list(parts)
    if isinstance(choice, int):
        return [choice]
    return list(choice)


def require_members(groups: Mapping[str, Sequence[int]], num_classes: int) -> None:
    """Refuse a group with a class that does not exist."""
    for name, members in groups.items():
        for c in members:
            if not 0 <= c < num_classes:
                raise LandscapeError(
                    f"group '{name}': class {c} does not exist, classes run from 0 to {num_classes - 1}"
                )


def require_group_average(name: str) -> None:
    """Raise LandscapeError for a name that is not a way to average a group."""
    if name not in get_args(GroupAverage):
        raise unknown_name("group average", name, get_args(GroupAverage))


def _pooled(members: Sequence[int], counts: Tensor, average: GroupAverage) -> Tensor:
    row = torch.zeros(len(counts), dtype=torch.float64)
    index = list(members)
    row[index] = counts[index].double() if average == "examples" else (counts[index] > 0).double()
    return row / row.sum().clamp_min(1.0)


def _find_class(name: str | int, class_names: Sequence[str]) -> int | None:
    if isinstance(name, str) and name in class_names:
        return list(class_names).index(name)
    try:
        index = int(name)
    except ValueError:
        return None
    return index if 0 <= index < len(class_names) else None


def choose_lanes(
    choice: LaneChoice | None,
    *,
    class_names: Sequence[str],
    class_counts: Tensor,
    groups: Mapping[str, Sequence[int]],
    group_average: GroupAverage = "examples",
) -> Lanes:
    """Turn what a user typed into weights over classes.

    Parameters
    ----------
    choice
        None (every class, every non-empty group, the whole), ``"classes"``, ``"groups"``, ``"all"``, a class name or
        index, a group name, a list or comma-separated string of these, or a mapping from a name to C weights.
    class_names, class_counts, groups
        The C classes: names, examples in the data under study (C,), and the class indices of each group.
    group_average
        ``"examples"`` pools the examples of a group; ``"classes"`` weighs its classes equally.

    Raises
    ------
    LandscapeError
        For an unknown lane (with the nearest known one) or a lane with no examples.

    Examples
    --------
    >>> lanes = choose_lanes("1,all", class_names=["a", "b"], class_counts=torch.tensor([3, 1]), groups={})
    >>> lanes.names, lanes.weights.tolist()
    (('b', 'all'), [[0.0, 1.0], [0.75, 0.25]])
    """
    require_group_average(group_average)
    counts = class_counts.cpu()
    num_classes = len(class_names)
    taken = [*class_names, *groups]
    if len(set(taken)) < len(taken):  # one lane would silently stand for two
        twice = next(name for name in taken if taken.count(name) > 1)
        raise LandscapeError(f"the name '{twice}' stands for two lanes: give every class and group a name of its own")
    group_of = {c: group for group, members in groups.items() for c in members}
    rows: dict[str, tuple[str, str, Tensor]] = {}
    if choice is None:  # everything that there is
        empty = [name for name, count in zip(class_names, counts.tolist()) if not count]
        if empty:
            logger.warning("classes without examples in this split are left out: %s", ", ".join(empty))
        groups = {name: [c for c in members if counts[c] > 0] for name, members in groups.items()}
        choice = [
            *(c for c in range(num_classes) if counts[c] > 0),
            *(g for g, m in groups.items() if m),
            *EVERYTHING[2:],
        ]

    def add_class(c: int) -> None:
        row = torch.zeros(num_classes, dtype=torch.float64)
        row[c] = 1.0
        rows[class_names[c]] = ("class", group_of.get(c, ""), row)

    def add_group(group: str) -> None:
        rows[group] = ("group", "", _pooled(groups[group], counts, group_average))

    if isinstance(choice, Mapping):
        for name, weights in choice.items():
            row = torch.as_tensor(weights, dtype=torch.float64).cpu()
            if row.shape != (num_classes,):
                raise LandscapeError(f"lane '{name}': expected {num_classes} weights, got {tuple(row.shape)}")
            if not bool(row.isfinite().all()):
                raise LandscapeError(f"lane '{name}': expected finite weights, got {row.tolist()}")
            rows[name] = ("mixture", "", row)
    else:
        for part in _split(choice):
            index = _find_class(part, class_names)
            if index is not None:
                add_class(index)
            elif part == "classes":
                for c in range(num_classes):
                    add_class(c)
            elif part == "groups":
                for group, members in groups.items():
                    if any(counts[c] > 0 for c in members):
                        add_group(group)
            elif part == "all":
                rows["all"] = ("all", "", _pooled(range(num_classes), counts, group_average))
            elif part in groups:
                add_group(str(part))
            else:
                raise unknown_name("lane", str(part), [*class_names, *groups, "all", "classes", "groups"])
    if not rows:
        raise LandscapeError(f"no lanes chosen: expected classes, groups, all or names of these, got {choice!r}")
    return _assemble(rows, counts)


def lanes_of(risk: ClassRisk, choice: LaneChoice | None, *, group_average: GroupAverage = "examples") -> Lanes:
    """Return the lanes that ``choice`` means for a risk: :func:`choose_lanes` with its classes, counts and groups."""
    return choose_lanes(
        choice,
        class_names=risk.class_names,
        class_counts=risk.class_counts,
        groups=risk.groups,
        group_average=group_average,
    )


def _assemble(rows: Mapping[str, tuple[str, str, Tensor]], counts: Tensor) -> Lanes:
    num_examples = []
    for name, (_, _, row) in rows.items():
        used = int(counts[row != 0].sum())
        if used == 0 or bool((counts[row != 0] == 0).any()):
            raise LandscapeError(
                f"lane '{name}' has no examples in this split: choose other --lanes or the other --split"
            )
        num_examples.append(used)
    return Lanes(
        names=tuple(rows),
        kinds=tuple(kind for kind, _, _ in rows.values()),
        groups=tuple(group for _, group, _ in rows.values()),
        weights=torch.stack([row for _, _, row in rows.values()]),
        num_examples=tuple(num_examples),
    )
