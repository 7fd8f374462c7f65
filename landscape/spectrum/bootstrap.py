"""Which images make a curvature, and how far it depends on the images that happened to be drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.stats
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.risk import ClassRisk
from landscape.risk.arithmetic import differentiation
from landscape.risk.kernels import TwiceDifferentiable
from landscape.risk.taylor import nested_product

# Elements of one block of resamples: bounds the memory, not the result.
BLOCK_ELEMENTS = 1 << 22
# Resampled quantiles count up to this multiple of Student's: a resample may hold hardly different images, and has next to
# no spread. Chosen in the study of coverage (analyses/benchmarks/coverage.py): at 2 classes of 4 images are covered 0.06
# less often, without any limit intervals of 10 images may be 50 standard errors wide for the same coverage.
MOST_STUDENTS = 5.0
# Spread of a resample, relative to that of the images, below which it is rounding.
ROUNDING = 1e-10
# Examples per graph where forward differentiation is missing.
REVERSE_CHUNK = 32


@dataclass(frozen=True)
class ImageInterval:
    """A mean over images with its interval over redrawn images.

    Attributes
    ----------
    mean, lower, upper, stderr
        The mean, its interval and its standard error; NaN but for the mean where there is only one image.
    num_images
        Images behind it.
    """

    mean: float
    lower: float
    upper: float
    stderr: float
    num_images: int


def bootstrap_mean(
    values: np.ndarray, generator: np.random.Generator, *, level: float = 0.95, num_resamples: int = 2000
) -> ImageInterval:
    r"""Return the mean of per-image values with a studentised bootstrap interval.

    Resample r has mean :math:`m_r` and standard error :math:`s_r`; with the quantiles of
    :math:`t_r = (m_r - m) / s_r` the interval is :math:`[m - t_{1-\alpha/2}\, s,\; m - t_{\alpha/2}\, s]`, never
    narrower than Student's and at most five times as wide, as for the surfaces of kept examples
    (:mod:`landscape.surface.resampling`).

    Parameters
    ----------
    values
        (n,) one number per image.
    generator
        From :func:`landscape.randomness.numpy_stream`.
    level
        Confidence.
    num_resamples
        Resamples.

    Raises
    ------
    LandscapeError
        For no images, values that are not finite, or a level outside (0, 1).

    Notes
    -----
    Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, section 12.5. The images are taken as independent
    draws of their class, the direction as given: it was chosen on the same images, which this does not see.

    Examples
    --------
    >>> interval = bootstrap_mean(np.arange(9.0), np.random.default_rng(0))
    >>> interval.mean, bool(interval.lower < 4.0 < interval.upper)
    (4.0, True)
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise LandscapeError(f"bootstrap: expected finite values (n,) of at least one image, got {values!r:.60}")
    if not 0 < level < 1:
        raise LandscapeError(f"level: expected a probability between 0 and 1, got {level}")
    num_images, mean = len(values), float(values.mean())
    if num_images == 1:
        return ImageInterval(mean, math.nan, math.nan, math.nan, 1)
    stderr = float(values.std(ddof=1)) / math.sqrt(num_images)
    if stderr == 0.0:
        return ImageInterval(mean, mean, mean, 0.0, num_images)
    tail = (1 - level) / 2
    statistics = _studentised(values - mean, generator, num_resamples)
    low, high = np.quantile(statistics, [tail, 1 - tail]) if len(statistics) else (math.nan, math.nan)
    low, high = map(float, held_to_student(low, high, num_images - 1, level=level))
    return ImageInterval(mean, mean - high * stderr, mean - low * stderr, stderr, num_images)


