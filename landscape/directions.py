"""Every formula of a weight perturbation, once: the optimizers and the analyses use the same ones.

All functions take and return a *tree*: a sequence of tensors, one per parameter tensor, in a fixed order. A flat
vector becomes a tree with :meth:`landscape.layout.ParameterLayout.unflatten`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Tree = Sequence[Tensor]

# The same guard as in the released SAM code; it only matters for an exactly zero gradient.
TINY = 1e-12


def tree_norm(tree: Tree) -> Tensor:
    r"""Return the joint Euclidean norm :math:`\sqrt{\sum_t \|x_t\|_2^2}`, a scalar tensor on the tree's device."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tree))))


def gradient_ascent(gradients: Tree, rho: float | Tensor) -> list[Tensor]:
    r"""Return :math:`\epsilon = \rho\, g / (\|g\|_2 + 10^{-12})`, norm joint over all tensors; zero where g = 0.

    Source: Foret et al., *Sharpness-Aware Minimization*, ICLR 2021, eq. 2 with p = 2. The released code divides by
    the norm, not by its square.
    """
    scale = rho / (tree_norm(gradients) + TINY)
    return [g * scale for g in gradients]


def adaptive_ascent(
    gradients: Tree,
    weights: Tree,
    rho: float | Tensor,
    *,
    eta: float = 0.01,
    is_scaled: Sequence[bool] | None = None,
) -> list[Tensor]:
    r"""Return :math:`\epsilon = \rho\, T_w^2 g / \|T_w g\|_2` with :math:`T_w = |w| + \eta`.

    ``is_scaled[t]`` says whether tensor t is rescaled (``T = 1`` otherwise); by default all are. With ``eta=0`` and
    all tensors rescaled this is the ``adaptive=True`` variant of a widely used re-implementation.

    Source: Kwon et al., *ASAM*, ICML 2021, eq. 8 and the released defaults (eta = 0.01; "weight" tensors only).
    """
    flags = [True] * len(gradients) if is_scaled is None else is_scaled
    scales = [w.abs() + eta if flag else torch.ones_like(w) for w, flag in zip(weights, flags)]
    scaled = [t * g for t, g in zip(scales, gradients)]
    factor = rho / (tree_norm(scaled) + TINY)
    return [t * s * factor for t, s in zip(scales, scaled)]


def class_conditional_ascent(
    gradients: Tree,
    class_counts: Tensor,
    *,
    theta_norm: Tensor,
    num_parameters: int,
    noise_ratio: float = 1.0,
    max_relative_radius: float | None = None,
) -> list[Tensor]:
    r"""Return, for each class, a step along its gradient that is longer the rarer the class is.

    .. math::

        \epsilon_c = \min(\nu r_c,\, m \|\theta\|_2)\, \frac{g_c}{\|g_c\|_2}, \qquad
        r_c = \sqrt{\frac{\|\theta\|_2}{2 \|g_c\|_2}}\; k^{1/4}\, (n_c - 1)^{-1/4}

    Parameters
    ----------
    gradients
        Tree of (K, *shape) tensors, row c the gradient of class c; each tensor is normalised by its own norm.
    class_counts
        Training examples n_c of each class, (K,).
    theta_norm, num_parameters
        Joint norm of the perturbed parameters, a scalar, and their number k.
    noise_ratio
        Factor nu of the radius; 1 is the paper's formula.
    max_relative_radius
        Bound m of the radius of each tensor, in units of ``theta_norm``; None does not bound.

    Returns
    -------
    list of Tensor
        Tree of (K, *shape) tensors; rows with a zero gradient are zero.

    Notes
    -----
    Source: Zhou et al., *Class-Conditional Sharpness-Aware Minimization for Deep Long-Tailed
    Recognition*, CVPR 2023, the optimal radius, with the norms taken per tensor as in the released code.
    Differs from the release in:

    1. A class with one example (infinite there) counts as one with two.
    2. A zero gradient (NaN there) gives a zero step.
    3. The bound. The radius grows like the inverse root of the gradient, so without it the better a class is fitted,
       the farther it is pushed away.
    """
    # In the gradients' precision: dividing by an integer tensor would round to the default dtype.
    rarity = (num_parameters / (class_counts - 1).clamp_min(1).to(gradients[0].dtype)) ** 0.25
    steps = []
    for gradient in gradients:
        norms = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        guarded = torch.where(norms > 0, norms, 1)
        radii = noise_ratio * torch.sqrt(theta_norm / (2 * guarded)) * rarity
        if max_relative_radius is not None:
            radii = torch.minimum(radii, max_relative_radius * theta_norm)
        steps.append(gradient * (radii / guarded).reshape(-1, *[1] * (gradient.dim() - 1)))
    return steps


