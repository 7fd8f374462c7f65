"""What the command ``spectrum`` prints: tables within 120 columns, what their error bars are, evidence, JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from landscape.cli.terminal import end_of_spectrum, meaning_of_trace_error, print_json, say, show_table, with_error

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

WITHOUT_VERDICT = ("undecided", "refused")
GROUP_LANES = ("head", "medium", "tail", "all")
# Whose losses an escape is printed for, beside the lane's own; the figure shows all.
ESCAPED = ("head", "tail")
# Columns of the terminal.
WIDTH = 118


def print_groups(groups: Mapping[str, xr.Dataset]) -> None:
    """Print everything that was measured as JSON: a list of lanes, of checkpoints, or both by the name of the group."""
    content = {name: _records(name, dataset) for name, dataset in groups.items()}
    print_json(content["spectrum"] if list(content) == ["spectrum"] else content)


def _records(group: str, dataset: xr.Dataset) -> list[dict[str, Any]]:
    if group != "trajectory":
        return _lane_records(dataset)
    facts = ("file", "epoch", "sha256")
    each = [dataset.isel(checkpoint=index) for index in range(dataset.sizes["checkpoint"])]
    return [{**{name: one[name].values for name in facts}, "lanes": _lane_records(one)} for one in each]


def _lane_records(dataset: xr.Dataset) -> list[dict[str, Any]]:
    records = []
    for lane in dataset.lane.values:
        one = dataset.sel(lane=lane)
        values = {str(name): one[name].values for name in one.data_vars}
        if "gradient_norm" in values and "lambda_max" in values:
            values |= {"ratio": _ratio(one), "lambda_min_over_gradient": _over_gradient(one)}
        records.append({"lane": str(lane), **values})
    return records


def show_groups(groups: Mapping[str, xr.Dataset]) -> None:
    """Print tables of what was measured, and in one line each what the error bars are."""
    shows = {
        "spectrum": show_spectrum,
        "trajectory": show_trajectory,
        "layers": show_layers,
        "matched": show_matched,
        "released": show_released,
    }
    for index, (name, dataset) in enumerate(groups.items()):
        if index:
            say("")
        shows[name](dataset)


def show_spectrum(dataset: xr.Dataset) -> None:
    """Print every lane: its ends and verdict, what the verdict rests on, the escapes, the density; what is missing is left out."""
    lanes = [str(name) for name in dataset.lane.values]
    show_table(
        {
            "lane": lanes,
            "n": [str(n) for n in dataset.num_examples.values],
            "loss": _numbers(dataset, "loss", 4),
            "accuracy": _with_errors(dataset, "accuracy", "accuracy_stderr"),
            "|g|": _numbers(dataset, "gradient_norm"),
            "lambda_min": _ends(dataset, "lambda_min"),
            "lambda_max": _ends(dataset, "lambda_max"),
            "verdict": [str(v) for v in dataset.verdict.values],
        }
    )
    say("loss, |g|: exact over the n examples; accuracy ± standard error as an estimate for the classes' population")
    if _is_refused(dataset):
        say(
            "the images were redrawn at every product: lambda, trace and negative energy belong to no matrix, ± included"
        )
    elif _is_known(dataset, "lambda_min_error"):
        say(meaning_of_ends(dataset))
    else:
        say("lambda: extreme Ritz values, no error bars")
    show_evidence(dataset)
    for show in (_show_context, _show_escapes, _show_density):
        show(dataset, lanes)
    say(f"{int(dataset.num_hvps.sum())} Hessian products")


def _show_context(dataset: xr.Dataset, lanes: Sequence[str]) -> None:
    """Print what verdicts rest on: the curvature beside the slope, its parts, and what other images would say."""
    if not _is_known(dataset, "crossover_radius"):
        return
    has_split, has_images = (_is_known(dataset, name) for name in ("gauss_newton_curvature", "curvature_low"))
    columns = {
        "lane": lanes,
        "ratio": [_number(v) for v in _ratio(dataset)],
        "|lmin|/|g|": [_number(v) for v in _over_gradient(dataset)],
        "crossover": _numbers(dataset, "crossover_radius"),
        "quadratic": _numbers(dataset, "quadratic_radius"),
    }
    if has_split:
        columns |= {
            "v'Gv": _numbers(dataset, "gauss_newton_curvature"),
            "v'Fv": _numbers(dataset, "functional_curvature"),
        }
    if has_images:
        columns["v'Hv over images"] = _intervals(dataset, "curvature", has_value=False)
    say("")
    show_table(columns)
    say(
        "ratio: max(-lambda_min, 0) / lambda_max; crossover: 2|g|/|lambda_min|, the radius beyond which curvature outweighs the"
    )
    say("  slope; errors as lambda_min's. quadratic: how far the loss follows its parabola along v_min, found to 9 %")
    if has_split:
        say("v'Gv + v'Fv = v'Hv = lambda_min: the loss's curvature (Gauss-Newton) and the network's own, to rounding")
    if has_images:
        say(
            f"v'Hv over images: {_level(dataset)} interval, v_min held fixed; one that reaches 0 may not outlast other images"
        )


def _show_escapes(dataset: xr.Dataset, lanes: Sequence[str]) -> None:
    """Print what following v_min or -gradient to the quadratic radius does to the lane itself and to groups."""
    walked = [lane for lane in lanes if float(_of(dataset, lane, "quadratic_radius")) > 0]
    if not walked or "escape_along_v" not in dataset:
        return
    known = [str(name) for name in dataset.affected_lane.values]
    columns: dict[str, list[str]] = {
        "lane": walked,
        "radius": [_number(_of(dataset, x, "quadratic_radius")) for x in walked],
    }
    for affected in ("itself", *(name for name in ESCAPED if name in known)):
        for name, title in (("escape_along_v", "v"), ("escape_along_gradient", "-g")):
            cells = dataset[name]
            columns[f"{affected}, {title}"] = [
                _number(float(cells.sel(lane=x, affected_lane=x if affected == "itself" else affected))) for x in walked
            ]
    say("")
    show_table(columns)
    say(
        "escapes: change of the loss (- falls) at the quadratic radius along v_min's better side, and as far along -gradient;"
    )
    say("  exact evaluations")


def _show_density(dataset: xr.Dataset, lanes: Sequence[str]) -> None:
    """Print the estimates of the whole spectrum; of a redrawn operator only what PyHessian would print, without errors."""
    if not _is_known(dataset, "trace"):
        return
    if _is_refused(dataset):
        dataset = dataset.drop_vars(
            [name for name in dataset.data_vars if str(name).endswith(("_stderr", "_low", "_high"))]
        )
        dataset = dataset.drop_vars(["index_lower_bound", "negative_mass"], errors="ignore")
    columns = {"lane": lanes, "trace": _with_errors(dataset, "trace", "trace_stderr")}
    columns["negative energy"] = _intervals(dataset, "negative_energy")
    if _is_known(dataset, "negative_mass"):
        columns["negative mass"] = _intervals(dataset, "negative_mass")
    if _is_known(dataset, "index_lower_bound"):
        columns["index"] = [f">= {v:.0f}" if v == v else "-" for v in _values(dataset, "index_lower_bound")]
    columns["products"] = _numbers(dataset, "num_hvps", 6)
    say("")
    show_table(columns)
    if _is_known(dataset, "trace_stderr"):
        say(f"trace ± {meaning_of_trace_error(dataset)}")
    else:
        say("trace, negative energy: no error bars")
    if _is_known(dataset, "negative_energy_low"):
        say(
            f"negative energy: share of tr|H| below zero, with its {_level(dataset)} interval over probes and truncation"
        )
    if "negative mass" in columns:
        share = 100 * float(dataset.attrs.get("option_threshold", 0.01))
        say(
            f"negative mass: share of the eigenvalues below -{share:g} % of lambda_max, with its {_level(dataset)} interval"
        )
    if "index" in columns:
        say("index: the Hessian has at least so many negative eigenvalues")


def show_evidence(dataset: xr.Dataset) -> None:
    """Print why lanes have no verdict, once for all that share the reason."""
    if "evidence" not in dataset:
        return
    reasons: dict[tuple[str, str], list[str]] = {}
    for lane, verdict, evidence in zip(dataset.lane.values, dataset.verdict.values, dataset.evidence.values):
        if verdict in WITHOUT_VERDICT:
            reasons.setdefault((str(verdict), str(evidence)), []).append(str(lane))
    for (verdict, evidence), lanes in reasons.items():
        text = f"{verdict} ({', '.join(lanes)}): {evidence}"
        say("\n".join(textwrap.wrap(text, WIDTH, subsequent_indent="  ")))


def show_trajectory(dataset: xr.Dataset) -> None:
    """Print groups and the whole (or every lane there is) of every checkpoint."""
    lanes = _few_lanes(dataset)
    each = [dataset.isel(checkpoint=index).sel(lane=lanes) for index in range(dataset.sizes["checkpoint"])]
    columns: dict[str, list[str]] = {}
    for one in each:
        rows = {
            "epoch": [f"{float(one.epoch):g}"] * len(lanes),
            "lane": lanes,
            "loss": _numbers(one, "loss", 4),
            "accuracy": _with_errors(one, "accuracy", "accuracy_stderr"),
            "|g|": _numbers(one, "gradient_norm"),
            "lambda_min": _ends(one, "lambda_min"),
            "lambda_max": _ends(one, "lambda_max"),
            "ratio": [_number(v) for v in _ratio(one)],
            "overlap": _numbers(one, "overlap_previous", 2),
            "verdict": [str(v) for v in one.verdict.values],
        }
        for name, cells in rows.items():
            columns.setdefault(name, []).extend(cells)
    show_table(columns)
    say(f"accuracy ± standard error; {meaning_of_ends(dataset)}")
    say("ratio: max(-lambda_min, 0) / lambda_max")
    say("overlap: squared cosine of v_min with the checkpoint before")
    if dataset.attrs.get("epoch_means") == "position":
        say("epoch: the position in the list, since not every file states its epoch")
    for one in each:
        if set(map(str, one.verdict.values)) & set(WITHOUT_VERDICT):
            say(f"epoch {float(one.epoch):g}:")
            show_evidence(one)
    say(f"{int(dataset.num_hvps.sum())} Hessian products for {len(each)} checkpoints")


def show_layers(dataset: xr.Dataset) -> None:
    """Print the blocks of groups and the whole (or of every lane there is), layer by layer."""
    chosen = _few_lanes(dataset)
    layers = [str(name) for name in dataset.layer.values]
    columns: dict[str, list[str]] = {}
    for lane in chosen:
        one = dataset.sel(lane=lane)
        rows = {
            "lane": [lane] * len(layers),
            "layer": layers,
            "parameters": [str(n) for n in dataset.num_parameters.values],
            "lambda_min": _ends(one, "lambda_min"),
            "lambda_max": _ends(one, "lambda_max"),
            "trace": _with_errors(one, "trace", "trace_stderr"),
        }
        for name, cells in rows.items():
            columns.setdefault(name, []).extend(cells)
    show_table(columns)
    say("each layer's diagonal block of the Hessian; the whole's ends lie outside its blocks'")
    say(meaning_of_ends(dataset))


def show_matched(dataset: xr.Dataset) -> None:
    """Print each lane with every class on equally many images, beside all its images."""
    whole = dataset.num_examples_full.values == dataset.num_examples.values  # every draw is the same images
    columns = {"lane": [str(name) for name in dataset.lane.values]}
    columns["n"] = [str(n) for n in dataset.num_examples_full.values]
    columns["matched n"] = [str(n) for n in dataset.num_examples.values]
    for key, title in (("lambda_min", "lambda_min"), ("lambda_max", "lambda_max"), ("gradient_norm", "|g|")):
        is_end = key != "gradient_norm"
        full = _ends(dataset, key, "_full") if is_end else _numbers(dataset, f"{key}_full")
        drawn = _with_errors(dataset, f"{key}_mean", f"{key}_stderr")
        columns[title] = full
        columns[f"{title}, matched"] = ["the same" if same else cell for same, cell in zip(whole, drawn)]
    show_table(columns)
    draws, size = dataset.sizes["draw"], dataset.attrs["size"]
    errors = "mean ± standard error over draws" if draws > 1 else "one draw, no error bars"
    say(f"all images: {meaning_of_ends(dataset)}")
    say(f"matched: {size} images of every class, {draws} draws without replacement; {errors}")
    if whole.any():
        say("the same: the class has no more images, so every draw holds all of them")


def show_released(dataset: xr.Dataset) -> None:
    """Print what the released settings give."""
    show_table(
        {
            "lane": [str(name) for name in dataset.lane.values],
            "n": [str(n) for n in dataset.num_examples.values],
            "lambda_min": _numbers(dataset, "lambda_min"),
            "lambda_max": _numbers(dataset, "lambda_max"),
            "ratio": [_number(v) for v in _ratio(dataset)],
            "trace": _numbers(dataset, "trace"),
            "negative energy": _numbers(dataset, "negative_energy"),
            "verdict": [str(v) for v in dataset.verdict.values],
        }
    )
    say(
        f"released settings, augmentation {dataset.attrs.get('augmentation', 'none')}: Ritz values of one run, no error bars"
    )
    show_evidence(dataset)


def _few_lanes(dataset: xr.Dataset) -> list[str]:
    lanes = [str(name) for name in dataset.lane.values]
    return [lane for lane in GROUP_LANES if lane in lanes] or lanes


def _values(dataset: xr.Dataset, name: str) -> np.ndarray:
    """Return a variable over the lanes, NaN where it was not measured."""
    import numpy as np

    return dataset[name].values if name in dataset else np.full(dataset.num_hvps.shape, np.nan)


def _is_known(dataset: xr.Dataset, name: str) -> bool:
    values = _values(dataset, name)
    return bool((values == values).any())


def _is_refused(dataset: xr.Dataset) -> bool:
    return bool((dataset.verdict == "refused").any())


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}g}" if abs(value) < float("inf") else "-"


def _numbers(dataset: xr.Dataset, name: str, digits: int = 3) -> list[str]:
    return [_number(float(value), digits) for value in _values(dataset, name)]


def _with_errors(dataset: xr.Dataset, name: str, *errors: str) -> list[str]:
    total = sum(_values(dataset, error) for error in errors)
    return [with_error(float(v), float(e)) for v, e in zip(_values(dataset, name), total)]  # type: ignore[arg-type]


def _ends(dataset: xr.Dataset, name: str, suffix: str = "") -> list[str]:
    pairs = zip(_values(dataset, f"{name}{suffix}"), _values(dataset, f"{name}_error{suffix}"))
    is_low, is_one_sided = name == "lambda_min", is_one_sided_run(dataset)
    return [end_of_spectrum(float(v), float(e), is_low=is_low, is_one_sided=is_one_sided) for v, e in pairs]


def is_one_sided_run(dataset: xr.Dataset) -> bool:
    """Whether the runs stopped as soon as verdicts were clear, their ends being bounds from one side."""
    return str(dataset.attrs.get("option_until", "")) == "verdict"


def meaning_of_ends(dataset: xr.Dataset) -> str:
    """Return what stands beside the ends of a table, in one line."""
    if is_one_sided_run(dataset):
        return "lambda: the run stopped when the verdict was clear, so the ends are bounds from one side"
    chance = float(dataset.attrs.get("lower_bound_probability", 0.999))
    return f"lambda ± error: holds the smallest (largest) eigenvalue itself with probability {chance:g} over the run's start"


def _intervals(dataset: xr.Dataset, name: str, *, has_value: bool = True) -> list[str]:
    low, high = (_values(dataset, name + end) for end in ("_low", "_high"))
    values = _numbers(dataset, name) if has_value else [""] * len(low)
    cells = [f"{v} [{_number(a)}, {_number(b)}]" if a == a else v or "-" for v, a, b in zip(values, low, high)]
    return [cell.strip() for cell in cells]


def _of(dataset: xr.Dataset, lane: str, name: str) -> float:
    return float(dataset[name].sel(lane=lane)) if name in dataset else float("nan")


def _level(dataset: xr.Dataset) -> str:
    return f"{100 * float(dataset.attrs['interval_level']):g} %"


def _ratio(dataset: xr.Dataset) -> Any:
    from landscape.ratios import curvature_ratio

    return curvature_ratio(dataset.lambda_min.values, dataset.lambda_max.values)


def _over_gradient(dataset: xr.Dataset) -> Any:
    from landscape.ratios import curvature_over_gradient

    return curvature_over_gradient(dataset.lambda_min.values, dataset.gradient_norm.values)