def held_to_student(
    low: ArrayLike, high: ArrayLike, degrees: ArrayLike, *, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the two quantiles of a bootstrap's t, at least Student's and at most five times as far out.

    Quantiles that are NaN, of no resample with any spread, are Student's.
    """
    student = scipy.stats.t.ppf((1 + level) / 2, degrees)
    return (
        -np.clip(np.nan_to_num(-np.asarray(low)), student, MOST_STUDENTS * student),
        np.clip(np.nan_to_num(np.asarray(high)), student, MOST_STUDENTS * student),
    )


def _studentised(centred: np.ndarray, generator: np.random.Generator, num_resamples: int) -> np.ndarray:
    """Return t of every resample that does not consist of one value alone."""
    size = len(centred)
    floor = ROUNDING * float(centred.std(ddof=1))
    block = max(1, BLOCK_ELEMENTS // size)
    parts = []
    for start in range(0, num_resamples, block):
        draws = centred[generator.integers(size, size=(min(block, num_resamples - start), size))]
        means, spreads = draws.mean(1), draws.std(1, ddof=1)
        kept = spreads > floor
        parts.append(means[kept] / (spreads[kept] / math.sqrt(size)))
    return np.concatenate(parts)


def most_negative(values: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """Return the images of the most negative values, worst first, and their share of all that is negative.

    Parameters
    ----------
    values
        (n,) per-image curvatures.
    count
        At most this many; images of positive curvature are never among them.

    Examples
    --------
    >>> images, share = most_negative(np.array([1.0, -3.0, -1.0, 2.0]), 1)
    >>> images.tolist(), share
    ([1], 0.75)
    """
    order = np.argsort(values, kind="stable")[: max(count, 0)]
    order = order[values[order] < 0]
    total = float(np.minimum(values, 0).sum())
    return order, float(values[order].sum()) / total if total < 0 else 0.0


def per_example_curvatures(risk: ClassRisk, row: Tensor, v: Tensor) -> np.ndarray | None:
    r"""Return :math:`q_i = v^T H_i v` for every example of a lane; their mean is the lane's v'Hv.

    Each is the second derivative of one example's loss along the line :math:`\theta + s v` at s = 0, for all examples
    at once by forward differentiation twice: the cost of a few forward passes, no graph. Where an operation has
    no forward derivative, two backward passes per example.

    Parameters
    ----------
    risk
        A network's risk; an analytic one has no examples.
    row
        (C,) weights over classes. Where they are not in proportion to the examples, an example's value carries its
        weight times the number of examples.
    v
        (n,) direction.

    Returns
    -------
    numpy.ndarray or None
        (n_lane,) float64 in the order of the risk's rows (several per example where it holds redrawn ones); None for a
        risk without examples.
    """
    if not hasattr(risk, "per_example"):
        return None
    theta = risk.theta.detach()
    direction = v.detach().to(theta)
    counts = risk.class_counts.tolist()
    draws = int(getattr(risk, "draws_per_example", 1))
    bounds = np.concatenate([[0], np.cumsum(counts)]) * draws
    support = [c for c in torch.nonzero(row)[:, 0].tolist() if counts[c]]
    total = sum(counts[c] for c in support)
    chunk_size = int(getattr(risk, "chunk_size", 256))
    parts = []
    with differentiation(), TwiceDifferentiable():
        for c in support:
            values = [
                _along_line(risk.per_example, theta, direction, slice(first, min(first + chunk_size, bounds[c + 1])))
                for first in range(int(bounds[c]), int(bounds[c + 1]), chunk_size)
            ]
            parts.append(torch.cat(values).double() * (float(row[c]) * total / counts[c]))
    return torch.cat(parts).cpu().numpy() if parts else np.zeros(0)


def _along_line(
    per_example: Callable[[Tensor, slice], Tensor], theta: Tensor, direction: Tensor, rows: slice
) -> Tensor:
    """Return the second derivatives (rows,) of the losses at theta + s direction at s = 0."""
    zero = torch.zeros((), dtype=theta.dtype, device=theta.device)
    one = torch.ones_like(zero)

    def losses(s: Tensor) -> Tensor:
        return per_example(theta + s * direction, rows)

    try:
        return nested_product(losses, zero, one, one)[3]
    except (NotImplementedError, RuntimeError):  # an operation without a forward derivative
        return _by_backward(per_example, theta, direction, rows)


def _by_backward(
    per_example: Callable[[Tensor, slice], Tensor], theta: Tensor, direction: Tensor, rows: slice
) -> Tensor:
    parts = []
    for first in range(rows.start, rows.stop, REVERSE_CHUNK):
        s = torch.zeros((), dtype=theta.dtype, device=theta.device, requires_grad=True)
        chunk = per_example(theta + s * direction, slice(first, min(first + REVERSE_CHUNK, rows.stop)))
        for loss in chunk.unbind():
            slope = torch.autograd.grad(loss, s, create_graph=True, materialize_grads=True)[0]
            curvature = torch.zeros_like(slope)
            if slope.requires_grad:
                curvature = torch.autograd.grad(slope, s, retain_graph=True, materialize_grads=True)[0]
            parts.append(curvature.detach())
    return torch.stack(parts)
