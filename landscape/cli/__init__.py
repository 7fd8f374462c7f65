"""The command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; an interruption while it is being loaded is one line as well."""
    try:
        from landscape.cli.entry import main as run
    except KeyboardInterrupt:
        print("interrupted before anything began", file=sys.stderr)
        sys.exit(130)
    run()


__all__ = ["main"]
