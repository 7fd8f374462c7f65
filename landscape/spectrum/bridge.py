"""The bridge to PyHessian: its three estimators run as they are, on this PyTorch, and nothing of it stays behind."""

from __future__ import annotations

import copy
import gc
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError
from landscape.randomness import stream
from landscape.risk.arithmetic import differentiation, random_states_kept

Batch = tuple[Tensor, Tensor]
Criterion = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PyHessianSettings:
    """The arguments of PyHessian's three estimators; the defaults are its own and those of the released analysis.

    Attributes
    ----------
    num_steps, num_probes
        Lanczos steps and runs of ``density`` (``iter``, ``n_v``).
    max_iterations, tolerance
        Of the power iteration and of the Hutchinson probes (``maxIter``, ``tol``).
    """

    num_steps: int = 100
    num_probes: int = 1
    max_iterations: int = 100
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if self.num_steps < 2 or self.num_probes < 1 or self.max_iterations < 1:
            raise LandscapeError(
                "PyHessian: expected num_steps >= 2, num_probes >= 1 and max_iterations >= 1, got "
                f"{self.num_steps}, {self.num_probes} and {self.max_iterations}"
            )
        if not self.tolerance > 0:
            raise LandscapeError(f"PyHessian: expected a positive tolerance, got {self.tolerance}")


@dataclass(frozen=True)
class PyHessianOutput:
    """What PyHessian returned for one operator, unchanged but for its types.

    Attributes
    ----------
    top_eigenvalue, top_eigenvector
        Of its power iteration; the vector (n,) in the order of the model's parameters.
    trace_samples
        (k,) values v'Hv of its Rademacher probes, as many as it drew before it stopped.
    ritz_value, ritz_weight
        (num_probes, num_steps) nodes and weights of its density.
    num_hvps
        Products per phase, counted where PyHessian takes them.
    """

    top_eigenvalue: float
    top_eigenvector: Tensor
    trace_samples: np.ndarray
    ritz_value: np.ndarray
    ritz_weight: np.ndarray
    num_hvps: dict[str, int] = field(default_factory=dict)


def _require_package() -> Any:
    try:
        import pyhessian
    except ImportError:
        raise LandscapeError("the PyHessian backend needs the package: expected `pip install pyhessian`") from None
    return pyhessian


def _eig(matrix: Tensor, eigenvectors: bool = False, *, out: Any = None) -> tuple[Tensor, Tensor]:
    """Return what ``torch.eig`` returned for the symmetric part: values (n, 2) as real and imaginary, vectors by column."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return torch.stack([values, torch.zeros_like(values)], dim=1), vectors


@contextmanager
def bridged(dtype: torch.dtype = torch.float32) -> Iterator[list[int]]:
    """Make PyHessian run on this PyTorch, and count its single-batch products in the list that is given.

    ``torch.eig`` was removed; for the duration it is the symmetric eigendecomposition with the old return convention.
    PyTorch's default dtype is ``dtype``, because PyHessian's draws and its T follow it. The warning about a reference
    cycle is silenced, the cycle is broken by the caller. Everything is put back.

    Examples
    --------
    >>> before = torch.eig
    >>> with bridged():
    ...     values, vectors = torch.eig(torch.tensor([[0.0, 2.0], [2.0, 0.0]]), eigenvectors=True)
    >>> values.tolist(), torch.eig is before
    ([[-2.0, 0.0], [2.0, 0.0]], True)
    """
    _require_package()
    module: Any = sys.modules["pyhessian.hessian"]  # the package's own name for it is the class
    removed, default, product = getattr(torch, "eig", None), torch.get_default_dtype(), module.hessian_vector_product
    count = [0]

    def counted(*arguments: Any) -> Any:
        count[0] += 1
        return product(*arguments)

    old: Any = torch
    try:
        old.eig = _eig
        torch.set_default_dtype(dtype)
        module.hessian_vector_product = counted
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph=True")
            warnings.filterwarnings("ignore", category=np.exceptions.ComplexWarning)
            yield count
    finally:
        module.hessian_vector_product = product
        torch.set_default_dtype(default)
        if removed is None:
            del old.eig
        else:
            old.eig = removed


def require_used(model: nn.Module, criterion: Criterion, batch: Batch) -> None:
    """Refuse a model with a parameter whose gradient PyHessian would take for the number 0."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    loss = criterion(model(batch[0]), batch[1])
    gradients = (
        torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
        if loss.requires_grad
        else [None] * len(named)
    )
    unused = [name for (name, _), gradient in zip(named, gradients) if gradient is None]
    if unused:
        raise LandscapeError(
            f"PyHessian cannot run: the loss does not use the parameter '{unused[0]}' ({len(unused)} in all); "
            "expected every chosen parameter in use, choose others with params, or take our own backend"
        )