def gaussian(shapes_like: Tree, generator: torch.Generator, *, sigma: float, clip: float | None = None) -> list[Tensor]:
    r"""Return i.i.d. draws of :math:`N(0, \sigma^2)`, clipped elementwise to ``[-clip, clip]`` if given.

    Drawn on the generator's device and moved to each tensor's own device and dtype.
    """
    draws = []
    for tensor in shapes_like:
        draw = torch.randn(tensor.shape, generator=generator, device=generator.device, dtype=tensor.dtype) * sigma
        if clip is not None:
            draw = draw.clamp_(-clip, clip)
        draws.append(draw.to(tensor.device))
    return draws


def filter_norms(tensor: Tensor) -> Tensor:
    """Return the norm of every output filter (slices along dim 0), shaped to broadcast; a 1-D tensor is one filter.

    A convolution kernel (out, in, kh, kw) and a linear weight (out, in) have ``out`` filters.
    """
    if tensor.dim() <= 1:
        return torch.linalg.vector_norm(tensor)
    norms = torch.linalg.vector_norm(tensor.flatten(1), dim=1)
    return norms.reshape(-1, *[1] * (tensor.dim() - 1))


def filter_normalised(
    draws: Tree,
    weights: Tree,
    *,
    one_dimensional: Literal["zero", "scale"] = "zero",
    filter_dims: Sequence[int] | None = None,
) -> list[Tensor]:
    r"""Rescale each filter f of a random direction to the norm of the same filter of the weights.

    .. math:: d_f \leftarrow d_f \, \|w_f\|_2 / \|d_f\|_2

    Parameters
    ----------
    draws, weights
        Trees of equal shapes: the raw direction and the weights at the centre.
    one_dimensional
        ``"zero"`` leaves biases and normalisation-layer parameters unmoved (the published choice, there called
        ``biasbn``); ``"scale"`` treats each such tensor as one filter.
    filter_dims
        The output dimension of each tensor, 0 by default. A cosine head stores its weight as (features, classes),
        so its classes lie along dimension 1.

    Notes
    -----
    Source: Li et al., *Visualizing the Loss Landscape of Neural Nets*, NeurIPS 2018, section 4.
    """
    result = []
    for i, (draw, weight) in enumerate(zip(draws, weights)):
        if weight.dim() <= 1 and one_dimensional == "zero":
            result.append(torch.zeros_like(weight))
            continue
        dim = filter_dims[i] if filter_dims is not None and weight.dim() > 1 else 0
        d, w = draw.movedim(dim, 0), weight.movedim(dim, 0)
        result.append((d * (filter_norms(w) / filter_norms(d).clamp_min(TINY))).movedim(0, dim))
    return result


def orthogonal_by_filter(draws: Tree, others: Tree, *, filter_dims: Sequence[int] | None = None) -> list[Tensor]:
    r"""Remove from each filter of a direction its part along the same filter of another one.

    Rescaling whole filters afterwards keeps the two orthogonal, filter by filter and hence altogether, so that a
    plane's axes are both exactly filter-normalised and exactly orthogonal. Filters of a single weight are left as
    they are (nothing in them is orthogonal to the other).
    """
    result = []
    for i, (draw, other) in enumerate(zip(draws, others)):
        dim = filter_dims[i] if filter_dims is not None and draw.dim() > 1 else 0
        d, o = draw.movedim(dim, 0), other.movedim(dim, 0)
        axes = tuple(range(1, d.dim())) if d.dim() > 1 else (0,)
        if d.numel() // (d.shape[0] if d.dim() > 1 else 1) > 1:
            square = (o * o).sum(axes, keepdim=True).clamp_min(TINY)
            for _ in range(2):
                d = d - (d * o).sum(axes, keepdim=True) / square * o
        result.append(d.movedim(0, dim))
    return result
