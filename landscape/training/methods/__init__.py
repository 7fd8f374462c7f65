"""How a batch becomes the losses that the optimizer differentiates: plainly, mixed, generated, or from several views.

``METHODS`` maps the names that users type to classes; :func:`build_method` builds one.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from landscape.errors import LandscapeError, unknown_name
from landscape.training.methods.adversarial_features import AdversarialFeatures
from landscape.training.methods.mixture_consistency import GLMC
from landscape.training.methods.parametric_contrast import GPaCo, PaCo
from landscape.training.methods.plain import Plain
from landscape.training.methods.protocol import Closures, Method, MiniBatch, Setting
from landscape.training.methods.translation import M2m

__all__ = [
    "METHODS",
    "AdversarialFeatures",
    "Closures",
    "Method",
    "MiniBatch",
    "Plain",
    "Setting",
    "build_method",
    "check_combination",
    "check_method",
]

METHODS: dict[str, type[Method]] = {
    "plain": Plain,
    "m2m": M2m,
    "paco": PaCo,
    "gpaco": GPaCo,
    "glmc": GLMC,
    "adversarial-features": AdversarialFeatures,
}


def check_method(name: str, options: dict[str, Any]) -> None:
    """Raise LandscapeError for an unknown method, an option that it does not have, or one out of range."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    known = {o: p.default for o, p in inspect.signature(METHODS[name]).parameters.items() if o != "setting"}
    for option in options:
        if option not in known:
            raise unknown_name(f"option of method '{name}'", option, known or ["(none)"])
    METHODS[name].check_options(known | options)


def check_combination(name: str, fields: Mapping[str, Any], *, optimizer: str, needs: frozenset[str]) -> None:
    """Raise LandscapeError where a method replaces what a field of the specification chooses, or the optimizer needs.

    ``fields`` are those of the specification, ``needs`` the optimizer's (:class:`landscape.optimizers.Rule`).
    """
    for field, value in METHODS[name].fixed.items():
        if fields[field] != value:
            raise LandscapeError(f"method '{name}' goes with {field}={value!r} only, got {fields[field]!r}")
    missing = sorted(METHODS[name].unsupported & needs)
    if missing:
        raise LandscapeError(
            f"optimizer '{optimizer}' needs the {missing[0]} of plain training, which method '{name}' replaces: "
            "choose another optimizer"
        )


def build_method(name: str, setting: Setting, **options: Any) -> Method:
    """Build a method by name; a module whose parameters are trained along and whose state is saved with the run's."""
    check_method(name, options)
    return METHODS[name](setting, **options)
