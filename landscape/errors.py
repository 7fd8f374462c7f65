"""The one exception that a user is meant to read: one line that says what was expected, what came, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


class LandscapeError(ValueError):
    """Bad input from the user; the command line prints its text on one line and exits with code 2."""


# No count that anybody means is larger; one that is, such as 1e20, would run for ever or overflow.
MOST = 10_000_000
LARGEST_SEED = 2**63 - 1


def require_whole(name: str, value: object, least: int, most: int = MOST) -> None:
    """Raise LandscapeError unless a value is a whole number within bounds.

    Examples
    --------
    >>> require_whole("num_probes", 4, 0)
    >>> require_whole("num_probes", 2.5, 0)
    Traceback (most recent call last):
    landscape.errors.LandscapeError: num_probes: expected a whole number, at least 0, got 2.5
    """
    # numpy's integers are none of Python's
    is_whole = hasattr(value, "__index__") and not isinstance(value, bool)
    if not is_whole or value < least:  # type: ignore[operator]
        raise LandscapeError(f"{name}: expected a whole number, at least {least}, got {value!r}")
    if value > most:  # type: ignore[operator]
        raise LandscapeError(f"{name}: expected a whole number, at most {most:,}, got {value:,}")


def cause(error: BaseException) -> str:
    """Return the first line of a foreign exception, with its type where the text alone says little.

    Examples
    --------
    >>> cause(ValueError("no such size\\nmore")), cause(KeyError("logits")), cause(AssertionError())
    ('no such size', "KeyError: 'logits'", 'AssertionError')
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    first_line = lines[-1] if lines[0].startswith("Caught ") else lines[0]  # the end of a worker's traceback
    says_enough = isinstance(error, (RuntimeError, ValueError, TypeError, NotImplementedError)) and first_line
    return first_line if says_enough else f"{type(error).__name__}{': ' if first_line else ''}{first_line}"


@contextmanager
def foreign_errors_explained(what: str, *, remedy: Callable[[], str] = str) -> Iterator[None]:
    """Turn every exception that is not ours into one line, ``from`` the original; a lack of memory stays what it is.

    Parameters
    ----------
    what
        What could not be done, e.g. ``"the model cannot be copied"``.
    remedy
        Called where something was wrong: what to do about it.

    Raises
    ------
    LandscapeError
        ``what``, the cause and the remedy.
    """
    try:
        yield
    except (LandscapeError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
            raise
        advice = remedy()
        raise LandscapeError(f"{what} ({cause(error)})" + (f": {advice}" if advice else "")) from error


def unknown_name(kind: str, name: str, known: Iterable[str]) -> LandscapeError:
    """Return the error for a name that is not in a registry, with the nearest known one.

    Examples
    --------
    >>> str(unknown_name("optimizer", "smm", ["sam", "sgd"]))
    "unknown optimizer 'smm': did you mean 'sam'? known: sam, sgd"
    """
    names = sorted(known)
    nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    return LandscapeError(f"unknown {kind} '{name}': {hint}known: {', '.join(names)}")
