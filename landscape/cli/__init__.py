"""The command line."""

from landscape.cli.main import main

__all__ = ["main"]
