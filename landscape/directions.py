"""Every formula of a weight perturbation, once: the optimizers and the analyses use the same ones.

All functions take and return a *tree*: a sequence of tensors, one per parameter tensor, in a fixed order. A flat
vector becomes a tree with :meth:`landscape.layout.ParameterLayout.unflatten`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Tree = Sequence[Tensor]

# The dimension, or dimensions, of a tensor that number its filters; () marks a shift or scale, which is no filter.
FilterDims = int | tuple[int, ...]
Normalization = Literal["filter", "layer", "model", "gaussian"]
OneDimensional = Literal["zero", "scale"]
ClassNorms = Literal["per-tensor", "joint"]

# What each normalisation does, in words for results and figures.
NORMALIZATIONS: dict[Normalization, str] = {
    "filter": "filter-normalised",
    "layer": "layer-normalised (each tensor has the norm of its weights)",
    "model": "model-normalised (all moved tensors together have the norm of their weights)",
    "gaussian": "Gaussian of unit variance per weight",
}

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
    return list(torch._foreach_mul(list(gradients), scale))


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
    chosen = [t for t, flag in enumerate(flags) if flag]
    step = list(gradients)
    scales = torch._foreach_abs([weights[t] for t in chosen]) if chosen else ()
    if chosen:
        torch._foreach_add_(scales, eta)
        for t, product in zip(chosen, torch._foreach_mul([step[t] for t in chosen], scales)):
            step[t] = product
    factor = rho / (tree_norm(step) + TINY)
    if chosen:
        for t, product in zip(chosen, torch._foreach_mul([step[t] for t in chosen], scales)):
            step[t] = product
    return list(torch._foreach_mul(step, factor))


def sign_ascent(gradients: Tree, rho: float | Tensor) -> list[Tensor]:
    r"""Return :math:`\epsilon = \rho\, \mathrm{sign}(g)`: the steepest step of length rho in the maximum norm.

    Source: Foret et al., *Sharpness-Aware Minimization*, ICLR 2021, eq. 2 with p = infinity.
    """
    return [g.sign() * rho for g in gradients]


def class_conditional_ascent(
    gradients: Tree,
    class_counts: Tensor,
    *,
    theta_norm: Tensor,
    num_parameters: int,
    noise_ratio: float = 1.0,
    max_relative_radius: float | None = None,
    norms: ClassNorms = "per-tensor",
) -> list[Tensor]:
    r"""Return, for each class, a step along its gradient that is longer the rarer the class is.

    .. math::

        \epsilon_c = \min(\nu r_c,\, m \|\theta\|_2)\, \frac{g_c}{\|g_c\|_2}, \qquad
        r_c = \sqrt{\frac{\|\theta\|_2}{2 \|g_c\|_2}}\; k^{1/4}\, (n_c - 1)^{-1/4}

    Parameters
    ----------
    gradients
        Tree of (K, *shape) tensors, row c the gradient of class c.
    class_counts
        Training examples n_c of each class, (K,).
    theta_norm, num_parameters
        Joint norm of the perturbed parameters, a scalar, and their number k.
    noise_ratio
        Factor nu of the radius; 1 is the paper's formula.
    max_relative_radius
        Bound m of the radius (of each tensor, if the norms are), in units of ``theta_norm``; None does not bound.
    norms
        ``"per-tensor"``: each tensor is normalised by its own norm, and its radius is that of this norm (as released);
        ``"joint"``: one norm of g_c over all tensors (as in the formula).

    Returns
    -------
    list of Tensor
        Tree of (K, *shape) tensors; rows with a zero gradient are zero.

    Notes
    -----
    Source: Zhou et al., *Class-Conditional Sharpness-Aware Minimization for Deep Long-Tailed
    Recognition*, CVPR 2023, the optimal radius. The released code's norm of theta is joint (its first version took that
    one per tensor, too).
    Differs from the release in:

    1. A class with one example (infinite there) counts as one with two.
    2. A zero gradient (NaN there) gives a zero step.
    3. The bound. The radius grows like the inverse root of the gradient, so without it the better a class is fitted,
       the farther it is pushed away.
    """
    lengths = class_norms(gradients, norms)
    radii = [
        class_conditional_radii(
            length,
            class_counts,
            theta_norm=theta_norm,
            num_parameters=num_parameters,
            noise_ratio=noise_ratio,
            max_relative_radius=max_relative_radius,
        )
        for length in lengths
    ]
    return class_steps(gradients, radii, lengths)


def class_norms(gradients: Tree, norms: ClassNorms) -> list[Tensor]:
    """Return the norm of each class's gradient, (K,) per tensor; ``joint``: over all tensors, the same for each."""
    per_tensor = [torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients]
    if norms == "per-tensor":
        return per_tensor
    return [torch.linalg.vector_norm(torch.stack(per_tensor), dim=0)] * len(gradients)


