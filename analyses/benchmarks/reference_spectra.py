"""Spectra to measure errors against: float64 ends, deflated densities of a thousand products; no code of the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from landscape.randomness import stream
from landscape.spectrum.pyhessian import trainable_copy

# A Ritz pair with a residual below this share of |H| is an eigenpair as far as these comparisons can tell.
CONVERGED = {torch.float64: 1e-9, torch.float32: 1e-6}


@dataclass(frozen=True)
class ReferenceSpectrum:
    """One lane's spectrum with errors far below those of the tools under comparison.

    ``values`` and ``weights`` are exact atoms joined with the mean of the complement's quadratures; ``residuals`` are
    those of both ends; ``trace`` is exact, see :func:`exact_trace`; ``trace_gap`` is its distance from the quadratures'
    own estimate in units of their standard error.
    """

    lambda_min: float
    lambda_max: float
    residuals: tuple[float, float]
    trace: float
    trace_gap: float
    values: np.ndarray
    weights: np.ndarray
    num_products: int

    @property
    def range(self) -> float:
        """Width of the spectrum."""
        return self.lambda_max - self.lambda_min


def _project(vector: Tensor, basis: Tensor) -> Tensor:
    for _ in range(2):
        vector = vector - basis.T @ (basis @ vector)
    return vector


def _lanczos(
    product: Any, start: Tensor, num_steps: int, deflated: Tensor
) -> tuple[np.ndarray, np.ndarray, Tensor, float]:
    """Return the Ritz values, their coordinates by column, the basis (m, n) and the last coupling."""
    num_deflated = len(deflated)
    basis = torch.cat([deflated, torch.zeros(num_steps, len(start), dtype=start.dtype, device=start.device)])
    vector = _project(start, deflated)
    alphas, betas = [], []
    vector = vector / vector.norm()
    for step in range(num_steps):
        basis[num_deflated + step] = vector
        image = product(vector)
        alphas.append(float(image @ vector))
        vector = _project(image, basis[: num_deflated + step + 1])
        betas.append(float(vector.norm()))
        if betas[-1] < 1e-13 * max(map(abs, alphas)):
            break
        vector = vector / betas[-1]
    values, coordinates = np.linalg.eigh(np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1))
    return values, coordinates, basis[num_deflated : num_deflated + len(alphas)], betas[-1]


def reference_spectrum(
    risk: Any,
    row: Tensor,
    *,
    name: str,
    dtype: torch.dtype = torch.float64,
    num_steps: int = 100,
    num_atoms_steps: int = 300,
    num_probes: int = 6,
    probe_steps: int = 120,
) -> ReferenceSpectrum:
    """Measure one lane (weights over classes, (C,)) with float64 vectors.

    ``num_steps`` products in ``dtype`` give both ends. The density takes a thousand products in the risk's own precision,
    whose rounding is far below the distances it is for: one run of ``num_atoms_steps`` gives the atoms, ``num_probes`` runs
    of ``probe_steps`` in their complement the rest. They have to resolve the bulk at zero, since a quadrature that splits it
    is as far from the truth as no quadrature.
    """
    exact = risk.in_float64() if dtype == torch.float64 else risk
    size, device = len(exact.theta), exact.theta.device
    none = torch.zeros(0, size, dtype=torch.float64, device=device)

    def draw(purpose: str) -> Tensor:
        return torch.randn(size, generator=stream(0, f"reference/{name}/{purpose}"), dtype=torch.float64).to(device)

    def run(of: Any, start: Tensor, steps: int, deflated: Tensor) -> tuple[np.ndarray, np.ndarray, Tensor, float]:
        with of.hessian(of.theta, row[None]) as batched:
            return _lanczos(lambda v: batched(v[None, None].to(of.theta.dtype))[0, 0].double(), start, steps, deflated)

    ends, coordinates, _, coupling = run(exact, draw("extremes"), num_steps, none)
    residuals = np.abs(coupling * coordinates[-1])
    values, coordinates, basis, coupling = run(risk, draw("extremes"), num_atoms_steps, none)
    kept = np.abs(coupling * coordinates[-1]) <= CONVERGED[risk.theta.dtype] * np.abs(values).max()
    atoms = torch.as_tensor(coordinates[:, kept].T.copy(), device=device) @ basis
    del basis
    nodes, masses, forms = [values[kept]], [np.full(kept.sum(), 1.0 / size)], []
    rest = size - int(kept.sum())
    for probe in range(num_probes):
        ritz, inner, _, _ = run(risk, draw(f"probe={probe}"), probe_steps, atoms)
        weights = inner[0] ** 2
        nodes.append(ritz)
        masses.append(weights * rest / size / num_probes)
        forms.append(float(weights @ ritz))
    samples = rest * np.array(forms)
    estimate, stderr = values[kept].sum() + samples.mean(), samples.std(ddof=1) / np.sqrt(len(samples))
    trace = exact_trace(exact, row)
    gap = abs(estimate - trace) / stderr
    assert gap < 8, f"{name}: the exact trace {trace} and its estimate {estimate} ± {stderr} disagree"
    return ReferenceSpectrum(
        lambda_min=float(ends[0]),
        lambda_max=float(ends[-1]),
        residuals=(float(residuals[0]), float(residuals[-1])),
        trace=trace,
        trace_gap=float(gap),
        values=np.concatenate(nodes),
        weights=np.concatenate(masses),
        num_products=len(ends) + len(values) + num_probes * probe_steps,
    )


def exact_trace(risk: Any, row: Tensor) -> float:
    r"""Return the trace of the Hessian of a class's mean cross-entropy, exact for networks that are affine in each weight.

    Logits of a ReLU network with BatchNorm in evaluation mode are (piecewise) affine in every single parameter, so the
    functional part of the Hessian has a zero diagonal and the trace is that of the Gauss-Newton matrix:

    .. math:: \mathrm{tr}\, H = \frac1n \sum_i \sum_k |J_i^T l_{ik}|^2, \qquad
              \sum_k l_{ik} l_{ik}^T = \mathrm{diag}(p_i) - p_i p_i^T.
    """
    c = int(row.argmax())
    examples = risk._examples
    model = trainable_copy(risk)
    parameters = list(model.parameters())
    total = 0.0
    for index in range(examples.offsets[c], examples.offsets[c + 1]):
        logits = model(examples.read(slice(index, index + 1), risk.dtype))[0]
        p = logits.detach().softmax(0)
        factor = torch.diag(p.sqrt()) - torch.outer(p, p.sqrt())
        for column in factor.T:
            gradient = torch.autograd.grad(logits, parameters, column, retain_graph=True)
            total += sum(float(part.double().square().sum()) for part in gradient)
    return total / (examples.offsets[c + 1] - examples.offsets[c])


def distance(values: np.ndarray, weights: np.ndarray, reference: ReferenceSpectrum) -> float:
    """Return the Wasserstein-1 distance of a spectrum (P, k) to the reference, in units of the reference's range."""
    kept = np.isfinite(values) & np.isfinite(weights) & (weights > 0)
    return (
        float(wasserstein_distance(values[kept], reference.values, weights[kept], reference.weights)) / reference.range
    )
