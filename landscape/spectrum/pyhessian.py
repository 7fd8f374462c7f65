"""PyHessian itself on our frozen data: the tool that most published per-class spectra come from, beside our own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from landscape.errors import LandscapeError
from landscape.results import Journal, keep_block, savable, validate, versions
from landscape.risk import LaneChoice, ModelRisk, lanes_of
from landscape.risk.arithmetic import differentiation
from landscape.spectrum.assembly import assemble
from landscape.spectrum.bridge import Batch, Criterion, PyHessianOutput, PyHessianSettings, require_used, run_pyhessian

NO_EVIDENCE = "PyHessian gives no residual: an extreme Ritz value without one proves no sign of curvature"


def trainable_copy(risk: ModelRisk) -> nn.Module:
    """Return a copy of a risk's network at its theta in which exactly the parameters under study need gradients."""
    model = copy.deepcopy(risk._model)
    point = risk.layout.named(risk.theta)
    for name, p in model.named_parameters():
        p.requires_grad_(name in point)
        if name in point:
            p.data.copy_(point[name])
    order = [name for name, p in model.named_parameters() if p.requires_grad]
    assert order == list(point), "the flat vector is not in the order of the parameters"
    return model


def mean_loss(risk: ModelRisk) -> Criterion:
    """Return the risk's loss as a criterion: the mean over a batch."""
    return lambda logits, labels: risk.loss(logits, labels).mean()


def rows_of_lane(risk: ModelRisk, row: Tensor, *, name: str = "lane") -> Tensor:
    """Return the rows of examples (N,) whose plain mean loss is the lane: one class, or classes pooled by examples.

    Raises
    ------
    LandscapeError
        For any other mixture, which a mean over a subset cannot express.
    """
    weights = row.double().cpu()
    counts = risk.class_counts.double().cpu()
    support = weights != 0
    pooled = torch.where(support, counts, 0.0)
    if not bool(support.any()) or not torch.allclose(weights, pooled / pooled.sum().clamp_min(1.0), atol=1e-12):
        raise LandscapeError(
            f"lane '{name}': PyHessian takes the mean loss of a set of examples, expected one class or classes pooled "
            f"by their examples, got weights {[round(w, 4) for w in weights.tolist()]}; take our own backend"
        )
    return torch.nonzero(support.to(risk._examples.labels.device)[risk._examples.labels])[:, 0]


class FrozenBatches:
    """The examples of some rows in batches, the same at every pass: PyHessian's ``dataloader``."""

    def __init__(self, risk: ModelRisk, rows: Tensor, batch_size: int) -> None:
        self._risk, self._parts = risk, rows.split(batch_size)

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Batch]:
        for part in self._parts:
            inputs: Any = self._risk._examples.read(part, self._risk.dtype)
            yield inputs, self._risk._examples.labels[part]


def measure_with_pyhessian(
    risk: ModelRisk,
    lane: Tensor | int,
    *,
    settings: PyHessianSettings | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    name: str = "lane",
    batches: Iterable[Batch] | None = None,
) -> dict[str, np.ndarray]:
    r"""Return one lane's spectrum as PyHessian measures it, in the names of our schema.

    Parameters
    ----------
    risk
        The network and the frozen data.
    lane
        Weights over classes (C,), or a class index.
    settings
        PyHessian's arguments; ``num_steps`` is cut to the number of parameters.
    batch_size
        None for one batch in memory, else batches of this size, whose graphs are rebuilt at every product.
    seed, name
        Root seed and lane name of its draws.
    batches
        Replaces the lane's frozen examples (the released protocol augments them anew at every pass).

    Returns
    -------
    dict of numpy.ndarray
        ``lambda_min`` and ``lambda_max`` are the extreme Ritz values of its density, ``trace`` is the mean of its
        probes, ``negative_energy`` comes from its raw nodes; what PyHessian does not estimate is NaN. Of our own:
        ``loss``, ``gradient_norm``, and ``pyhessian_top_residual`` :math:`|Hv - \lambda v|` for the pair that its
        power iteration returned, on the frozen data. ``num_hvps`` counts its products and that one of ours.

    Raises
    ------
    LandscapeError
        If the lane is a mixture, a parameter is unused, the inputs are not one tensor, or PyHessian fails.

    Notes
    -----
    Facts about PyHessian 0.1 that a reader of these numbers should know. 1. Its Lanczos couplings are taken before
    re-orthogonalisation and not corrected, it makes one Gram-Schmidt pass, and divides by :math:`|v| + 10^{-6}`: on
    Hessians of low rank it invents negative eigenvalues (-7.6 for a semidefinite matrix of rank 9 with
    :math:`\lambda_{\max} = 3.7`), and extremes of a loss scaled by 1e-6 come out 80 % too small. 2. Its power
    iteration stops when two Rayleigh quotients agree to the tolerance, and returns the one before; where
    :math:`\lambda_{\max} \approx -\lambda_{\min}` any number between them can come out. 3. Its trace compares the
    change with the signed mean: a negative trace stops it after two probes. 4. It reads ``.grad`` after a backward
    pass and puts the model into evaluation mode: operators built side by side on one model add up. Here each has
    a copy of its own. 5. A breakdown is recognised only if the coupling is exactly zero.

    Source: Yao, Gholami, Keutzer and Mahoney, *PyHessian: Neural Networks Through the Lens of the Hessian*, 2020.
    """
    settings = settings or PyHessianSettings()
    row = lane if isinstance(lane, Tensor) else torch.eye(len(risk.class_names), dtype=torch.float64)[lane]
    rows = rows_of_lane(risk, row, name=name)
    if isinstance(risk._examples.inputs, dict):
        raise LandscapeError("PyHessian takes one input tensor, got several named inputs: take our own backend")
    data: Batch | Iterable[Batch]
    if batches is not None:
        data = batches
    elif batch_size is not None:
        data = FrozenBatches(risk, rows, batch_size)
    else:
        data = next(iter(FrozenBatches(risk, rows, len(rows))))
    size = len(risk.theta)
    cut = PyHessianSettings(
        min(settings.num_steps, size), settings.num_probes, settings.max_iterations, settings.tolerance
    )
    model, criterion = trainable_copy(risk), mean_loss(risk)
    with differentiation():
        require_used(model, criterion, next(iter(FrozenBatches(risk, rows[:1], 1))))
    output = run_pyhessian(model, criterion, data, settings=cut, seed=seed, name=f"spectrum/{name}/pyhessian")
    return {**_statistics(output), **_context(risk, row, output)}