def class_conditional_radii(
    gradient_norms: Tensor,
    class_counts: Tensor,
    *,
    theta_norm: Tensor,
    num_parameters: int,
    noise_ratio: float = 1.0,
    max_relative_radius: float | None = None,
) -> Tensor:
    """Return the length of each class's step, (K,), as in :func:`class_conditional_ascent`; a norm of 0 counts as 1."""
    # In the gradients' precision: dividing by an integer tensor would round to the default dtype.
    rarity = (num_parameters / (class_counts - 1).clamp_min(1).to(gradient_norms.dtype)) ** 0.25
    guarded = torch.where(gradient_norms > 0, gradient_norms, 1)
    radii = noise_ratio * torch.sqrt(theta_norm / (2 * guarded)) * rarity
    return radii if max_relative_radius is None else torch.minimum(radii, max_relative_radius * theta_norm)


def class_steps(directions: Tree, radii: Tree, lengths: Tree) -> list[Tensor]:
    """Return the directions of each class, (K, *shape) tensors of the given lengths (K,), rescaled to the radii (K,)."""
    return [
        direction * (radius / torch.where(length > 0, length, 1)).reshape(-1, *[1] * (direction.dim() - 1))
        for direction, radius, length in zip(directions, radii, lengths)
    ]


def gaussian(shapes_like: Tree, generator: torch.Generator, *, sigma: float, clip: float | None = None) -> list[Tensor]:
    r"""Return i.i.d. draws of :math:`N(0, \sigma^2)`, clipped elementwise to ``[-clip, clip]`` if given.

    Drawn on the generator's device, tensor by tensor, and moved to each tensor's own device and dtype.
    """
    place = generator.device
    draws = [torch.randn(t.shape, generator=generator, device=place, dtype=t.dtype) for t in shapes_like]
    if not draws:
        return draws
    torch._foreach_mul_(draws, sigma)
    if clip is not None:
        torch._foreach_clamp_min_(draws, -clip)
        torch._foreach_clamp_max_(draws, clip)
    return [draw.to(t.device) for draw, t in zip(draws, shapes_like)]


def _axes_within(tensor: Tensor, dims: FilterDims) -> tuple[int, ...]:
    """Return the dimensions that lie within one filter; a tensor of at most one dimension is one filter."""
    if tensor.dim() <= 1 or dims == ():
        return tuple(range(tensor.dim()))
    kept = (dims,) if isinstance(dims, int) else dims
    return tuple(axis for axis in range(tensor.dim()) if axis not in kept)


def has_filters(weight: Tensor, dims: FilterDims = 0) -> bool:
    """Whether a tensor is made of filters, and not a bias or the affine parameters of a normalisation layer."""
    return weight.dim() > 1 and dims != ()


def filter_norms(tensor: Tensor, dims: FilterDims = 0) -> Tensor:
    """Return the norm of every filter, shaped to broadcast; a 1-D tensor is one filter.

    A convolution kernel (out, in, kh, kw) and a linear weight (out, in) have ``out`` filters, numbered by dimension 0;
    prompts (layers, tokens, d) have one filter per token of each layer, numbered by the dimensions ``(0, 1)``.
    """
    axes = _axes_within(tensor, dims)
    return torch.linalg.vector_norm(tensor, dim=axes, keepdim=True) if axes else tensor.abs()


