"""Diagnose long-tailed classifiers per class: Hessian spectra, weight perturbations, loss surfaces.

Public names are imported on first use, so that ``import landscape`` and ``landscape --help`` load no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "AnalyticRisk": "landscape.risk",
    "ClassRisk": "landscape.risk",
    "LandscapeError": "landscape.errors",
    "ModelRisk": "landscape.risk",
    "diagnose": "landscape.diagnosis",
    "load_results": "landscape.results",
    "load_risk": "landscape.loading",
    "load_dataset": "landscape.data",
    "measure_flatness": "landscape.flatness",
    "measure_perturbation": "landscape.perturbation",
    "measure_spectrum": "landscape.spectrum",
    "measure_surface": "landscape.surface",
    "save_results": "landscape.results",
    "train": "landscape.training",
}
_MODULES = ("data", "diagnosis", "figures", "losses", "models", "optimizers", "report", "results", "spectrum")

__all__ = [*sorted(_PUBLIC), *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"landscape.{name}")
    raise AttributeError(f"module 'landscape' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
