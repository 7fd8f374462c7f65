"""The application that the commands register with, and what several of them need."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from landscape import __version__
from landscape.cli.terminal import say
from landscape.errors import LandscapeError

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


def require_writable(out: Path, *, is_file: bool) -> None:
    """Fail before the work, not after it, where the result could not be written."""
    from landscape.results import writing_atomically

    if is_file and out.is_dir():
        raise LandscapeError(f"--out {out}: expected a file name such as {out / 'result.nc'}, got a folder")
    folder = out.parent if is_file else out
    probe = folder / ".write-test"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with writing_atomically(probe) as temporary:
            temporary.touch()
        probe.unlink()
    except OSError as error:
        raise LandscapeError(f"--out {out}: cannot write there ({error.strerror}); choose another folder") from None
