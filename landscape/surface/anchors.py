"""Axes that are given by points: between two checkpoints, the plane through three, the main plane of a trajectory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from landscape.checkpoint import Checkpoint
from landscape.errors import LandscapeError, unknown_name
from landscape.risk import ClassRisk
from landscape.surface.axes import Axes, Mark, between, origin_of, orthogonal_to

Through = Literal["last", "mean"]
# Entries of every checkpoint that are in memory in float64 at once.
BLOCK = 1 << 20
# Share of the variance below which the points lie on a line to rounding: the square of orthogonal_to's 1e-6.
FLAT = 1e-12


@dataclass(frozen=True, eq=False)
class Point:
    """A point in weight space: its weights (n,), what to call it, and the hash of its file ("" for none)."""

    theta: Tensor
    label: str
    sha256: str = ""


Source = ClassRisk | Checkpoint | Point | Tensor


def point_of(risk: ClassRisk, source: Source, *, label: str | None = None) -> Point:
    """Return the weights of a risk, of a checkpoint, or as given, in the order of ``risk``'s parameters.

    Parameters
    ----------
    risk
        Whose parameters are under study.
    source
        Another risk of the same parameters, what :func:`landscape.checkpoint.read_checkpoint` returned (its buffers, and
        parameters that are not studied, are left aside), or a vector (n,).
    label
        What to call it; by default its file's name.

    Raises
    ------
    LandscapeError
        If a parameter is missing or has another shape.
    """
    if isinstance(source, Point):
        return source
    if isinstance(source, Tensor):
        if source.shape != risk.theta.shape:
            raise LandscapeError(f"expected weights of shape {tuple(risk.theta.shape)}, got {tuple(source.shape)}")
        return Point(source.detach(), label or "given weights")
    if isinstance(source, Checkpoint):
        state, layout = source.state_dict, risk.layout
        bad = [n for n, shape in zip(layout.names, layout.shapes) if n not in state or state[n].shape != shape]
        if bad:
            got = f"has shape {tuple(state[bad[0]].shape)}" if bad[0] in state else "is missing"
            raise LandscapeError(
                f"{source.path} holds another architecture: parameter '{bad[0]}' {got} ({len(bad)} of {len(layout.names)} "
                "do not fit); give checkpoints of one network"
            )
        return Point(layout.flatten([state[n] for n in layout.names]), label or source.path.name, source.sha256)
    between(risk, source)  # the same parameters
    attributes = source.attributes
    name = label or str(attributes.get("checkpoint", "given weights"))
    return Point(source.theta, name, str(attributes.get("checkpoint_sha256", "")))


def between_axes(risk: ClassRisk, other: Source) -> Axes:
    r"""Return the line from the weights under study to another checkpoint: 0 is the one, 1 exactly the other.

    .. math:: \theta(\alpha) = (1 - \alpha) w_1 + \alpha w_2

    Raises
    ------
    LandscapeError
        If the two have different parameters, or are equal.

    Source: Goodfellow, Vinyals, Saxe, *Qualitatively characterizing neural network optimization problems*, ICLR 2015.

    Examples
    --------
    >>> from landscape import AnalyticRisk
    >>> risk = AnalyticRisk(lambda t: (t**2).sum()[None], torch.zeros(2))
    >>> between_axes(risk, torch.tensor([3.0, 4.0])).norms
    (5.0,)
    """
    here, there = point_of(risk, risk, label=_own_label(risk)), point_of(risk, other)
    direction = _difference(risk, there)
    return Axes(
        (direction,),
        "between",
        "the difference of two checkpoints",
        (f"0: {here.label}, 1: {there.label}",),
        {"kind": "between", "points": _listed([there]), **origin_of(risk)},
        marks=(Mark(0.0, 0.0, here.label), Mark(1.0, 0.0, there.label)),
        attributes={"distance": float(torch.linalg.vector_norm(direction))},
    )


def three_point_axes(risk: ClassRisk, second: Source, third: Source) -> Axes:
    r"""Return the plane through the weights under study w_1 and two other checkpoints.

    .. math::

        u = w_2 - w_1, \qquad
        v = |u| \frac{\tilde v}{|\tilde v|}, \quad
        \tilde v = (w_3 - w_1) - \frac{\langle w_3 - w_1, u \rangle}{|u|^2} u

    Both axes have the length of u, so that the picture is true to scale: w_1 lies at (0, 0), w_2 at (1, 0), and w_3 where
    ``marks`` says. ``attributes["off_plane"]`` holds the distance of each of the three from its stated place, which is
    rounding (float64).

    Raises
    ------
    LandscapeError
        If the parameters differ, or the three lie on one line.

    Source: Garipov et al., *Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs*, NeurIPS 2018, figure 1.

    Examples
    --------
    >>> from landscape import AnalyticRisk
    >>> risk = AnalyticRisk(lambda t: (t**2).sum()[None], torch.zeros(2, dtype=torch.float64))
    >>> axes = three_point_axes(risk, torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0]))
    >>> axes.marks[2].alpha, axes.marks[2].beta
    (0.5, 1.5)
    """
    points = [point_of(risk, risk, label=_own_label(risk)), point_of(risk, second), point_of(risk, third)]
    u, w = (_difference(risk, p) for p in points[1:])
    v = orthogonal_to(w, u)
    v = v * (torch.linalg.vector_norm(u) / torch.linalg.vector_norm(v))
    alpha, beta = float(w @ u / (u @ u)), float(w @ v / (v @ v))
    marks = tuple(Mark(*place, p.label) for place, p in zip(((0.0, 0.0), (1.0, 0.0), (alpha, beta)), points))
    return Axes(
        (u, v),
        "three-point",
        "plane through three checkpoints; both axes have the distance of the first two as their unit",
        (f"from {points[0].label} to {points[1].label}", f"towards {points[2].label}"),
        {"kind": "three-point", "points": _listed(points[1:]), **origin_of(risk)},
        marks=marks,
        attributes={
            "off_plane": [0.0, 0.0, float(torch.linalg.vector_norm(w - alpha * u - beta * v))],
            "distances": [float(torch.linalg.vector_norm(d)) for d in (u, w, w - u)],
            "direction_unit": float(torch.linalg.vector_norm(u)),
        },
    )


def trajectory_axes(risk: ClassRisk, points: Sequence[Source], *, num: int = 2, through: Through = "last") -> Axes:
    r"""Return the axes along which the checkpoints of one training vary most, and their path on them.

    With D the differences of the T points from the origin, the axes are the leading right singular vectors of D,
    found from the T by T Gram matrix in float64:

    .. math:: D D^T = U \Lambda U^T, \qquad v_i = D^T u_i / \sqrt{\lambda_i}, \qquad \text{path} = D\,(v_1, v_2)

    Parameters
    ----------
    risk
        Whose parameters are under study.
    points
        At least ``num + 1`` checkpoints in order, risks, or vectors (n,), held in their own precision.
    num
        1 for a line, 2 for a plane.
    through
        ``"last"``: the origin is the last point, and no mean is taken off (the axes explain squared distances from the
        end of training). ``"mean"``: the origin is the mean, the usual principal components.

    Returns
    -------
    Axes
        Unit vectors (coordinates are distances in weight space), each turned so that the point farthest along it is on
        its positive side; a mark for each point. ``attributes``: ``explained_variance_ratio`` (num), shares of
        sum |D|^2, exact to about 1e-15; ``path`` (T, num); ``off_plane`` (T,), the distance of each point from the line or
        plane: where it is not small, the loss drawn at a mark is not that checkpoint's loss. ``origin`` is set where the
        origin is not the risk's own weights.

    Raises
    ------
    LandscapeError
        If there are too few points, or they do not span what was asked for.

    Notes
    -----
    Source: Li et al., NeurIPS 2018, section 7. Differs from the released code in:

    1. Its principal components are about the mean, although its plane passes through the last point; here they are about
       the point that the plane passes through.
    2. The distances off the plane are recorded. A random walk in many dimensions gives the same smooth arcs on its first
       two components (Antognini and Sohl-Dickstein, *PCA of high dimensional random walks*, NeurIPS 2018), so neither the
       shape of the path nor a high explained variance says much by itself.

    Examples
    --------
    >>> from landscape import AnalyticRisk
    >>> risk = AnalyticRisk(lambda t: (t**2).sum()[None], torch.zeros(3, dtype=torch.float64))
    >>> path = torch.tensor([[3.0, 1, 0], [2, -1, 0], [0, 0, 0]], dtype=torch.float64)
    >>> axes = trajectory_axes(risk, list(path))
    >>> round(sum(axes.attributes["explained_variance_ratio"]), 12), max(axes.attributes["off_plane"]) < 1e-12
    (1.0, True)
    """
    if through not in get_args(Through):
        raise unknown_name("origin of a trajectory's plane", through, get_args(Through))
    if num not in (1, 2):
        raise LandscapeError(f"num: expected 1 direction (line) or 2 (plane), got {num}")
    if len(points) < num + 1:
        raise LandscapeError(f"a trajectory: expected at least {num + 1} checkpoints, got {len(points)}")
    path = [point_of(risk, source, label=_numbered(source, number)) for number, source in enumerate(points)]
    device = risk.theta.device
    origin = path[-1].theta.to(device).double() if through == "last" else _mean(path, device)

    def blocks() -> Iterator[tuple[slice, Tensor]]:
        """Yield the entries of a block and the differences (T, m) float64 there."""
        for start in range(0, len(origin), BLOCK):
            rows = slice(start, start + BLOCK)
            yield rows, torch.stack([p.theta[rows].to(device).double() for p in path]) - origin[rows]

    vectors, shares = _principal(blocks, origin, num)
    places, off_plane = _projected(blocks, vectors)
    signs = places.gather(0, places.abs().argmax(0, keepdim=True))[0].sign()
    vectors, places = vectors * signs[:, None], places * signs + 0.0  # no -0.0
    is_own = bool(torch.equal(origin.to(risk.theta.dtype), risk.theta))
    table = [[float(x) for x in row] for row in places.tolist()]
    return Axes(
        tuple(vectors),
        "trajectory",
        f"unit vectors: principal components of {len(path)} checkpoints about the {through}",
        tuple(f"component {i + 1} ({100 * share:.3g} % of the variance)" for i, share in enumerate(shares)),
        {"kind": "trajectory", "num": num, "through": through, "points": _listed(path), **origin_of(risk)},
        marks=tuple(Mark(row[0], row[1] if num == 2 else 0.0, p.label) for row, p in zip(table, path)),
        attributes={
            "explained_variance_ratio": shares,
            "path": table,
            "off_plane": off_plane,
            "through": through,
            "direction_unit": 1.0,
        },
        origin=None if is_own else origin,
    )


Blocks = Callable[[], Iterator[tuple[slice, Tensor]]]


def _principal(blocks: Blocks, origin: Tensor, num: int) -> tuple[Tensor, list[float]]:
    """Return the leading directions (num, n), orthonormal, and their shares of the variance."""
    gram = sum((block @ block.T for _, block in blocks()), start=origin.new_zeros(()))
    values, rows = torch.linalg.eigh(gram)
    values, rows = values.flip(0).clamp_min(0), rows.flip(1)
    total = float(values.sum())
    if float(values[num - 1]) <= FLAT * total:
        raise LandscapeError(
            f"the checkpoints of the trajectory span {int((values > FLAT * max(total, 1e-300)).sum())} direction(s), expected "
            f"at least {num}: they are equal or lie on a line"
        )
    vectors = origin.new_empty(num, len(origin))
    for part, block in blocks():
        vectors[:, part] = rows[:, :num].T @ block
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    if num == 2:  # what rounding of the Gram matrix left of the first in the second
        vectors[1] = torch.nn.functional.normalize(orthogonal_to(vectors[1], vectors[0]), dim=0)
    return vectors, [float(value) / total for value in values[:num]]


def _projected(blocks: Blocks, vectors: Tensor) -> tuple[Tensor, list[float]]:
    """Return the coordinates (T, num) of all points, and their distances from the plane from explicit differences."""
    places = sum((block @ vectors[:, part].T for part, block in blocks()), start=vectors.new_zeros(()))
    rest = [(block - places @ vectors[:, part]).square().sum(1) for part, block in blocks()]
    return places, torch.stack(rest).sum(0).sqrt().tolist()


def _mean(path: Sequence[Point], device: torch.device) -> Tensor:
    total = torch.zeros(len(path[0].theta), dtype=torch.float64, device=device)
    for p in path:
        total += p.theta.to(device)
    return total / len(path)


def _difference(risk: ClassRisk, point: Point) -> Tensor:
    direction = point.theta.to(risk.theta.device).double() - risk.theta.double()
    if not bool(direction.any()):
        raise LandscapeError(f"{point.label} has the same weights as the checkpoint under study: they span no line")
    return direction


def _numbered(source: Source, number: int) -> str | None:
    return f"point {number + 1}" if isinstance(source, Tensor) else None


def _own_label(risk: ClassRisk) -> str:
    return str(risk.attributes.get("checkpoint", "weights"))


def _listed(points: Sequence[Point]) -> list[dict[str, Any]]:
    return [{"label": p.label, "sha256": p.sha256} for p in points]
