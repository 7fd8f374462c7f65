"""The application that the commands register with, and what several of them need."""

from __future__ import annotations

import contextlib
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from landscape import __version__
from landscape.cli.terminal import say
from landscape.errors import LandscapeError
from landscape.files import require_replaceable

app = typer.Typer(
    name="landscape",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Diagnose long-tailed classifiers per class: saddle, slope or minimum, and how flat.",
)


def _version(value: bool) -> None:
    if value:
        say(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def command_line() -> str:
    """Return the command as the user typed it, to be printed in reports."""
    return shlex.join(["landscape", *sys.argv[1:]])


@contextlib.contextmanager
def writing_to(out: Path, *, is_file: bool, inputs: Sequence[Path] = (), parts: Sequence[str] = ()) -> Iterator[None]:
    """Fail before the work where the result could not be written; after bad input, take away the empty folders made.

    ``inputs`` must not be written over; ``parts`` are the folders in ``out`` that the work may make.
    """
    for path in inputs:
        if out.exists() and path.exists() and out.samefile(path):
            what = "the folder of a result" if path.is_dir() else "the file"
            raise LandscapeError(f"--out {out}: that is {what} to be read; choose another name")
    if is_file and out.is_dir():
        raise LandscapeError(f"--out {out}: expected a file name such as {out / 'result.nc'}, got a folder")
    folder = require_replaceable(out).parent if is_file else out
    made = [*(folder / part for part in parts), folder, *folder.parents]
    made = [path for path in made if not path.exists()]
    _require_writable(folder, out)
    try:
        yield
    except LandscapeError:
        for path in made:  # the inner ones come first
            with contextlib.suppress(OSError):  # never made, or it holds finished work
                path.rmdir()
        raise


def _require_writable(folder: Path, out: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A name of its own: the processes of torchrun look into one folder at the same time.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".write-test-"):
            pass
    except OSError as error:
        raise LandscapeError(f"--out {out}: cannot write there ({error.strerror}); choose another folder") from None