def _statistics(output: PyHessianOutput) -> dict[str, np.ndarray]:
    """Return what PyHessian's own numbers say."""
    values, weights = output.ritz_value, output.ritz_weight
    missing = (
        *(f"lambda_{end}_{part}" for end in ("min", "max") for part in ("low", "high", "error", "residual")),
        *("lambda_min_lower_bound", "trace_stderr"),
        *("noise_floor", "crossover_radius", "quadratic_radius", "negative_energy_stderr"),
    )
    energy = np.sum(weights * np.abs(values))
    found = {
        **dict.fromkeys(missing, np.nan),
        "lambda_min": values.min(),
        "lambda_max": values.max(),
        "trace": output.trace_samples.mean(),
        "negative_energy": np.sum(weights * np.maximum(-values, 0.0)) / energy if energy > 0 else 0.0,
        "verdict": "undecided",
        "evidence": NO_EVIDENCE,
        "ritz_value": values,
        "ritz_weight": weights,
        "pyhessian_top_eigenvalue": output.top_eigenvalue,
        **{f"pyhessian_{phase}_hvps": count for phase, count in output.num_hvps.items()},
    }
    return {key: np.asarray(value) for key, value in found.items()}


def _context(risk: ModelRisk, row: Tensor, output: PyHessianOutput) -> dict[str, np.ndarray]:
    """Return what our own products and passes say beside it: loss, gradient, residual of its top eigenpair."""
    weights = row.double().cpu()[None]
    support = torch.nonzero(weights[0])[:, 0].tolist()
    losses = risk.losses(risk.theta, support)
    gradient = risk.gradients(risk.theta, weights)[0]
    vector = output.top_eigenvector.to(risk.theta)
    vector = vector / torch.linalg.vector_norm(vector).clamp_min(torch.finfo(vector.dtype).tiny)
    product = risk.hvps(risk.theta, weights, vector[None])[0].double()
    residual = torch.linalg.vector_norm(product - output.top_eigenvalue * vector.double())
    return {
        "loss": np.asarray(float((weights[0, support] * losses[support]).sum())),
        "gradient_norm": np.asarray(float(torch.linalg.vector_norm(gradient.double()))),
        "pyhessian_top_residual": np.asarray(float(residual)),
        "num_hvps": np.asarray(sum(output.num_hvps.values()) + 1),
    }


@savable
def measure_spectrum_with_pyhessian(
    risk: ModelRisk,
    lanes: LaneChoice | None = "classes",
    *,
    settings: PyHessianSettings | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    journal: Journal | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> xr.Dataset:
    """Measure the spectra of several lanes with PyHessian: ``--backend pyhessian``.

    Parameters
    ----------
    risk, lanes
        As in :func:`landscape.measure_spectrum`; classes, and groups pooled by their examples.
    settings, batch_size, seed
        As in :func:`measure_with_pyhessian`.
    journal, progress
        As in :func:`landscape.measure_spectrum`.

    Returns
    -------
    xarray.Dataset
        With dimensions lane, probe, step, and ``backend="pyhessian"`` among its attributes; every verdict is
        ``undecided``.
    """
    if not isinstance(risk, ModelRisk):
        raise LandscapeError(f"PyHessian differentiates a network, expected a ModelRisk, got {type(risk).__name__}")
    chosen = lanes_of(risk, lanes, group_average="examples")
    settings = settings or PyHessianSettings()
    blocks = []
    for index, name in enumerate(chosen.names):

        def measure(row: Tensor = chosen.weights[index], name: str = name) -> dict[str, np.ndarray]:
            return measure_with_pyhessian(risk, row, settings=settings, batch_size=batch_size, seed=seed, name=name)

        blocks.append(keep_block(journal, f"pyhessian/lane={name}", measure))
        if progress is not None:
            progress(index + 1, len(chosen), f"spectrum of {name} with PyHessian")
    dataset = assemble(risk, chosen, blocks)
    dataset.attrs = {**risk.attributes, **backend_attributes(settings, seed, len(risk.theta))}
    return validate("spectrum", dataset)


def backend_attributes(settings: PyHessianSettings, seed: int, num_parameters: int) -> dict[str, Any]:
    """Return the attributes of every Dataset that PyHessian's numbers fill."""
    return {
        "kind": "spectrum",
        "backend": "pyhessian",
        "seed": seed,
        "group_average": "examples",
        "normalization": "none: mean loss per lane, curvature per squared weight",
        "num_parameters": num_parameters,
        "versions": versions(),
        **{f"option_{key}": value for key, value in vars(settings).items()},
    }
