"""The entry point: exit codes, and one line for whatever went wrong."""

from __future__ import annotations

import logging
import sys

from landscape.cli import (  # importing registers commands
    analyse,  # noqa: F401
    cost,  # noqa: F401
    escape,  # noqa: F401
    exchange,  # noqa: F401
    flatness,  # noqa: F401
    recipes,  # noqa: F401
    reconstruct,  # noqa: F401
    spectrum,  # noqa: F401
    surface,  # noqa: F401
    train,  # noqa: F401
)
from landscape.cli.app import app
from landscape.cli.terminal import fail, note, write_any_text
from landscape.errors import LandscapeError

INTERRUPTED = "interrupted: finished blocks are kept, the same command goes on from them"


def main() -> None:
    """Run the command line: 0 on success, 2 for bad input (one line, no traceback), 130 when interrupted."""
    write_any_text()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        code = app(standalone_mode=False)
        if code == 130:  # typer catches the interruption itself, and says nothing
            note(INTERRUPTED)
    except LandscapeError as error:
        fail(str(error))
        code = 2
    except (KeyboardInterrupt, EOFError):
        note(INTERRUPTED)
        code = 130
    except OSError as error:
        fail(
            f"{error.strerror or error}: {error.filename or 'the file system'}; choose another folder or free some space"
        )
        code = 2
    except Exception as error:
        code = _usage_code(error)
        if code is None:
            raise
    sys.exit(code if isinstance(code, int) else 0)


def _usage_code(error: Exception) -> int | None:
    """Print a usage error of the command-line library as one line; None for an error of the program."""
    if type(error).__name__ == "Abort":
        note(INTERRUPTED)
        return 130
    if hasattr(error, "format_message"):
        message = error.format_message().strip().rstrip(".")
        if message:  # none: the help was printed
            fail(f"{message} (see --help)")
        return 2
    if isinstance(error, MemoryError) or any(
        t in str(error).lower() for t in ("out of memory", "can't allocate memory")
    ):
        fail("out of memory: use a smaller --max-per-class or --preset; --dry-run says what is needed")
        return 2
    return None