def _seed_global_draws(seed: int, name: str, device: torch.device) -> None:
    # PyHessian draws from the global generators; their states are the caller's again afterwards.
    torch.set_rng_state(stream(seed, name).get_state())
    if device.type == "cuda":
        torch.cuda.set_rng_state(stream(seed, name, device).get_state(), device)


def run_pyhessian(
    model: nn.Module,
    criterion: Criterion,
    batches: Batch | Iterable[Batch],
    *,
    settings: PyHessianSettings | None = None,
    seed: int = 0,
    name: str = "pyhessian",
) -> PyHessianOutput:
    """Run PyHessian's ``eigenvalues``, ``trace`` and ``density`` on one operator, and leave no trace of it.

    Parameters
    ----------
    model
        Copied first; parameters that need no gradient stay fixed.
    criterion
        (logits (B, C), labels (B,)) -> mean loss, a number.
    batches
        ``(inputs, labels)``: one batch whose graph is kept (PyHessian's fastest way), or an iterable of batches that
        is gone through anew at every product (its ``dataloader``; batches are weighted by their size).
    settings
        Its arguments.
    seed, name
        Root seed and prefix of the streams that its global draws are seeded with, one per estimator.

    Raises
    ------
    LandscapeError
        If the package is missing, a parameter is unused, or PyHessian fails or returns what is not finite.
    """
    package = _require_package()
    settings = settings or PyHessianSettings()
    own = copy.deepcopy(model).eval()
    device, dtype = next((p.device, p.dtype) for p in own.parameters() if p.requires_grad)
    with differentiation(), random_states_kept(device), bridged(dtype) as count:
        if isinstance(batches, tuple):
            require_used(own, criterion, batches)
        try:
            found, spent = _call_all(package.hessian, own, criterion, batches, settings, (seed, name), count)
        except (RuntimeError, AssertionError, TypeError, AttributeError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise LandscapeError(f"PyHessian failed on this model ({line}): take our own backend") from error
        finally:
            for p in own.parameters():  # its gradients hold the graph, which holds the parameters
                p.grad = None
    values, vectors = found["eigenvalues"]
    output = PyHessianOutput(
        top_eigenvalue=float(values[0]),
        top_eigenvector=torch.cat([part.detach().reshape(-1) for part in vectors[0]]),
        trace_samples=np.asarray(found["trace"], dtype=np.float64),
        ritz_value=np.asarray(found["density"][0], dtype=np.float64),
        ritz_weight=np.asarray(found["density"][1], dtype=np.float64),
        num_hvps=spent,
    )
    gc.collect()  # the cycle of parameters and graphs is broken, what hung on it goes now
    if not (np.isfinite(output.ritz_value).all() and np.isfinite(output.trace_samples).all()):
        raise LandscapeError("PyHessian returned values that are not finite: the loss overflows at these weights")
    return output


def _call_all(
    hessian: Any,
    model: nn.Module,
    criterion: Criterion,
    batches: Batch | Iterable[Batch],
    settings: PyHessianSettings,
    stream_name: tuple[int, str],
    count: list[int],
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return what each estimator returned and how many products it took."""
    device = next(p.device for p in model.parameters())
    data = {"data": batches} if isinstance(batches, tuple) else {"dataloader": batches}
    operator = hessian(model, criterion, cuda=device.type == "cuda", **data)
    if not isinstance(batches, tuple):
        whole = operator.dataloader_hv_product

        def counted(vector: Any) -> Any:
            count[0] += 1
            return whole(vector)

        operator.dataloader_hv_product = counted
    calls: dict[str, Callable[[], Any]] = {
        "eigenvalues": lambda: operator.eigenvalues(maxIter=settings.max_iterations, tol=settings.tolerance),
        "trace": lambda: operator.trace(maxIter=settings.max_iterations, tol=settings.tolerance),
        "density": lambda: operator.density(iter=settings.num_steps, n_v=settings.num_probes),
    }
    found: dict[str, Any] = {}
    spent: dict[str, int] = {}
    seed, name = stream_name
    for phase, call in calls.items():
        _seed_global_draws(seed, f"{name}/{phase}", device)
        before = count[0]
        found[phase] = call()
        spent[phase] = count[0] - before
    return found, spent
