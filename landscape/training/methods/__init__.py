"""How a batch becomes the losses that the optimizer differentiates: plainly, mixed, generated, or from several views.

``METHODS`` maps the names that users type to classes; :func:`build_method` builds one.
"""

from __future__ import annotations

import inspect
from typing import Any

from landscape.errors import unknown_name
from landscape.training.methods.plain import Plain
from landscape.training.methods.protocol import Closures, Method, MiniBatch, Setting

__all__ = ["METHODS", "Closures", "Method", "MiniBatch", "Plain", "Setting", "build_method", "check_method"]

METHODS: dict[str, type[Method]] = {
    "plain": Plain,
}


def check_method(name: str, options: dict[str, Any]) -> None:
    """Raise LandscapeError for an unknown method or an option that it does not have."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    known = [option for option in inspect.signature(METHODS[name]).parameters if option != "setting"]
    for option in options:
        if option not in known:
            raise unknown_name(f"option of method '{name}'", option, known or ["(none)"])


def build_method(name: str, setting: Setting, **options: Any) -> Method:
    """Build a method by name; a module whose parameters are trained along and whose state is saved with the run's."""
    check_method(name, options)
    return METHODS[name](setting, **options)
