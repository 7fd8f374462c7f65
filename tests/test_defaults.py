"""Defaults are part of what is published with a number: a changed one is a decision, taken here and in the documentation."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from landscape.flatness import FlatnessOptions
from landscape.optimizers import OPTIMIZERS
from landscape.perturbation import PerturbationOptions
from landscape.plan import PRESETS
from landscape.spectrum import SpectrumOptions
from landscape.surface import RadiusOptions

SPECTRUM = {
    "num_probes": 4, "num_steps": 20, "max_steps": 200, "threshold": 0.01, "failure_probability": 1e-3, "tolerance": None,
    "num_extremes": 1, "until": "converged", "budget": None, "num_traces": 0, "basis": "auto", "basis_vectors": None,
    "certify": "float64", "context": True, "trace": "auto", "num_bootstrap": 2000,
}  # fmt: skip
PERTURBATION = {
    "radii": (0.05, 0.1, 0.2), "sigmas": (0.01, 0.03), "num_draws": 10, "rhos": (0.05, 0.2), "ascent_steps": 5
}  # fmt: skip
FLATNESS = {
    "relative_radius": 0.1, "placement": "sphere", "adaptive_radius": 0.1, "rho": 0.05, "rho_linf": 1e-4,
    "adaptive_rho": 0.5, "adaptive_rho_linf": 1e-3, "delta": 0.1, "num_pairs": 10, "ascent_steps": 10, "batch_size": None,
    "max_batches": 8, "measures": (),
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "expected"),
    [(SpectrumOptions, SPECTRUM), (PerturbationOptions, PERTURBATION), (FlatnessOptions, FLATNESS)],
)
def test_options_of_the_analyses(options, expected):
    found = asdict(options())
    assert {name: found[name] for name in expected} == expected


def test_options_of_a_radius():
    found = RadiusOptions()
    assert (found.start, found.limit, found.growth, found.tolerance, found.logits) == (1 / 64, 2.0, 2.0, 0.05, "raw")


def test_presets():
    rows = {
        name: (
            (
                plan.spectrum.num_probes,
                plan.spectrum.num_steps,
                plan.perturbation.num_draws,
                plan.perturbation.ascent_steps,
            ),
            (plan.line_points, plan.line_pairs, plan.plane_points, plan.eigen_points, plan.max_per_class),
            plan.escape_lengths,
        )
        for name, plan in PRESETS.items()
    }
    assert rows == EXPECTED_PRESETS


def test_options_of_the_optimizers():
    assert {name: asdict(OPTIMIZERS[name]()) for name in RULES} == RULES


EXPECTED_PRESETS = {
    "quick": ((4, 10, 6, 3), (21, 3, 11, 9, 10), 7),
    "standard": ((4, 20, 10, 5), (41, 5, 21, 15, 50), 13),
    "full": ((8, 60, 30, 20), (51, 10, 51, 31, None), 25),
}
RULES = {
    "sam": {
        "rho": 0.05,
        "schedule": "constant",
        "rho_steps": (0.05, 0.1, 0.5, 0.6),
        "rho_epochs": (5.0, 160.0, 180.0),
        "rho_range": (0.05, 0.8),
    },
    "asam": {"rho": 0.5, "eta": None, "variant": "official"},
    "imbsam": {"rho": 0.05, "eta": 20, "tail_weight": 1.0},
    "ccsam": {
        "flat_ratio": 0.3,
        "noise_ratio": 0.01,
        "max_relative_radius": 0.05,
        "perturbation": "full",
        "norms": "per-tensor",
    },
    "ssesam": {"rho_head": 0.05, "rho_tail": 0.1, "gamma": 0.7, "eta": 100},
    "gnm": {"rho": 0.05, "sigma": 1 / 3, "clip": 1.0, "dis_mul": 0.1, "decay_every": 59, "schedule": "described"},
    "gnp": {"r": 0.1, "alpha": 0.8, "variant": "paper"},
    "lpf": {"gamma": 0.002, "num_parts": 1},
    "swa": {"start": 0.8, "swa_lr": 0.05, "schedule": "own"},
}
