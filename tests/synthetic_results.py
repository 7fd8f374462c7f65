"""Synthetic results of the contract's schema: ten classes, head, medium, tail, all; made of formulas, not measured."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import xarray as xr

GROUPS = {"head": (0, 1, 2), "medium": (3, 4, 5, 6), "tail": (7, 8, 9)}
CLASS_NAMES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
COUNTS = (500, 300, 180, 108, 65, 39, 23, 14, 8, 5)
SHARPNESS = {"sgd": 1.0, "sam": 0.5, "gnm": 0.7}


def _rng(optimizer: str, what: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(f"{optimizer}/{what}".encode()))


def _coordinates(class_names: tuple[str, ...]) -> dict[str, Any]:
    group_of = {c: group for group, members in GROUPS.items() for c in members}
    kinds = ["class"] * len(class_names) + ["group"] * 3 + ["all"]
    groups = [group_of[c] for c in range(len(class_names))] + [*GROUPS, ""]
    return {
        "lane": [*class_names, *GROUPS, "all"],
        "lane_kind": ("lane", kinds),
        "lane_group": ("lane", groups),
    }


def _per_lane(per_class: np.ndarray) -> np.ndarray:
    """Class values (10, ...) followed by the pooled groups and the pooled whole."""
    weights = np.array(COUNTS, dtype=float)
    rows = [np.tensordot(weights[list(m)] / weights[list(m)].sum(), per_class[list(m)], 1) for m in GROUPS.values()]
    rows.append(np.tensordot(weights / weights.sum(), per_class, 1))
    return np.concatenate([per_class, np.stack(rows)])


def _counts() -> np.ndarray:
    weights = np.array(COUNTS)
    return np.concatenate([weights, [weights[list(m)].sum() for m in GROUPS.values()], [weights.sum()]])


def attributes(optimizer: str, kind: str, **more: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "optimizer": optimizer,
        "seed": 0,
        "normalization": "filter",
        "batchnorm": "frozen",
        "objective": "cross-entropy",
        "split": "train",
        "dtype": "float32",
        "checkpoint_sha256": "ab12" * 16,
        **more,
    }


def class_losses(optimizer: str) -> np.ndarray:
    return np.geomspace(0.03, 1.6, 10) * (0.8 + 0.4 * SHARPNESS.get(optimizer, 0.8))


def accuracy(optimizer: str, class_names: tuple[str, ...] = CLASS_NAMES) -> xr.Dataset:
    correct = np.clip(0.97 - 0.06 * np.arange(10) + _rng(optimizer, "accuracy").normal(0, 0.02, 10), 0.05, 1)
    variables = {
        "accuracy": ("lane", _per_lane(correct)),
        "loss": ("lane", _per_lane(class_losses(optimizer))),
        "num_examples": ("lane", _counts()),
    }
    return xr.Dataset(variables, _coordinates(class_names), attributes(optimizer, "accuracy", split="test"))


def spectrum(
    optimizer: str, class_names: tuple[str, ...] = CLASS_NAMES, probes: int = 3, steps: int = 24
) -> xr.Dataset:
    rng = _rng(optimizer, "spectrum")
    gradient = _per_lane(np.geomspace(0.4, 25.0, 10) * SHARPNESS.get(optimizer, 0.8)) * np.exp(rng.normal(0, 0.15, 14))
    low = -1.1 * gradient**1.08 * np.exp(rng.normal(0, 0.1, 14))
    high = 12.0 * gradient**0.8 + 5
    values = np.full((14, probes, steps), np.nan)
    weights = np.full((14, probes, steps), np.nan)
    for lane in range(14):
        for probe in range(probes):
            length = steps - 5 * (probe == 1)  # one probe stops early
            inner = np.sign(t := np.linspace(-1, 1, length - 2)) * np.abs(t) ** 3
            inner = np.where(inner < 0, -inner * low[lane], inner * high[lane]) * 0.8
            values[lane, probe, :length] = [low[lane], *inner, high[lane]]
            raw = np.exp(-2.5 * np.log1p(np.abs(values[lane, probe, :length]) * 20)) * np.exp(
                rng.normal(0, 0.4, length)
            )
            weights[lane, probe, :length] = raw / raw.sum()
    low[0] = 0.4  # a class without negative curvature
    values[0] = np.abs(values[0]) + 0.4
    verdict = np.array(["slope"] * 14, dtype=object)
    verdict[[7, 9, 12]], verdict[0], verdict[4] = "saddle", "no negative curvature", "undecided"
    crossover = np.where(verdict == "saddle", 0.4, 2.0)
    residual = np.abs(low) * 10 ** rng.uniform(-5, -2, 14)
    evidence = [f"v'Hv/v'v = {a:.3g} with residual {r:.1g}; {w}." for a, r, w in zip(low, residual, verdict)]
    lanes = {
        "lambda_min": low,
        "lambda_max": high,
        "lambda_min_low": low - 3 * residual,
        "lambda_min_high": low + 1e-4,
        "lambda_max_low": high - 1e-4,
        "lambda_max_high": high * (1 + 3e-4),
        "lambda_min_residual": residual,
        "lambda_max_residual": high * 1e-4,
        "lambda_min_lower_bound": np.where(low > 0, -0.02, low * 1.3),
        "trace": high * 9,
        "trace_stderr": high * 0.3,
        "negative_energy": np.where(low > 0, 0.0, 0.3),
        "negative_energy_stderr": np.full(14, 0.02),
        "gradient_norm": gradient,
        "loss": _per_lane(class_losses(optimizer)),
        "num_examples": _counts(),
        "noise_floor": np.full(14, 1e-4),
        "num_hvps": np.full(14, probes * steps),
        "crossover_radius": crossover,
        "quadratic_radius": np.full(14, 0.9),
        "decrease_along_v": gradient * 0.01,
        "decrease_along_gradient": gradient * 0.05,
        "verdict": verdict.astype(str),
        "evidence": np.array(evidence),
    }
    variables = {name: ("lane", value) for name, value in lanes.items()}
    variables["ritz_value"] = (("lane", "probe", "step"), values)
    variables["ritz_weight"] = (("lane", "probe", "step"), weights)
    coordinates = _coordinates(class_names)
    for key in ("negative_energy", "negative_mass", "trace"):
        middle = lanes.get(key, lanes["negative_energy"] / 9)
        variables[f"{key}_low"] = ("lane", middle - 0.1 * np.abs(middle))
        variables[f"{key}_high"] = ("lane", middle + 0.1 * np.abs(middle))
    variables["negative_mass"] = ("lane", lanes["negative_energy"] / 9)
    variables |= {name: ("lane", value) for name, value in _context(low, residual, rng).items()}
    matrices, more = _vectors(low, verdict, class_names, rng)
    return xr.Dataset(
        variables | matrices,
        coordinates | more,
        attributes(optimizer, "spectrum", confidence=0.99, option_threshold=0.01),
    )


def _context(low: np.ndarray, residual: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Split, image interval, index and the errors of the operator's checks."""
    network = low * (1.5 + rng.uniform(0, 0.5, low.size))
    return {
        "lambda_min_error": np.maximum(3 * residual, 1e-4),
        "lambda_max_error": np.full(low.size, 3e-3),
        "index_lower_bound": np.where(low < 0, 7.0, 0.0),
        "gauss_newton_curvature": low - network,
        "functional_curvature": network,
        "curvature_low": low - 0.4 * np.abs(low),
        "curvature_high": low + 0.2 * np.abs(low),
        "repeat_error": np.zeros(low.size),
        "symmetry_error": np.full(low.size, 3e-8),
        "linearity_error": np.full(low.size, 2e-7),
        "additivity_error": np.where(np.arange(low.size) < low.size - 4, np.nan, 1e-7),
        "precision_gap": np.full(low.size, 2e-4),
    }


