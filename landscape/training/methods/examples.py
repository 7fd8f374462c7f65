"""Which examples a method asks for, and which class a mixed one is taken for."""

from __future__ import annotations

import torch
from torch import Tensor


def dominant_labels(labels: Tensor, partner_labels: Tensor, shares: Tensor) -> Tensor:
    """Return the labels of the images with the larger share, (B,); the first ones' at one half."""
    return torch.where(shares >= 0.5, labels, partner_labels)


def draw_weighted_examples(labels: Tensor, class_counts: Tensor, power: float, generator: torch.Generator) -> Tensor:
    r"""Return as many examples as there are, drawn with replacement by :math:`n_y^{-\text{power}}`, (N,) int64.

    Power 1 is class-balanced, 0 uniform.
    """
    weights = class_counts.double().cpu() ** -power
    return torch.multinomial(weights[labels.cpu()], len(labels), replacement=True, generator=generator)
