"""Curvature beside curvature and beside slope: the quotients that tables, files and figures share."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def curvature_ratio(lambda_min: ArrayLike, lambda_max: ArrayLike) -> np.ndarray:
    r"""Return :math:`\max(-\lambda_{\min}, 0) / \lambda_{\max}`: 0 without negative curvature, NaN without positive.

    Examples
    --------
    >>> curvature_ratio([-1.0, 1.0, -2.0], [4.0, 4.0, -1.0]).tolist()
    [0.25, 0.0, nan]
    """
    return _quotient(lambda_min, lambda_max)


def curvature_over_gradient(lambda_min: ArrayLike, gradient_norm: ArrayLike) -> np.ndarray:
    r"""Return :math:`\max(-\lambda_{\min}, 0) / |g|`: 0 without negative curvature, NaN where the gradient is 0.

    Examples
    --------
    >>> curvature_over_gradient([-1.0, 1.0, -1.0], [2.0, 2.0, 0.0]).tolist()
    [0.5, 0.0, nan]
    """
    return _quotient(lambda_min, gradient_norm)


def _quotient(lambda_min: ArrayLike, size: ArrayLike) -> np.ndarray:
    sizes = np.asarray(size, dtype=np.float64)
    low = np.asarray(lambda_min, dtype=np.float64)
    negative = np.where(low < 0, -low, low * 0.0)  # NaN stays, and there is no -0
    return np.abs(negative) / np.where(sizes > 0, sizes, np.nan)