LAYERS = ("stem", "stem_norm", "block1.conv", "block1.norm", "block2.conv", "block2.norm", "head")


def _vectors(
    low: np.ndarray, verdict: np.ndarray, class_names: tuple[str, ...], rng: np.random.Generator
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Overlaps of made-up unit vectors, escapes of the lanes with negative curvature, and the mass per parameter."""
    names = [*class_names, *GROUPS, "all"]
    parameters = [f"{layer}.{part}" for layer in LAYERS for part in ("weight", "bias")]
    v_min, v_max = (rng.normal(0, 1, (low.size, 5)) + 1.5 for _ in range(2))
    v_min, v_max = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (v_min, v_max))
    walked = np.isin(verdict, ["saddle", "slope"])[:, None]
    change = np.abs(low)[:, None] * rng.normal(0, 0.02, (low.size, low.size)) - 0.05 * np.diag(np.abs(low))
    mass = rng.dirichlet(np.full(len(parameters), 0.4), low.size)
    variables = {
        "overlap_v_min": (("lane", "other_lane"), (v_min @ v_min.T) ** 2),
        "overlap_v_max": (("lane", "other_lane"), (v_max @ v_max.T) ** 2),
        "overlap_gradient_v_max": (("lane", "class_name"), (v_max @ v_max[: len(class_names)].T) ** 2),
        "escape_along_v": (("lane", "affected_lane"), np.where(walked, change, np.nan)),
        "escape_along_gradient": (("lane", "affected_lane"), np.where(walked, 3 * change - 0.01, np.nan)),
        "v_min_mass": (("lane", "parameter"), mass),
    }
    coordinates = {
        "other_lane": names,
        "affected_lane": names,
        "class_name": list(class_names),
        "parameter": parameters,
        "parameter_layer": ("parameter", [name.rpartition(".")[0] for name in parameters]),
    }
    return variables, coordinates


def layers(optimizer: str, class_names: tuple[str, ...] = CLASS_NAMES, names: tuple[str, ...] = LAYERS) -> xr.Dataset:
    rng = _rng(optimizer, "layers")
    whole = spectrum(optimizer, class_names)
    share = rng.uniform(0.02, 0.9, (14, len(names)))
    low, high = (whole[key].values[:, None] * share for key in ("lambda_min", "lambda_max"))
    energy = np.where(low < 0, 0.4 * share, 0.0)
    lanes = {
        "lambda_min": low,
        "lambda_max": high,
        "lambda_min_residual": np.abs(low) * 1e-4,
        "lambda_max_residual": high * 1e-6,
        "trace": high * 4,
        "trace_stderr": high * 0.2,
        "negative_energy": energy,
        "negative_energy_low": energy * 0.8,
        "negative_energy_high": np.minimum(energy * 1.2 + 0.01, 1.0),
    }
    variables = {name: (("lane", "layer"), value) for name, value in lanes.items()}
    variables |= {"num_parameters": ("layer", np.full(len(names), 100)), "num_examples": ("lane", _counts())}
    return xr.Dataset(variables, _coordinates(class_names) | {"layer": list(names)}, attributes(optimizer, "layers"))


def matched(optimizer: str, class_names: tuple[str, ...] = CLASS_NAMES, draws: int = 3) -> xr.Dataset:
    rng = _rng(optimizer, "matched")
    whole = spectrum(optimizer, class_names).isel(lane=slice(0, len(class_names)))
    full = {name: whole[name].values for name in ("lambda_min", "lambda_max", "gradient_norm")}
    full["ratio"] = np.maximum(-full["lambda_min"], 0) / full["lambda_max"]
    variables: dict[str, Any] = {"num_examples": ("lane", np.full(len(class_names), COUNTS[-1]))}
    for name, value in full.items():
        drawn = value[:, None] * rng.uniform(1.0, 1.6, (value.size, draws))
        variables |= {name: (("lane", "draw"), drawn), f"{name}_full": ("lane", value)}
        variables[f"{name}_mean"] = ("lane", drawn.mean(1))
        variables[f"{name}_stderr"] = ("lane", drawn.std(1, ddof=1) / np.sqrt(draws))
    coordinates = {"lane": whole["lane"].values, "draw": np.arange(draws)}
    coordinates |= {name: ("lane", whole[name].values) for name in ("lane_kind", "lane_group")}
    return xr.Dataset(variables, coordinates, attributes(optimizer, "matched", size=COUNTS[-1], num_draws=draws))


def perturbation(optimizer: str, class_names: tuple[str, ...] = CLASS_NAMES, draws: int = 10) -> xr.Dataset:
    rng = _rng(optimizer, "perturbation")
    radius, rho, sigma = np.array([0.1, 0.25, 0.5]), np.array([0.05, 0.2]), np.array([0.01, 0.03])
    sharp = _per_lane(np.geomspace(0.05, 2.0, 10) * SHARPNESS.get(optimizer, 0.8))

    def noisy(scale: np.ndarray) -> np.ndarray:
        mean = sharp[:, None, None] * scale[None, :, None] ** 2 * 8
        return mean * np.exp(rng.normal(0, 0.5, (14, scale.size, draws))) - 0.05 * mean

    increase = noisy(radius)
    variables = {
        "loss_increase": (("lane", "radius", "draw"), increase),
        "gaussian_loss_increase": (("lane", "sigma", "draw"), noisy(sigma * 10)),
        "own_loss_increase": (("lane", "radius", "draw"), noisy(radius * 2)),
        "worst_case_increase": (("lane", "rho"), sharp[:, None] * rho[None] * 20),
        "one_step_increase": (("lane", "rho"), sharp[:, None] * rho[None] * 17),
        "mean_increase": (("lane", "radius"), increase.mean(-1)),
        "mean_increase_stderr": (("lane", "radius"), increase.std(-1, ddof=1) / np.sqrt(draws)),
    }
    coordinates = {**_coordinates(class_names), "radius": radius, "rho": rho, "sigma": sigma, "draw": np.arange(draws)}
    data = xr.Dataset(variables, coordinates, attributes(optimizer, "perturbation"))
    return data.assign(num_examples=("lane", _counts()))


def surface(
    optimizer: str,
    class_names: tuple[str, ...] = CLASS_NAMES,
    *,
    num_alpha: int = 13,
    num_beta: int = 9,
    holes: bool = True,
    kind: str = "surface",
) -> xr.Dataset:
    """An asymmetric bowl: alpha and beta have other ranges, other counts and other curvatures."""
    alpha, beta = np.linspace(-1.0, 1.0, num_alpha), np.linspace(-0.6, 1.0, num_beta)
    sharp = SHARPNESS.get(optimizer, 0.8) * np.linspace(1.0, 3.0, 10)
    a, b = alpha[None, None, :], beta[None, :, None]
    bowl = class_losses(optimizer)[:, None, None] + sharp[:, None, None] * (
        a**2 + 2.5 * (b + 0.1 * a) ** 2 + 0.3 * a**3
    )
    loss = np.stack([_per_lane(bowl * scale + 0.02) for scale in (1.0, 1.3)])  # (pair, lane, beta, alpha)
    loss = np.moveaxis(loss, 1, -1)
    done = np.ones(loss.shape[:3], dtype=bool)
    if holes:
        done[:, 1, 2] = False  # never computed, though a number lies there
        loss[:, 7, 9] = np.nan
    variables = {"loss": (("pair", "beta", "alpha", "lane"), loss), "done": (("pair", "beta", "alpha"), done)}
    coordinates = {**_coordinates(class_names), "pair": [0, 1], "alpha": alpha, "beta": beta}
    data = xr.Dataset(variables, coordinates, attributes(optimizer, kind))
    return data.assign(num_examples=("lane", _counts()))


def surface_line(optimizer: str, class_names: tuple[str, ...] = CLASS_NAMES, num_alpha: int = 21) -> xr.Dataset:
    alpha = np.linspace(-1.0, 1.0, num_alpha)
    sharp = SHARPNESS.get(optimizer, 0.8) * np.linspace(1.0, 6.0, 10)
    pairs = [
        _per_lane(class_losses(optimizer)[:, None] + sharp[:, None] * k * alpha**2) for k in (0.6, 0.9, 1.0, 1.4, 2.2)
    ]
    loss = np.moveaxis(np.stack(pairs), 1, -1)
    variables = {"loss": (("pair", "alpha", "lane"), loss), "done": (("pair", "alpha"), np.ones(loss.shape[:2], bool))}
    coordinates = {**_coordinates(class_names), "pair": np.arange(5), "alpha": alpha}
    data = xr.Dataset(variables, coordinates, attributes(optimizer, "line"))
    return data.assign(num_examples=("lane", _counts()))


def surface_eigen(optimizer: str, class_names: tuple[str, ...] = CLASS_NAMES) -> xr.Dataset:
    plane = surface(optimizer, class_names, num_alpha=11, num_beta=15, holes=False, kind="eigen").isel(pair=[0])
    return plane.assign_attrs(lane="tail", alpha_label="along v_min of tail", beta_label="along v_max of tail")


def with_views(data: xr.Dataset) -> xr.Dataset:
    """Add what a measurement may hold beside the loss: its error over images, error and margin, both policies and splits."""
    loss = data["loss"]
    share = np.sqrt(1.0 / data["num_examples"])
    data = data.assign(
        increase_stderr=0.2 * np.abs(loss - loss.isel(alpha=loss.sizes["alpha"] // 2)) * share,
        error=np.tanh(0.3 * loss),
        margin=3.0 - loss,
    )
    for prefix, factor in (("recalibrated_", 0.6), ("held_out_", 1.4), ("recalibrated_held_out_", 0.9)):
        for name in ("loss", "increase_stderr", "error", "margin"):
            data[f"{prefix}{name}"] = data[name] * factor
    data["held_out_num_examples"] = data["num_examples"] * 0 + 100
    return data.assign_attrs(theta_norm=21.4, logit_norm=7.5)


def difference(first: str, second: str, make: Any = surface, class_names: tuple[str, ...] = CLASS_NAMES) -> xr.Dataset:
    """The difference of two surfaces with an interval as wide as a third of it, plus something."""
    a, b = make(first, class_names), make(second, class_names)
    value = a["loss"] - b["loss"]
    half = np.abs(value) / 3 + 0.15
    data = a[["done", "num_examples"]].assign(
        loss_difference=value, loss_difference_low=value - half, loss_difference_high=value + half
    )
    return data.assign_attrs(a.attrs | {"first": first, "second": second, "level": 0.95})


def escape(optimizer: str, class_names: tuple[str, ...] = CLASS_NAMES) -> xr.Dataset:
    """Walks that gain more the rarer the class, and cost the head a little."""
    rng = _rng(optimizer, "escape")
    names = [*class_names, *GROUPS, "all"]
    lengths = np.array([0.1, 0.3, 1.0])
    own = -np.geomspace(1e-4, 0.6, 10) * SHARPNESS.get(optimizer, 0.8)
    own[0] = 0.0  # nothing decreases it
    change = np.abs(rng.normal(0, 0.02, (10, 14))) * (own != 0)[:, None]
    change[np.arange(10), np.arange(10)] = own
    steps = np.concatenate([-lengths[::-1], lengths])
    increase = change[:, None, :] * np.array([-0.2, 0.1, 0.3, 0.4, 1.0, 0.7])[None, :, None]
    at_best = increase[:, 4]
    distance = np.where(own < 0, 0.3, 0.0)
    coordinates = _coordinates(class_names)
    variables = {
        "increase": (("lane", "step", "affected_lane"), increase),
        "increase_at_best": (("lane", "affected_lane"), at_best),
        "increase_at_best_stderr": (("lane", "affected_lane"), np.abs(at_best) * np.linspace(0.1, 0.7, 14)),
        "gradient_increase_at_best": (("lane", "affected_lane"), at_best * 2.5),
        "best_decrease": ("lane", -own),
        "affordable_decrease": ("lane", -own / 4),
        "affordable_distance": ("lane", distance / 3),
        "increase_at_affordable": (("lane", "affected_lane"), at_best / 4),
        "best_distance": ("lane", distance),
        "num_examples": ("lane", np.array(COUNTS)),
        "loss_at_weights": ("affected_lane", _per_lane(class_losses(optimizer))),
    }
    return xr.Dataset(
        variables,
        {
            "lane": list(class_names),
            "lane_kind": ("lane", coordinates["lane_kind"][1][:10]),
            "lane_group": ("lane", coordinates["lane_group"][1][:10]),
            "affected_lane": names,
            "affected_kind": ("affected_lane", coordinates["lane_kind"][1]),
            "step": ("step", steps, {"units": "tenths of the norm of the weights"}),
        },
        attributes(optimizer, "escape"),
    )


def flatness(optimizer: str = "sgd", factor: float = 1.0, class_names: tuple[str, ...] = CLASS_NAMES) -> xr.Dataset:
    """Loss from 0.03 to 1.6; one measure a power of it, one with both signs, one that does not exist."""
    whole = spectrum(optimizer, class_names)
    loss = whole["loss"]
    nats = {"units": "nats per example", "exactness": "estimated"}
    dataset = xr.Dataset(
        {
            "loss": loss,
            "num_examples": whole["num_examples"],
            "gradient_norm": whole["gradient_norm"].assign_attrs(units="nats per example and weight unit"),
            "mean_increase": (factor * 0.1 * loss**1.5).assign_attrs(nats),
            "mean_increase_stderr": 0.02 * loss**1.5,
            "worst_case_increase": (0.3 + 0.1 * loss).assign_attrs(nats | {"exactness": "lower bound of the maximum"}),
            "radial_slope": (loss - 0.5).assign_attrs(nats),
            "relative_flatness": (loss * np.nan).assign_attrs(nats),
            "m_sharpness_batch_size": loss * 0 + 4,
        },
        attrs=whole.attrs | {"kind": "flatness"},
    )
    return dataset.reset_coords(drop=True).assign_coords(whole["loss"].coords)


SLOPE, CURVATURE = np.array([0.5, -1.0]), np.array([[4.0, 1.0], [1.0, 6.0]])


def with_models(surface: xr.Dataset, *, radius: float = 0.5, aspect: float = 1.0) -> xr.Dataset:
    """The same quadratic for all lanes and pairs but for the value at the weights; the fit is 1.5 times as curved."""
    axes = [axis for axis in ("alpha", "beta") if axis in surface.dims]
    pairs, lanes, k = surface.sizes["pair"], surface.sizes["lane"], len(axes)
    slope = np.broadcast_to(SLOPE[None, :k, None], (pairs, k, lanes))
    curvature = np.broadcast_to(CURVATURE[None, :k, :k, None], (pairs, k, k, lanes))
    radii = np.full((pairs, lanes), radius)
    radii[:, 0] = np.nan
    fitted = np.where(np.isnan(radii)[:, None, None], np.nan, 1.5 * curvature)
    terms, bends = ("pair", "axis", "lane"), ("pair", "axis", "other_axis", "lane")
    added = {
        "centre": ("lane", np.arange(lanes) + 1.0),
        "slope": (terms, slope),
        "curvature": (bends, curvature),
        "curvature_stderr": (bends, 0.1 * curvature),
        "fitted_centre": (("pair", "lane"), np.broadcast_to(np.arange(lanes) + 1.0, (pairs, lanes))),
        "fitted_slope": (terms, slope),
        "fitted_curvature": (bends, fitted),
        "fitted_curvature_stderr": (bends, 0.01 * fitted),
        "fitted_radius": (("pair", "lane"), radii),
    }
    return surface.assign(added).assign_attrs(fitted_aspect=aspect, fitted_radius_rule="the largest that qualifies")


def tree(optimizer: str = "sgd", class_names: tuple[str, ...] = CLASS_NAMES) -> xr.DataTree:
    """Every group of one checkpoint."""
    makers = {
        "accuracy": accuracy,
        "spectrum": spectrum,
        "layers": layers,
        "matched": matched,
        "perturbation": perturbation,
        "surface": lambda *given: with_views(surface(*given)),
        "surface_line": lambda *given: with_models(with_views(surface_line(*given))),
        "surface_eigen": lambda *given: with_views(surface_eigen(*given)),
        "surface_difference": lambda name, classes: difference(name, "gnm", surface, classes),
        "surface_line_difference": lambda name, classes: difference(name, "gnm", surface_line, classes),
        "escape": escape,
        "flatness": lambda name, classes: flatness(name, class_names=classes),
    }
    return xr.DataTree.from_dict({name: make(optimizer, class_names) for name, make in makers.items()})


def trees(optimizers: tuple[str, ...] = ("sgd", "sam", "gnm")) -> dict[str, xr.DataTree]:
    return {name: tree(name) for name in optimizers}
