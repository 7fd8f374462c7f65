"""Draws that mixing methods share: coefficients, class-weighted examples, boxes."""

from __future__ import annotations

import math

import torch
from scipy.special import betaincinv
from torch import Tensor


def draw_coefficient(alpha: float, generator: torch.Generator) -> float:
    """Return a draw of Beta(alpha, alpha): the inverse of its distribution function at a uniform number of ``generator``."""
    uniform = torch.rand((), dtype=torch.float64, generator=generator)
    return float(betaincinv(alpha, alpha, float(uniform)))


def dominant_labels(labels: Tensor, partner_labels: Tensor, coefficient: float) -> Tensor:
    """Return the labels of the images with the larger share, (B,); the first ones' at one half."""
    return labels if coefficient >= 0.5 else partner_labels


def draw_weighted_examples(labels: Tensor, class_counts: Tensor, power: float, generator: torch.Generator) -> Tensor:
    r"""Return as many examples as there are, drawn with replacement by :math:`n_y^{-\text{power}}`, (N,) int64.

    Power 1 is class-balanced, 0 uniform.
    """
    weights = class_counts.double().cpu() ** -power
    return torch.multinomial(weights[labels.cpu()], len(labels), replacement=True, generator=generator)


def draw_box(height: int, width: int, coefficient: float, generator: torch.Generator) -> tuple[slice, slice]:
    r"""Return rows and columns of a CutMix box around a random pixel, of the share 1 - coefficient of the image.

    As released for GLMC: the sides are :math:`2 \lfloor \lceil \sqrt{1 - \lambda}\, H \rceil / 2 \rfloor` pixels, and
    what lies outside the image is cut off.
    """
    share = math.sqrt(1.0 - coefficient)
    half = [math.ceil(size * share) // 2 for size in (height, width)]
    centre = [int(torch.randint(size, (), generator=generator)) for size in (height, width)]
    rows, columns = (slice(max(c - h, 0), min(c + h, size)) for c, h, size in zip(centre, half, (height, width)))
    return rows, columns