def filter_normalised(
    draws: Tree,
    weights: Tree,
    *,
    one_dimensional: OneDimensional = "zero",
    filter_dims: Sequence[FilterDims] | None = None,
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
        The dimension, or dimensions, that number the filters of each tensor, 0 by default. A cosine head stores its
        weight as (features, classes), so its classes lie along dimension 1.

    Notes
    -----
    Source: Li et al., *Visualizing the Loss Landscape of Neural Nets*, NeurIPS 2018, section 4.
    """
    result = []
    for draw, weight, dims in zip(draws, weights, filter_dims or [0] * len(weights)):
        if one_dimensional == "zero" and not has_filters(weight, dims):
            result.append(torch.zeros_like(weight))
        else:
            result.append(draw * (filter_norms(weight, dims) / filter_norms(draw, dims).clamp_min(TINY)))
    return result


def layer_normalised(draws: Tree, weights: Tree) -> list[Tensor]:
    r"""Rescale each tensor t of a random direction to the norm of the same tensor of the weights.

    .. math:: d_t \leftarrow d_t \, \|w_t\|_2 / \|d_t\|_2

    A tensor of zeros stays zero. Source: the option ``layer`` of the code of Li et al., NeurIPS 2018.
    """
    scales = [_norm64(w) / _norm64(d).clamp_min(TINY) for d, w in zip(draws, weights)]
    return [d * scale.to(d.dtype) for d, scale in zip(draws, scales)]


def model_normalised(draws: Tree, weights: Tree) -> list[Tensor]:
    r"""Rescale a random direction as a whole to the norm of those weights that it moves.

    .. math:: d \leftarrow d \, \frac{(\sum_{t \in M} \|w_t\|_2^2)^{1/2}}{(\sum_{t \in M} \|d_t\|_2^2)^{1/2}},
              \qquad M = \{t : d_t \neq 0\}

    Filter-, layer- and model-normalised directions that move the same tensors hence have one and the same length, and
    only share it out differently.
    """
    moved = torch.stack([d.any() for d in draws])
    theirs = torch.stack([_norm64(w) for w in weights]).masked_fill(~moved, 0)
    scale = torch.linalg.vector_norm(theirs) / tree_norm([_norm64(d) for d in draws]).clamp_min(TINY)
    return [d * scale.to(d.dtype) for d in draws]


def _norm64(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.float64)


def random_tree(
    weights: Tree,
    generator: torch.Generator,
    *,
    normalization: Normalization = "filter",
    one_dimensional: OneDimensional = "zero",
    filter_dims: Sequence[FilterDims] | None = None,
    orthogonal_to: Sequence[Tree] = (),
) -> list[Tensor]:
    r"""Draw a Gaussian direction, make it orthogonal to others, and normalise it; the order keeps both exact.

    The parts along other directions are removed from each unit that is rescaled on its own (filter, tensor, or the
    whole), so that rescaling keeps the directions orthogonal unit by unit and hence altogether.

    Parameters
    ----------
    weights
        Tree of the weights at the centre; they give shapes, dtype, device and norms.
    generator
        Where the draws come from: one N(0, 1) number per weight in float32, whatever the dtype, the normalisation and
        the weights. Two networks of one architecture hence see the same raw draws.
    normalization
        ``"filter"`` (:func:`filter_normalised`), ``"layer"`` (:func:`layer_normalised`), ``"model"``
        (:func:`model_normalised`), or ``"gaussian"``: unit variance per weight, not rescaled, so that the direction has
        the length of about the root of the number of weights.
    one_dimensional
        ``"zero"`` leaves biases and normalisation layers unmoved; ``"scale"`` moves them like any other tensor (each is
        one filter). Where the tree has no filters at all (a toy, a choice of biases), all of it moves, and a tensor of
        zeros counts as one of norm 1.
    filter_dims
        As in :func:`filter_normalised`.
    orthogonal_to
        Trees that have been normalised likewise.

    Returns
    -------
    list of Tensor
        Tree in the dtype and on the device of ``weights``.
    """
    all_dims = list(filter_dims or [0] * len(weights))
    # Drawn in float32 whatever the analysis computes in: both precisions then look along the same directions.
    raw = gaussian([w.float() for w in weights], generator, sigma=1.0)
    draws = [d.to(w.dtype) for d, w in zip(raw, weights)]
    are_filters = [has_filters(w, dims) for w, dims in zip(weights, all_dims)]
    if not any(are_filters):
        one_dimensional = "scale"
        weights = [w if bool(w.any()) else torch.full_like(w, max(w.numel(), 1) ** -0.5) for w in weights]
    if one_dimensional == "zero":
        draws = [d if moves else torch.zeros_like(d) for d, moves in zip(draws, are_filters)]
    for other in orthogonal_to:
        if normalization == "filter":
            draws = orthogonal_by_filter(draws, other, filter_dims=all_dims)
        elif normalization == "layer":
            draws = orthogonal_by_filter(draws, other, filter_dims=[()] * len(draws))
        else:
            draws = orthogonal_as_a_whole(draws, other)
    if normalization == "filter":
        return filter_normalised(draws, weights, one_dimensional=one_dimensional, filter_dims=all_dims)
    if normalization == "layer":
        return layer_normalised(draws, weights)
    return model_normalised(draws, weights) if normalization == "model" else draws


def orthogonal_by_filter(draws: Tree, others: Tree, *, filter_dims: Sequence[FilterDims] | None = None) -> list[Tensor]:
    r"""Remove from each filter of a direction its part along the same filter of another one.

    Rescaling whole filters afterwards keeps the two orthogonal, filter by filter and hence altogether, so that a
    plane's axes are both exactly filter-normalised and exactly orthogonal. Filters of a single weight are left as
    they are (nothing in them is orthogonal to the other).
    """
    result = []
    for draw, other, dims in zip(draws, others, filter_dims or [0] * len(draws)):
        axes, d = _axes_within(draw, dims), draw
        if math.prod(draw.shape[axis] for axis in axes) > 1:
            square = (other * other).sum(axes, keepdim=True).clamp_min(TINY)
            for _ in range(2):
                d = d - (d * other).sum(axes, keepdim=True) / square * other
        result.append(d)
    return result


def orthogonal_as_a_whole(draws: Tree, others: Tree) -> list[Tensor]:
    """Remove from a direction its part along another one, over all tensors together, in float64."""
    result, square = [d.double() for d in draws], _inner(others, others).clamp_min(TINY)
    for _ in range(2):
        share = _inner(result, others) / square
        result = [d - share * other for d, other in zip(result, others)]
    return [r.to(d.dtype) for r, d in zip(result, draws)]


def _inner(one: Tree, other: Tree) -> Tensor:
    return torch.stack([(a.double() * b.double()).sum() for a, b in zip(one, other)]).sum()
