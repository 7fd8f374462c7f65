"""How much a spectrum may cost, when it stops, and what its verdict means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from landscape.errors import LandscapeError, require_whole, unknown_name

Until = Literal["converged", "verdict"]
Certify = Literal["float64", "lowest", "own"]
TraceMethod = Literal["auto", "exact", "probes"]
BasisChoice = Literal["auto", "device", "host", "none"]

# Residual at which an extreme counts as converged, in units of |H|; its eigenvalue error is the square over the gap.
EXTREME_TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-7}
# How far beyond the printed one an end may lie, relative to it, when a run stops (with the stated probability).
END_WIDTH = 1e-3
# A lower end above the threshold decides nothing, and need not be held so tightly: its residual is brought below that width
# of itself, unless the end is less than this share of |H|.
SMALLEST_END = 1e-3
# The part of the failure probability that is spent on what the extreme run's own start may hold too little of. The tenth
# costs two or three steps more and leaves the rest to the independent starts of the density, which stand in where it fails.
OWN_PART = 0.1
# Products that prove the operator: repeat, linearity, additivity.
PROOF_PRODUCTS = 3
# The fewest Lanczos steps of a run and of a probe that are worth having.
FEWEST_STEPS = 8
SHORTEST_PROBE = 2


@dataclass(frozen=True)
class SpectrumOptions:
    """How much a spectrum may cost and what its verdict means; validated once.

    Attributes
    ----------
    num_probes
        Density probes; 0 takes the quadrature of the extreme run's own random start, which costs no product.
    num_steps
        Lanczos steps per density probe.
    max_steps
        Most steps of the extreme run, which stops as soon as both extremes have converged and the verdict is clear.
    threshold
        Negative curvature matters above this multiple of lambda_max.
    failure_probability
        That an end lies outside its interval.
    tolerance
        Residual at which an extreme counts as converged, in units of |H|; None for ``EXTREME_TOLERANCE``.
    num_extremes
        Eigenpairs wanted at either end.
    until
        ``"converged"``, or ``"verdict"``: products are spent only until the lane is decided; no density.
    budget
        Hessian products per lane, all included; None for no limit. What the extremes leave goes into the probes.
    num_traces
        Test vectors of XTrace in the complement of the extreme run, two products each; 0 takes the probes' first products.
    basis
        Where Lanczos vectors live: on the device, in the host's memory, nowhere, or where they fit.
    basis_vectors
        Most vectors in memory per lane, after which the extreme run restarts; None for what the memory holds.
    certify
        ``"float64"``: the Rayleigh quotients and residuals of both ends come from products in float64, whatever the run's
        precision (rounding switches ReLUs, and a float32 Hessian may be 2e-4 of its norm away), which costs as much as nine
        products in float32; ``"lowest"``: those of the lowest only; or the run's ``"own"``.
    context
        Whether to walk along v_min and -gradient, split v'Hv and look at the images; False measures the spectrum alone,
        and a lane with negative curvature is then "undecided" between saddle and slope.
    trace
        ``"auto"``: exact (:func:`landscape.risk.traces.hessian_traces`) where the network allows it and neither a budget nor
        XTrace is asked for, else from the probes; ``"exact"``, an error where it is not possible; or ``"probes"``.
    num_bootstrap
        Bootstrap draws over images of the curvature along v_min; 0 leaves the interval out.
    """

    num_probes: int = 4
    num_steps: int = 20
    max_steps: int = 200
    threshold: float = 0.01
    failure_probability: float = 1e-3
    tolerance: float | None = None
    num_extremes: int = 1
    until: Until = "converged"
    budget: int | None = None
    num_traces: int = 0
    basis: BasisChoice = "auto"
    basis_vectors: int | None = None
    certify: Certify = "float64"
    context: bool = True
    trace: TraceMethod = "auto"
    num_bootstrap: int = 2000

    def __post_init__(self) -> None:
        counts = {
            "num_probes": 0,
            "num_steps": 2,
            "max_steps": 2,
            "num_extremes": 1,
            "num_traces": 0,
            "num_bootstrap": 0,
        }
        for name, least in counts.items():
            require_whole(name, getattr(self, name), least)
        if self.budget is not None:
            require_whole("budget", self.budget, 1)
        if not 0 < self.threshold < 1:
            raise LandscapeError(f"threshold: expected a fraction of lambda_max between 0 and 1, got {self.threshold}")
        if not 0 < self.failure_probability < 1:
            raise LandscapeError(f"failure_probability: expected between 0 and 1, got {self.failure_probability}")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise LandscapeError(f"tolerance: expected a fraction of |H| between 0 and 1, got {self.tolerance}")
        if not 1 <= self.num_extremes <= self.max_steps // 2:
            raise LandscapeError(
                f"num_extremes: expected at least 1 and at most half of max_steps ({self.max_steps}), got {self.num_extremes}"
            )
        if self.until not in get_args(Until):
            raise unknown_name("until", self.until, get_args(Until))
        if self.certify not in get_args(Certify):
            raise unknown_name("certify", self.certify, get_args(Certify))
        if self.trace not in get_args(TraceMethod):
            raise unknown_name("trace", self.trace, get_args(TraceMethod))
        if self.trace == "exact" and (self.num_traces or self.until == "verdict"):
            what = "num_traces" if self.num_traces else "until 'verdict', which measures none"
            raise LandscapeError(f"trace: expected 'auto' or 'probes' with {what}, got 'exact'")
        if self.basis not in get_args(BasisChoice):
            raise unknown_name("basis", self.basis, get_args(BasisChoice))
        if self.budget is not None and self.budget < self.fewest_products:
            probes = f" and {self.num_probes} probes" if self.until == "converged" and self.num_probes else ""
            raise LandscapeError(
                f"budget: expected at least {self.fewest_products} products per lane for a run and its proof{probes}, "
                f"got {self.budget}"
            )
        if self.num_traces and not self.num_probes:
            raise LandscapeError(
                f"num_traces: expected 0 without density probes, got {self.num_traces}; take num_probes=1"
            )
        if self.basis_vectors is not None and self.basis_vectors < 4 * self.num_extremes + 12:
            raise LandscapeError(
                f"basis_vectors: expected at least {4 * self.num_extremes + 12} for {self.num_extremes} eigenpairs at "
                f"either end, got {self.basis_vectors}"
            )

    @property
    def overhead(self) -> int:
        """Products per lane beside the Lanczos steps: proof of the operator and certificates of both ends."""
        again = {"float64": 2, "lowest": 1, "own": 0}[self.certify]  # in float64
        return PROOF_PRODUCTS + (2 + again) * self.num_extremes

    @property
    def fewest_products(self) -> int:
        """The smallest budget that gives every result."""
        probes = 0 if self.until == "verdict" else self.num_probes * SHORTEST_PROBE
        return FEWEST_STEPS + self.overhead + probes + 2 * self.num_traces

    @property
    def longest_run(self) -> int:
        """Most steps of the extreme run within the budget."""
        return self.max_steps if self.budget is None else min(self.max_steps, self._room)

    @property
    def _room(self) -> int:
        """Lanczos steps that the budget leaves to the extremes."""
        assert self.budget is not None
        probes = 0 if self.until == "verdict" else self.num_probes * SHORTEST_PROBE
        return self.budget - self.overhead - probes - 2 * self.num_traces

    def probe_steps(self, num_spent: int) -> int:
        """Return the steps per density probe after ``num_spent`` products of a lane."""
        if self.budget is None:
            return self.num_steps
        return max((self.budget - num_spent - 2 * self.num_traces) // max(self.num_probes, 1), SHORTEST_PROBE)

    @property
    def missed_probability(self) -> float:
        """The probability with which an extreme run may have missed an end by more than it says."""
        return OWN_PART * self.failure_probability

    @property
    def end_width(self) -> float:
        """How far beyond the printed one an end may lie, relative to it, when a run stops."""
        return max(END_WIDTH, self.tolerance or 0.0)

    def residual_tolerance(self, dtype: torch.dtype) -> float:
        """Return the residual, relative to |H|, at which an extreme has converged."""
        return self.tolerance if self.tolerance is not None else EXTREME_TOLERANCE[dtype]
