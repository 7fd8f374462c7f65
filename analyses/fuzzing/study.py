"""Read one damaged file after the other and say what came of each."""

from __future__ import annotations

import contextlib
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from analyses.fuzzing import damage
from analyses.fuzzing.targets import TARGETS, Target
from landscape.errors import LandscapeError

# Seconds and bytes beyond which a reader is at fault.
LONGEST, MOST = 20, 2 << 30
FAULTS = ("silent", "foreign", "hang", "memory")
OUTCOMES = ("refused", "same", "other, no checksum", "other, structured", *FAULTS)


class Outcome(NamedTuple):
    """What came of one input: one of ``OUTCOMES``, the damage, and what was raised."""

    kind: str
    damage: str
    text: str


class _Hang(BaseException):
    """Raised by the alarm."""


def _ring(*_: Any) -> None:
    raise _Hang


def _most_memory() -> int:
    """Return the most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    return bool(np.array_equal(np.asarray(one), np.asarray(other)))


def damaged(target: Target, content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Return the name of a damage and the bytes after it."""
    chosen = draw.choice((*damage.ANY, *target.structured))
    return chosen.__name__, chosen(content, draw)


def outcome_of(target: Target, path: Path, whole: Any, name: str) -> Outcome:
    """Read a damaged file and compare it with the whole one."""
    start, before = time.perf_counter(), _most_memory()
    signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        value = target.read(path)
    except LandscapeError as error:
        kind, text = "refused", str(error)
        if "\n" in text:
            kind = "foreign"
    except _Hang:
        kind, text = "hang", f"over {LONGEST} s"
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        kind, text = "foreign", f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
    else:
        text = ""
        is_structured = name in {d.__name__ for d in target.structured}
        other = "other, structured" if is_structured else "silent" if target.is_checked else "other, no checksum"
        kind = "same" if _is_same(value, whole) else other
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if time.perf_counter() - start > LONGEST:
        kind = "hang"
    elif _most_memory() > max(MOST, before + (100 << 20)):
        kind = "memory"
    return Outcome(kind, name, text[:300])


@contextlib.contextmanager
def prepared(name: str) -> Iterator[tuple[Path, bytes, Any]]:
    """Give the file of a target, its bytes, and what is read from it whole; what was made vanishes afterwards."""
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = target.make(Path(folder))
        content = path.read_bytes()
        whole = target.read(path)
        yield path, content, whole


def study(name: str, numbers: range) -> Iterator[tuple[int, Outcome]]:
    """Yield the outcome of each input; the same number gives the same damage."""
    target = TARGETS[name]
    with warnings.catch_warnings(), prepared(name) as (path, content, whole):
        warnings.simplefilter("ignore")
        for number in numbers:
            draw = random.Random(f"{name}/{number}")
            kind, bad = damaged(target, content, draw)
            if path.is_dir():
                shutil.rmtree(path)
            path.write_bytes(bad)
            yield number, outcome_of(target, path, whole, kind)
