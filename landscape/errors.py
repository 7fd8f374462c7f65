"""The one exception that a user is meant to read: one line that says what was expected, what came, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LandscapeError(ValueError):
    """Bad input from the user; the command line prints its text on one line and exits with code 2."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> LandscapeError:
    """Return the error for a name that is not in a registry, with the nearest known one.

    Examples
    --------
    >>> str(unknown_name("optimizer", "smm", ["sam", "sgd"]))
    "unknown optimizer 'smm': did you mean 'sam'? known: sam, sgd"
    """
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    return LandscapeError(f"unknown {kind} '{name}': {hint}known: {', '.join(names)}")
