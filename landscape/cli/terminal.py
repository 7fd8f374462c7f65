"""What the user sees: progress, tables, one line for an error. The only place that prints."""

from __future__ import annotations

import codecs
import io
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Off a terminal (a log file), a progress line at most this often; on one, the line is redrawn at most this often.
SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_REDRAWS = 0.1


# What stands for a character where standard output cannot hold it (LC_ALL=C, an old Windows console).
_PLAIN = {"±": "+-", "λ": "lambda", "−": "-", "–": "-", "×": "x", "≥": ">=", "≤": "<=", "…": "..."}


def write_any_text() -> None:
    """Let standard output and error write every text, whatever their encoding: ``±`` as ``+-``, the unknown as ``?``."""
    codecs.register_error("plain", _spelled_out)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def _spelled_out(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(_PLAIN.get(c, "?") for c in error.object[error.start : error.end]), error.end


def say(text: str) -> None:
    """Print a line of results."""
    print(text, flush=True)


def note(text: str) -> None:
    """Print a line about what is going on, to standard error, so that ``--json`` output stays clean."""
    print(text, file=sys.stderr, flush=True)


def fail(message: str) -> None:
    """Print an error as exactly one line."""
    note("error: " + " ".join(str(message).split()))


class ProgressLine:
    """A callback ``progress(done, total, text)``: one line that is redrawn on a terminal, sparse lines in a log.

    The time left is extrapolated from the steps of the current stage.
    """

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._start = time.monotonic()
        self._last_line = self._start
        self._last_redraw = 0.0
        self._previous = 0
        self._width = 0

    def __call__(self, done: int, total: int, text: str) -> None:
        """Show that ``done`` of ``total`` steps are finished."""
        now = time.monotonic()
        if done <= self._previous:
            self._start = now
        self._previous = done
        elapsed = now - self._start
        left = f", {_duration(elapsed / done * (total - done))} left" if 0 < done < total and elapsed > 1 else ""
        line = f"  {done:>4}/{total} {text}{left}"
        if self._is_terminal:
            if done < total and now - self._last_redraw < SECONDS_BETWEEN_REDRAWS:
                return
            self._last_redraw = now
            print("\r" + line[:118].ljust(self._width), end="\n" if done == total else "", file=sys.stderr, flush=True)
            self._width = 0 if done == total else min(len(line), 118)
        elif now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            note(line)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def show_estimate(stages: Mapping[str, tuple[float, int]], *, as_json: bool) -> None:
    """Print the estimated time and memory of each stage: {stage: (seconds, bytes)}."""
    if as_json:
        print_json({name: {"seconds": s, "bytes": b} for name, (s, b) in stages.items()})
        return
    for name, (seconds, size) in stages.items():
        say(f"{name:<28} about {_duration(seconds):>14}, {size / 2**30:6.2f} GiB")
    total = sum(seconds for seconds, _ in stages.values())
    say(
        f"{'together':<28} about {_duration(total):>14}, {max(size for _, size in stages.values()) / 2**30:6.2f} GiB at most"
    )
    say("measured from one block of each kind on this machine; nothing was computed or written (--dry-run)")


def show_table(columns: Mapping[str, Sequence[str]]) -> None:
    """Print columns of text, aligned: the first to the left, the others to the right."""
    widths = {name: max(len(name), *(len(cell) for cell in cells)) for name, cells in columns.items()}
    first = next(iter(columns))

    def line(cells: Sequence[str]) -> str:
        parts = [c.ljust(w) if n == first else c.rjust(w) for c, (n, w) in zip(cells, widths.items())]
        return "  ".join(parts).rstrip()

    say(line(list(columns)))
    for row in zip(*columns.values()):
        say(line(row))


def with_error(value: float, error: float) -> str:
    """Return ``value ± error``: the error with one digit, the value down to that digit (two to six significant ones).

    Examples
    --------
    >>> with_error(-0.03605, 0.021), with_error(1150.2, 93.0), with_error(9.0462134, 3.1e-6), with_error(2.5, 0.0)
    ('-0.036 ± 0.02', '1150 ± 90', '9.04621 ± 3e-06', '2.5 ± 0')
    """
    if value != value:
        return "-"
    if not (error > 0 and math.isfinite(error)) or not math.isfinite(value):
        return f"{value:.4g}" if error != error else f"{value:.4g} ± {error:g}"
    last = _exponent(float(f"{error:.1g}"))
    digits = min(max(_exponent(value) - last + 1, 2), 6) if value else 1
    return f"{_fixed(value, digits)} ± {_fixed(error, 1)}"


def end_of_spectrum(value: float, error: float, *, is_low: bool, is_one_sided: bool = False) -> str:
    """Return an end of a spectrum: ``value ± error``, or the one side that a run without an error bar knows.

    Examples
    --------
    >>> end_of_spectrum(-4.53525, 0.004, is_low=True), end_of_spectrum(-4.341, 2.0, is_low=True, is_one_sided=True)
    ('-4.535 ± 0.004', 'at most -4.341')
    >>> end_of_spectrum(91.2, float("inf"), is_low=False), end_of_spectrum(91.2, float("nan"), is_low=False)
    ('at least 91.2', '91.2')
    """
    if error == error and (is_one_sided or math.isinf(error)) and value == value:
        return f"at {'most' if is_low else 'least'} {value:.4g}"
    return with_error(value, error)


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value else 0


def _fixed(value: float, digits: int) -> str:
    """Return a number with so many significant digits, without an exponent where it stays short."""
    value = float(f"{value:.{digits - 1}e}")
    exponent = _exponent(value)
    if not -4 <= exponent < 6:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(digits - 1 - exponent, 0)}f}"


def print_json(content: Any) -> None:
    """Print JSON; numbers that are not finite become null."""
    say(json.dumps(_plain(content), indent=2, allow_nan=False))


def _plain(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(value) for value in content]
    if isinstance(content, Path):
        return str(content)
    if hasattr(content, "tolist"):
        return _plain(content.tolist())
    if isinstance(content, float) and (content != content or content in (float("inf"), float("-inf"))):
        return None
    return content


def meaning_of_trace_error(table: Any) -> str:
    """Return what stands behind the traces' errors in a table or Dataset: an interval of just that width is no Student's."""
    if "trace_high" in table and bool((table["trace_high"] - table["trace"] <= 1.001 * table["trace_stderr"]).all()):
        return "rounding, and what the logit directions left out would add at twice the largest slope that was measured"
    return "standard error over probes, in the complement of the eigenpairs that were found"
