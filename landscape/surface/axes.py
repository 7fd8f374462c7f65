"""The directions that lines and planes through the weights are spanned by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from landscape.directions import NORMALIZATIONS, Normalization, OneDimensional, filter_norms
from landscape.errors import LandscapeError, unknown_name
from landscape.perturbation import draw_direction
from landscape.randomness import stream
from landscape.risk import ClassRisk

# |cos| of the two axes that counts as orthogonal to rounding.
ORTHOGONAL = 1e-6
MOVED: dict[OneDimensional, str] = {
    "zero": "biases and normalisation layers unmoved",
    "scale": "biases and normalisation layers moved like other tensors",
}


class Mark(NamedTuple):
    """A point to draw on a line or plane, in its coordinates; ``beta`` is 0 on a line."""

    alpha: float
    beta: float
    label: str


@dataclass(frozen=True, eq=False)
class Axes:
    r"""One or two directions, and everything that says what they are: the plane is :math:`\theta + \alpha d_1 + \beta d_2`.

    Attributes
    ----------
    vectors
        One (line) or two (plane) directions (n,), in weight units: coordinate 1 is the point at the end of the vector.
    kind
        ``random``, ``between``, ``three-point``, ``trajectory``, ``gradient`` or ``eigen``.
    normalization
        What decides the lengths, in words.
    labels
        What each axis means, for figures.
    recipe
        JSON-able: what :func:`landscape.surface.axes_from_recipe` rebuilds the axes from, with the hash of the checkpoint.
    marks
        Points to draw, such as the checkpoints that a plane passes through.
    attributes
        JSON-able numbers with their residuals: eigenvalues, explained variance, distances of checkpoints off the plane.
    origin
        The point (n,) at coordinates (0, 0) where this is not the weights under study (the mean of a trajectory).

    Raises
    ------
    LandscapeError
        If there are not one or two finite, non-zero directions of one length with a label each.
    """

    vectors: tuple[Tensor, ...]
    kind: str
    normalization: str
    labels: tuple[str, ...]
    recipe: Mapping[str, Any]
    marks: tuple[Mark, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    origin: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.vectors) not in (1, 2) or len(self.labels) != len(self.vectors):
            raise LandscapeError(
                f"axes: expected one or two directions with a label each, got {len(self.vectors)} and {len(self.labels)} labels"
            )
        shapes = {v.shape for v in self.vectors} | ({self.origin.shape} if self.origin is not None else set())
        if len(shapes) > 1 or self.vectors[0].dim() != 1:
            raise LandscapeError(f"axes: expected vectors of one length (n,), got shapes {sorted(map(tuple, shapes))}")
        for name, v in zip(("first", "second"), self.vectors):
            if not bool(v.isfinite().all()):
                raise LandscapeError(f"the {name} direction of the surface is not finite")
            if not bool(v.any()):
                raise LandscapeError(
                    f"the {name} direction of the surface is zero: the surface would be constant along it"
                )

    @property
    def norms(self) -> tuple[float, ...]:
        """The Euclidean lengths of the directions, in weight units."""
        return tuple(float(torch.linalg.vector_norm(v.double())) for v in self.vectors)

    @property
    def cosine(self) -> float | None:
        """The cosine between the two directions of a plane; None for a line."""
        return cosine(*self.vectors) if len(self.vectors) == 2 else None

    def record(self) -> dict[str, Any]:
        """Return everything but the tensors, JSON-able: what a result must store of its axes."""
        return {
            "axes_kind": self.kind,
            "normalization": self.normalization,
            "axes_labels": list(self.labels),
            "recipe": dict(self.recipe),
            "marks": [list(mark) for mark in self.marks],
            "direction_norms": list(self.norms),
            "direction_cosine": self.cosine,
            "axes": dict(self.attributes),
        }


def orthogonal_to(direction: Tensor, other: Tensor) -> Tensor:
    """Return ``direction`` without its part along ``other``, rescaled to the norm it had.

    Raises
    ------
    LandscapeError
        If the two are parallel, or ``other`` is zero.
    """
    d, o = direction.double(), other.double()
    before = torch.linalg.vector_norm(d)
    square = o @ o
    if float(square) == 0:
        raise LandscapeError("a direction of the surface is zero")
    for _ in range(2):
        d = d - (d @ o) / square * o
    after = torch.linalg.vector_norm(d)
    if float(after) <= 1e-6 * float(before):
        raise LandscapeError("the two directions of the plane are parallel: they span a line, not a plane")
    return (d * (before / after)).to(direction.dtype)


def random_directions(
    risk: ClassRisk,
    *,
    num: int,
    seed: int,
    pair: int,
    normalization: Normalization = "filter",
    one_dimensional: OneDimensional = "zero",
) -> list[Tensor]:
    """Return ``num`` random directions (n,) of pair number ``pair``, normalised by the weights, orthogonal after scaling.

    The streams are named by seed and pair alone, so that two checkpoints, precisions and normalisations see the same raw
    draws, each rescaled to its own weights; see :func:`landscape.directions.random_tree`.
    """
    directions: list[Tensor] = []
    for axis in range(num):
        generator = stream(seed, f"surface/pair={pair}/axis={axis}")
        direction = draw_direction(
            risk,
            generator,
            normalization=normalization,
            one_dimensional=one_dimensional,
            orthogonal_to=directions,
        )
        for other in directions:  # nothing is left to remove, but for filters of a single weight
            if abs(cosine(direction, other)) > ORTHOGONAL:
                direction = orthogonal_to(direction, other)
        directions.append(direction)
    return directions


def random_axes(
    risk: ClassRisk,
    *,
    num: int = 2,
    seed: int = 0,
    pair: int = 0,
    normalization: Normalization = "filter",
    one_dimensional: OneDimensional = "zero",
) -> Axes:
    """Return one or two random axes: :func:`random_directions` with its recipe.

    Parameters
    ----------
    risk
        Gives weights and filters.
    num
        1 for a line, 2 for a plane, whose first axis is the line of the same seed and pair.
    seed, pair
        Name the raw draws, which do not depend on the checkpoint.
    normalization
        ``"filter"``, ``"layer"`` or ``"model"``: coordinate 1 moves each filter, tensor, or all moved tensors together by
        their own norm. ``"gaussian"``: unit variance per weight, so that coordinate 0.01 is noise of sigma 0.01.
    one_dimensional
        Whether biases and the parameters of normalisation layers stay (``"zero"``) or move (``"scale"``).

    Returns
    -------
    Axes
        With the attribute ``largest_norm_error``: how far a norm of a filter (tensor, whole) is off that of its weights,
        relative; rounding, but where filters of a single weight had to be made orthogonal.

    Raises
    ------
    LandscapeError
        For an unknown normalisation, or if nothing moves.

    Examples
    --------
    >>> from landscape import ModelRisk
    >>> risk = ModelRisk(torch.nn.Linear(50, 2), (torch.ones(2, 50), torch.tensor([0, 1])))
    >>> axes = random_axes(risk, seed=1)
    >>> abs(axes.cosine) < 1e-5, axes.attributes["largest_norm_error"] < 1e-5
    (True, True)
    """
    if normalization not in NORMALIZATIONS:
        raise unknown_name("normalization", normalization, NORMALIZATIONS)
    if one_dimensional not in get_args(OneDimensional):
        raise unknown_name("treatment of one-dimensional tensors", one_dimensional, get_args(OneDimensional))
    if num not in (1, 2):
        raise LandscapeError(f"num: expected 1 direction (line) or 2 (plane), got {num}")
    how: dict[str, Any] = {"normalization": normalization, "one_dimensional": one_dimensional}
    vectors = random_directions(risk, num=num, seed=seed, pair=pair, **how)
    return Axes(
        tuple(vectors),
        "random",
        f"{NORMALIZATIONS[normalization]}, {MOVED[one_dimensional]}" + ", orthogonal after scaling" * (num - 1),
        tuple(f"random direction {axis + 1} ({normalization})" for axis in range(num)),
        {"kind": "random", "num": num, "seed": seed, "pair": pair, **how, **origin_of(risk)},
        attributes={}
        if normalization == "gaussian"
        else {"largest_norm_error": _norm_error(risk, vectors, normalization)},
    )


def origin_of(risk: ClassRisk) -> dict[str, str]:
    """Return the hash of the checkpoint under study as part of a recipe; nothing for a risk without a file."""
    sha256 = risk.attributes.get("checkpoint_sha256")
    return {"checkpoint_sha256": str(sha256)} if sha256 else {}


def _norm_error(risk: ClassRisk, vectors: Sequence[Tensor], normalization: Normalization) -> float:
    """Return the largest | |d_u| / |w_u| - 1 | over the units that move: filters, tensors, or the whole."""
    layout, worst = risk.layout, 0.0
    for vector in vectors:
        pairs = [(d, w) for d, w in zip(layout.unflatten(vector.double()), layout.unflatten(risk.theta.double()))]
        dims = list(layout.filter_dims)
        if normalization == "layer":
            pairs, dims = [(d.flatten(), w.flatten()) for d, w in pairs], [0] * len(pairs)
        elif normalization == "model":
            moved = [(d.flatten(), w.flatten()) for d, w in pairs if bool(d.any())]
            pairs, dims = [(torch.cat([d for d, _ in moved]), torch.cat([w for _, w in moved]))], [0]
        for (d, w), dim in zip(pairs, dims):
            norms, theirs = filter_norms(d, dim), filter_norms(w, dim)
            counts = (norms > 0) & (theirs > 0)
            worst = max(worst, float((norms / theirs - 1).abs().where(counts, norms.new_zeros(())).max()))
    return worst


def between(risk: ClassRisk, other: ClassRisk) -> Tensor:
    """Return the direction (n,) float64 from one checkpoint's weights to another's: 0 is this one, 1 exactly the other.

    Raises
    ------
    LandscapeError
        If the two have different parameters.
    """
    if risk.layout.names != other.layout.names or risk.layout.shapes != other.layout.shapes:
        raise LandscapeError(
            "the two checkpoints have different parameters: a line between them needs one architecture"
        )
    return other.theta.to(risk.theta).double() - risk.theta.double()


def cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine between two vectors (n,), computed in float64."""
    a, b = a.double(), b.double()
    return float(a @ b / (torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)))
