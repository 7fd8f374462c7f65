"""Checks of the methods' options."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from landscape.errors import LandscapeError, unknown_name


def check_numbers(method: str, options: Mapping[str, Any], ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raise LandscapeError unless each named option is a finite number within its range, ends included."""
    for name, (least, most) in ranges.items():
        value = options[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or not least <= value <= most:
            upper = "" if math.isinf(most) else f" and <= {most:g}"
            raise LandscapeError(
                f"method '{method}': expected {name} to be a number >= {least:g}{upper}, got {value!r}"
            )


def check_whole(method: str, options: Mapping[str, Any], least: Mapping[str, int]) -> None:
    """Raise LandscapeError unless each named option is a whole number of at least its bound."""
    for name, bound in least.items():
        value = options[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < bound:
            raise LandscapeError(f"method '{method}': expected {name} to be a whole number >= {bound}, got {value!r}")


def check_choices(method: str, options: Mapping[str, Any], choices: Mapping[str, Collection[str]]) -> None:
    """Raise LandscapeError unless each named option is one of its choices."""
    for name, known in choices.items():
        if options[name] not in known:
            raise unknown_name(f"{name} of method '{method}'", str(options[name]), known)
