"""Colours, line styles, markers and symbols: one place, safe for colour-blind readers and for black-and-white print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

INK = "#222222"
MUTED = "#5F6368"
GRID = "#E3E5E8"
MISSING = "#E9E9E9"
PAPER = "#FFFFFF"

# Okabe and Ito (2008), in the order in which optimizers are listed; the yellow is left out, it vanishes on white.
SEQUENCE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444", "#7A4B00")
DASHES = ("solid", "dash", "dashdot", "dot", "longdash", "solid", "dash", "dashdot")
MARKERS = ("circle", "square", "triangle", "diamond", "cross", "x", "star", "triangle-down")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---", "+++", "ooo")

COLOUR_MAP = "viridis"
# Of errors and of spreads: other colours than the surface beside them.
ERROR_MAP = "magma"
SPREAD_MAP = "cividis"
FONT = "DejaVu Sans"


# A logarithmic axis with a smaller quotient of its ends has ticks between the decades.
FEW_DECADES = 50.0
# A matrix of at most so many columns has room for larger numbers in its cells.
FEW_COLUMNS = 8


@dataclass(frozen=True)
class Look:
    """How one thing is drawn everywhere: a colour, a line style, a marker, a hatch."""

    colour: str
    dash: str = "solid"
    marker: str = "circle"
    hatch: str = ""


LANE_LOOKS = {
    "head": Look("#0072B2", "solid", "circle", ""),
    "medium": Look("#009E73", "dash", "square", "..."),
    "tail": Look("#D55E00", "dashdot", "triangle", "///"),
    "all": Look("#444444", "dot", "diamond", "xxx"),
}

# The ends of the ramp for class lanes, from the class with most examples to the one with fewest.
_RAMP = ("#0072B2", "#4FA3B8", "#B5A642", "#E08A2C", "#B53A00")


@dataclass(frozen=True)
class VerdictLook:
    """A verdict's symbol, its tint and the ink on it."""

    symbol: str
    fill: str
    ink: str


VERDICT_LOOKS = {
    "saddle": VerdictLook("∩", "#F6CDB8", "#7F2A00"),
    "slope": VerdictLook("↘", "#FBE8B9", "#6B4E00"),
    "no negative curvature": VerdictLook("∪", "#CDE7DC", "#00513B"),
    "undecided": VerdictLook("?", "#E6E6E6", "#444444"),
    "refused": VerdictLook("×", "#F2F2F2", "#8A1C4A"),
}


def optimizer_looks(names: Sequence[str]) -> dict[str, Look]:
    """Return one look per optimizer, in the given order; after eight the colours repeat with another marker."""
    return {
        name: Look(
            SEQUENCE[index % len(SEQUENCE)],
            DASHES[(index + index // len(SEQUENCE)) % len(DASHES)],
            MARKERS[(index + index // len(SEQUENCE)) % len(MARKERS)],
            HATCHES[(index + index // len(SEQUENCE)) % len(HATCHES)],
        )
        for index, name in enumerate(names)
    }


def class_looks(names: Sequence[str]) -> dict[str, Look]:
    """Return one look per class, on a blue-to-rust ramp in the given (head to tail) order."""
    last = max(len(names) - 1, 1)
    return {
        name: Look(ramp(index / last), DASHES[index % 5], MARKERS[index % len(MARKERS)], HATCHES[index % len(HATCHES)])
        for index, name in enumerate(names)
    }


def ramp(position: float) -> str:
    """Return the colour at ``position`` in [0, 1] of the head-to-tail ramp."""
    scaled = min(max(position, 0.0), 1.0) * (len(_RAMP) - 1)
    left = min(int(scaled), len(_RAMP) - 2)
    share = scaled - left
    first, second = _channels(_RAMP[left]), _channels(_RAMP[left + 1])
    mixed = [round(a + share * (b - a)) for a, b in zip(first, second)]
    return "#{:02X}{:02X}{:02X}".format(*mixed)


def with_alpha(colour: str, alpha: float) -> str:
    """Return ``colour`` as a CSS ``rgba`` string.

    Examples
    --------
    >>> with_alpha("#0072B2", 0.25)
    'rgba(0,114,178,0.25)'
    """
    red, green, blue = _channels(colour)
    return f"rgba({red},{green},{blue},{alpha:g})"


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
