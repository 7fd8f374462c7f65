"""Loss fluctuation under random perturbation of the weights, and the worst case within a ball, per class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from landscape.directions import Normalization, OneDimensional, gaussian, gradient_ascent, random_tree, sign_ascent
from landscape.errors import LandscapeError, require_whole, unknown_name
from landscape.randomness import stream
from landscape.results import Journal, keep_block, savable, validate, versions
from landscape.risk import ClassRisk, GroupAverage, LaneChoice, Lanes, lanes_of
from landscape.risk.arithmetic import precise_arithmetic
from landscape.risk.augmented import require_fixed
from landscape.risk.points import Walk, walk_of

Progress = Callable[[int, int, str], None]
# What a draw reads, of all that is evaluated: plain cross-entropy, and the training loss where it is another one.
LOSSES_OF_DRAWS = ("loss", "own_loss")
Norm = Literal["l2", "linf"]


# Perturbations beyond a million times the weights are no neighbourhood, and overflow.
FARTHEST = 1e6


@dataclass(frozen=True)
class PerturbationOptions:
    """What is drawn and how far; validated once.

    Attributes
    ----------
    radii
        Relative radii of filter-normalised directions: 0.1 moves every filter by a tenth of its own norm.
    sigmas
        Standard deviations of absolute Gaussian noise, per weight; () for none.
    num_draws
        Draws per radius, an even number: draws 2k and 2k + 1 are +d and -d.
    rhos
        Radii (Euclidean, weight units) of the worst case; () for none.
    ascent_steps
        Projected gradient steps of the multi-step search (the first is SAM's one step).
    """

    radii: tuple[float, ...] = (0.05, 0.1, 0.2)
    sigmas: tuple[float, ...] = (0.01, 0.03)
    num_draws: int = 10
    rhos: tuple[float, ...] = (0.05, 0.2)
    ascent_steps: int = 5

    def __post_init__(self) -> None:
        require_whole("num_draws", self.num_draws, 4)  # two antithetic pairs
        require_whole("ascent_steps", self.ascent_steps, 1)
        if self.num_draws % 2:
            raise LandscapeError(
                f"num_draws: expected an even number of at least 4 (antithetic pairs), got {self.num_draws}"
            )
        for name in ("radii", "sigmas", "rhos"):
            values = getattr(self, name)
            if any(not 0 < value < math.inf for value in values) or len(set(values)) < len(values):
                raise LandscapeError(f"{name}: expected positive numbers, each once, got {values}")
            if max(values, default=0.0) > FARTHEST:
                raise LandscapeError(f"{name}: expected numbers up to {FARTHEST:g}, got {max(values):g}")
        if not self.radii:
            raise LandscapeError("radii: expected at least one relative radius")


def random_direction(
    risk: ClassRisk,
    generator: torch.Generator,
    *,
    is_filter_normalised: bool,
    orthogonal_to: Sequence[Tensor] = (),
) -> Tensor:
    """Return a Gaussian direction (n,): of unit variance, or rescaled filter by filter to the weights' norms.

    Parameters
    ----------
    risk
        Gives the centre and the layout of its filters.
    generator
        Where the draw comes from.
    is_filter_normalised
        Whether each filter takes the norm of the same filter of the weights; biases and normalisation layers then
        stay. A layout without filters (a toy, a choice of biases) counts as one filter, of norm 1 where theta is 0.
    orthogonal_to
        Directions (n,) that each filter is made orthogonal to before it is rescaled.
    """
    return draw_direction(
        risk,
        generator,
        normalization="filter" if is_filter_normalised else "gaussian",
        one_dimensional="zero" if is_filter_normalised else "scale",
        orthogonal_to=orthogonal_to,
    )


def draw_direction(
    risk: ClassRisk,
    generator: torch.Generator,
    *,
    normalization: Normalization,
    one_dimensional: OneDimensional = "zero",
    orthogonal_to: Sequence[Tensor] = (),
) -> Tensor:
    """Return :func:`landscape.directions.random_tree` as a vector (n,) for a risk's weights and filters."""
    layout = risk.layout
    tree = random_tree(
        layout.unflatten(risk.theta),
        generator,
        normalization=normalization,
        one_dimensional=one_dimensional,
        filter_dims=layout.filter_dims,
        orthogonal_to=[layout.unflatten(other) for other in orthogonal_to],
    )
    return layout.flatten(tree)


def lane_means(lanes: Lanes, values: Tensor) -> np.ndarray:
    """Return (L,) from class values (C,); classes without weight (perhaps NaN) do not enter."""
    weights = lanes.weights
    return torch.where(weights != 0, weights * values, torch.zeros_like(weights)).sum(1).numpy()


def worst_case(
    risk: ClassRisk,
    row: Tensor,
    rho: float,
    num_steps: int,
    generator: torch.Generator,
    *,
    norm: Norm = "l2",
    scale: Tensor | None = None,
) -> tuple[float, float]:
    r"""Search :math:`\max_{\|T^{-1}\epsilon\|_p \le \rho} L(\theta + \epsilon) - L(\theta)` by projected gradient ascent.

    Parameters
    ----------
    risk, row
        The class losses, and the lane as weights (C,).
    rho
        Radius of the ball: weight units, or shares of ``scale``.
    num_steps
        Ascent steps; the first goes to the boundary along the gradient (SAM's step), the others by rho / 2.
    generator
        Draws the first step where the gradient is exactly zero: at a saddle there is no gradient to follow.
    norm
        ``"l2"``, the Euclidean ball, or ``"linf"``: every weight by rho at most.
    scale
        The diagonal of T (n,), such as :math:`|\theta|` for an adaptive ball; weights with 0 stay. By default 1.

    Returns
    -------
    tuple[float, float]
        The best increase found (a lower bound of the maximum; at least 0, its value at the centre) and the increase
        after the first step alone. NaN where the loss is NaN, inf where it is inf: the search stops there.

    Raises
    ------
    LandscapeError
        For an unknown norm.

    Notes
    -----
    Source: one step, Foret et al., ICLR 2021, eq. 2; with T = diag(abs(theta)), Kwon et al., ICML 2021; multi-step, the
    worst case of Andriushchenko et al., ICML 2023. At a point that is not stationary it is about rho |g|, mostly a
    gradient norm.
    """
    if norm not in get_args(Norm):
        raise unknown_name("norm", norm, get_args(Norm))
    theta, support = risk.theta, torch.nonzero(row)[:, 0].tolist()
    stretch = torch.ones_like(theta) if scale is None else scale

    def lane_loss(point: Tensor) -> float:
        return float((row[support] * risk.losses(point, support)[support]).sum())

    centre = lane_loss(theta)
    offset = torch.zeros_like(theta)  # in units of the scale
    best, first = 0.0, 0.0
    for step in range(num_steps):
        gradient = stretch * risk.gradients(theta + stretch * offset, row[None])[0]
        if not bool(gradient.any()):
            gradient = gaussian([theta], generator, sigma=1.0)[0]
        if not bool(gradient.isfinite().all()):  # the loss left its domain on the way
            break
        offset = _into_ball(offset + _ascent(gradient, rho if step == 0 else rho / 2, norm), rho, norm)
        increase = lane_loss(theta + stretch * offset) - centre
        first = increase if step == 0 else first
        best = increase if math.isnan(increase) else max(best, increase)  # max(0, NaN) would be 0
        if not math.isfinite(increase):
            break
    return best, first


def _ascent(gradient: Tensor, length: float, norm: Norm) -> Tensor:
    # Scaled first: the guard against division by zero in the step must not shorten it where the slope is tiny.
    scaled = [gradient / gradient.abs().max()]
    return (sign_ascent(scaled, length) if norm == "linf" else gradient_ascent(scaled, length))[0]


def _into_ball(offset: Tensor, rho: float, norm: Norm) -> Tensor:
    if norm == "linf":
        return offset.clamp(-rho, rho)
    return offset * (rho / torch.linalg.vector_norm(offset).clamp_min(rho))


def _draws(risk: ClassRisk, walk: Walk, direction: Tensor, scales: tuple[float, ...]) -> dict[str, np.ndarray]:
    """Return, for +d and -d at every scale, the losses of all lanes: (2, scales, lanes) per variable."""
    points = [risk.theta + (sign * scale) * direction for sign in (1.0, -1.0) for scale in scales]
    values = [walk.at(point) for point in points]
    names = [name for name in LOSSES_OF_DRAWS if name in values[0]]
    rows = {name: torch.stack([value[name] for value in values]).cpu().numpy() for name in names}
    return {name: row.reshape(2, len(scales), -1) for name, row in rows.items()}


@savable
@precise_arithmetic()
def measure_perturbation(
    risk: ClassRisk,
    lanes: LaneChoice | None = None,
    *,
    options: PerturbationOptions | None = None,
    seed: int = 0,
    group_average: GroupAverage = "examples",
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    r"""Measure how much each lane's loss moves under random and worst-case perturbations of the weights.

    Each draw perturbs the weights once and reads the losses of all classes from one forward pass. Draws come in
    antithetic pairs :math:`\pm d`, whose mean cancels the slope (and every odd order); the same directions serve all
    radii. Standard errors are those of the mean over pairs.

    Parameters
    ----------
    risk, lanes, seed, group_average, journal, progress
        As in :func:`landscape.spectrum.measure_spectrum`.
    options
        Radii, noise scales, number of draws, worst-case radii.

    Returns
    -------
    xarray.Dataset
        ``loss_increase`` (lane, radius, draw), plain cross-entropy at :math:`\theta \pm r d`, filter-normalised d;
        ``own_loss_increase`` where the training loss is another one; ``gaussian_loss_increase`` (lane, sigma, draw);
        ``mean_increase``, ``mean_increase_stderr`` (lane, radius); ``worst_case_increase``, ``one_step_increase``
        (lane, rho), of the risk's own objective. All in nats per example.

    Raises
    ------
    LandscapeError
        For an unknown or empty lane, or inputs that are augmented anew at every evaluation.

    Examples
    --------
    >>> from landscape import AnalyticRisk
    >>> bowl = AnalyticRisk(lambda x: (x @ x)[None], torch.ones(3, dtype=torch.float64))
    >>> result = measure_perturbation(bowl, "all", options=PerturbationOptions(radii=(1.0,)))
    >>> round(float(result.mean_increase[0, 0]), 9)  # r^2 |d|^2 with |d| = |theta|: exactly 3
    3.0

    Notes
    -----
    Sources: "random perturbation, five times" of Zhou et al. (CVPR 2023), whose scale is not public: both an absolute
    and a relative one are offered; filter normalisation of Li et al. (NeurIPS 2018).
    """
    require_fixed(risk, "a perturbation analysis")
    chosen = lanes_of(risk, lanes, group_average=group_average)
    settings = options or PerturbationOptions()
    num_pairs = settings.num_draws // 2
    total = num_pairs * (1 + bool(settings.sigmas)) + len(settings.rhos) * len(chosen)
    done = 0

    def tick(text: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total, text)

    walk = walk_of(risk, chosen)
    at_weights = walk.at_weights()
    centre = {name: at_weights[name].cpu().numpy() for name in LOSSES_OF_DRAWS if name in at_weights}

    def sample(kind: str, scales: tuple[float, ...]) -> dict[str, np.ndarray]:
        pairs = []
        for pair in range(num_pairs):
            generator = stream(seed, f"perturbation/{kind}/pair={pair}")
            pairs.append(
                keep_block(
                    journal,
                    f"perturbation/{kind}/pair={pair}",
                    lambda g=generator: _draws(
                        risk, walk, random_direction(risk, g, is_filter_normalised=kind == "filter"), scales
                    ),
                )
            )
            tick(f"perturbation, {kind} pair {pair + 1}")
        # (pairs, 2, scales, lanes) -> (lanes, scales, draws), draws 2k and 2k + 1 being a pair
        return {
            name: np.stack([p[name] for p in pairs]).transpose(3, 2, 0, 1).reshape(len(chosen), len(scales), -1)
            - centre[name][:, None, None]
            for name in centre
        }

    relative = sample("filter", settings.radii)
    dataset = xr.Dataset(coords={"lane": list(chosen.names), "radius": list(settings.radii)})
    dataset["loss_increase"] = (("lane", "radius", "draw"), relative["loss"])
    if "own_loss" in relative:
        dataset["own_loss_increase"] = (("lane", "radius", "draw"), relative["own_loss"])
    halves = relative["loss"].reshape(len(chosen), len(settings.radii), num_pairs, 2).mean(-1)
    dataset["mean_increase"] = (("lane", "radius"), halves.mean(-1))
    dataset["mean_increase_stderr"] = (("lane", "radius"), halves.std(-1, ddof=1) / np.sqrt(num_pairs))
    if settings.sigmas:
        absolute = sample("gaussian", settings.sigmas)
        dataset = dataset.assign_coords(sigma=list(settings.sigmas))
        dataset["gaussian_loss_increase"] = (("lane", "sigma", "draw"), absolute["loss"])
    _add_worst_cases(dataset, risk, chosen, settings, seed=seed, journal=journal, tick=tick)
    return validate("perturbation", _described(dataset, risk, chosen, settings, seed, group_average))


def _add_worst_cases(
    dataset: xr.Dataset,
    risk: ClassRisk,
    lanes: Lanes,
    settings: PerturbationOptions,
    *,
    seed: int,
    journal: Journal | None,
    tick: Callable[[str], None],
) -> None:
    found = np.zeros((2, len(lanes), len(settings.rhos)))
    for i, name in enumerate(lanes.names):
        for j, rho in enumerate(settings.rhos):
            block = keep_block(
                journal,
                f"worst-case/lane={name}/rho={rho}",
                lambda row=lanes.weights[i], rho=rho, name=name: {
                    "increase": worst_case(
                        risk, row, rho, settings.ascent_steps, stream(seed, f"worst-case/{name}/rho={rho}")
                    )
                },
            )
            found[:, i, j] = block["increase"]
            tick(f"worst case of {name}")
    dataset.coords["rho"] = list(settings.rhos)
    dataset["worst_case_increase"] = (("lane", "rho"), found[0])
    dataset["one_step_increase"] = (("lane", "rho"), found[1])


def _described(
    dataset: xr.Dataset,
    risk: ClassRisk,
    lanes: Lanes,
    settings: PerturbationOptions,
    seed: int,
    group_average: GroupAverage,
) -> xr.Dataset:
    dataset["num_examples"] = ("lane", np.asarray(lanes.num_examples))
    dataset = dataset.assign_coords(lane_kind=("lane", list(lanes.kinds)), lane_group=("lane", list(lanes.groups)))
    for name in dataset.data_vars:
        if "increase" in str(name):
            dataset[name].attrs["units"] = "nats per example"
    dataset["radius"].attrs["units"] = "share of each filter's norm"
    dataset.attrs = {
        **risk.attributes,
        "kind": "perturbation",
        "seed": seed,
        "group_average": group_average,
        "normalization": "filter (biases and normalisation layers unmoved)",
        "loss_of_draws": "plain cross-entropy where the risk is a classifier's",
        "worst_case": f"best of {settings.ascent_steps} projected ascent steps: a lower bound of the maximum",
        "versions": versions(),
        **{f"option_{key}": value for key, value in asdict(settings).items()},
    }
    return dataset
