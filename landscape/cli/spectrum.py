"""The command ``spectrum``: of one checkpoint, over a training, per layer, at matched size, or as others measure it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli import options as opt
from landscape.cli.app import app
from landscape.cli.measuring import measure_groups
from landscape.cli.spectrum_tables import print_groups, show_groups
from landscape.cli.terminal import note, say
from landscape.errors import LandscapeError, require_whole, unknown_name

if TYPE_CHECKING:
    import xarray as xr

    from landscape.pipeline import Prepared
    from landscape.spectrum import SpectrumOptions
    from landscape.trajectory import Snapshot

BACKENDS = ("ours", "pyhessian")
PROTOCOLS = ("ours", "saddle-longtail")
# The fields of SpectrumOptions that the command line offers, and those of them that PyHessian has.
SETTINGS = (
    *("num_probes", "num_steps", "max_steps", "threshold", "until", "budget", "num_extremes", "tolerance"),
    *("basis", "certify", "num_traces", "trace"),
)
OF_PYHESSIAN = ("num_probes", "num_steps", "tolerance")
OF_DENSITY = ("num_probes", "num_steps", "num_traces", "trace")
PICTURES = (".png", ".pdf")


def spectrum_options(
    num_probes: Annotated[
        int | None, opt.option("--num-probes", "Density probes; 0: the extreme run is its own.", opt.ANALYSIS)
    ] = None,
    num_steps: Annotated[int | None, opt.option("--num-steps", "Lanczos steps per probe.", opt.ANALYSIS)] = None,
    max_steps: Annotated[int | None, opt.option("--max-steps", "Most steps for the extremes.", opt.ANALYSIS)] = None,
    threshold: Annotated[
        float | None,
        opt.option("--threshold", "Negative curvature counts above this share of lambda_max.", opt.ANALYSIS),
    ] = None,
    until: Annotated[
        str | None,
        opt.option("--until", "converged, or verdict: stop when decided, no density.", opt.ANALYSIS),
    ] = None,
    budget: Annotated[
        int | None, opt.option("--budget", "Hessian products per lane, all included.", opt.ANALYSIS)
    ] = None,
    num_extremes: Annotated[int | None, opt.option("--num-extremes", "Eigenpairs at either end.", opt.ANALYSIS)] = None,
    tolerance: Annotated[
        float | None, opt.option("--tolerance", "Residual at which an extreme has converged, in |H|.", opt.ANALYSIS)
    ] = None,
    basis: Annotated[
        str | None, opt.option("--basis", "Where Lanczos vectors live: auto, device, host or none.", opt.ANALYSIS)
    ] = None,
    certify: Annotated[
        str | None,
        opt.option(
            "--certify", "Float64 residuals: of both ends (float64), the lowest, or own precision.", opt.ANALYSIS
        ),
    ] = None,
    num_traces: Annotated[
        int | None, opt.option("--num-traces", "XTrace test vectors, two products each.", opt.ANALYSIS)
    ] = None,
    trace: Annotated[
        str | None, opt.option("--trace", "auto, exact (piecewise linear networks), or probes.", opt.ANALYSIS)
    ] = None,
    layers: Annotated[bool, opt.option("--layers", "Also the spectrum of every layer.", opt.ANALYSIS)] = False,
    matched: Annotated[
        int | None,
        opt.option("--matched", "Also the ends at equal class sizes, over N draws of the images.", opt.ANALYSIS),
    ] = None,
    backend: Annotated[
        str, opt.option("--backend", "ours, or pyhessian: that package on the same images.", opt.ANALYSIS)
    ] = "ours",
    protocol: Annotated[
        str,
        opt.option("--protocol", "ours, or saddle-longtail: the released settings beside ours.", opt.ANALYSIS),
    ] = "ours",
) -> None:
    """Options of the spectrum alone."""


@app.command()
@opt.takes(*opt.ANALYSES, spectrum_options)
def spectrum(
    checkpoint: Annotated[list[Path], typer.Argument(metavar="CKPT", help="One checkpoint, or those of one training.")],
    out: opt.Out,
    *,
    given: dict[str, Any],
) -> None:
    """Measure Hessian spectra: density, both extremes with residuals, trace, negative energy, verdict.

    Several checkpoints of one training are ordered by epoch, each measured from where the one before ended, and drawn
    over the epochs beside FILE.
    """
    chosen = {name: given[name] for name in SETTINGS if given[name] is not None}
    _require_sense(checkpoint, out, given, chosen)
    first, recipe = (
        checkpoint[0],
        {**chosen, **{name: given[name] for name in ("layers", "matched", "backend", "protocol")}},
    )
    snapshots: list[Snapshot] = []
    if len(checkpoint) > 1:
        from landscape.trajectory import order_snapshots, recipe_of

        snapshots = order_snapshots(checkpoint)
        first = snapshots[0].path
        recipe |= {"snapshots": recipe_of(snapshots)}
        if len(snapshots) < len(checkpoint):
            note(f"{len(checkpoint) - len(snapshots)} of {len(checkpoint)} files hold the same weights as another")

    def measure(ready: Prepared, lanes: Any, shared: dict[str, Any]) -> dict[str, xr.Dataset]:
        if snapshots:
            return {"trajectory": _trajectory(snapshots, ready, given, chosen, lanes=lanes, shared=shared)}
        if given["backend"] == "pyhessian":
            return {"spectrum": _with_pyhessian(ready, lanes, chosen, shared)}
        if given["protocol"] == "saddle-longtail":
            return _as_released(ready, given, chosen, lanes=lanes, shared=shared)
        return _ours(ready, given, chosen, lanes=lanes, shared=shared)

    cost = {
        "part": "spectrum",
        "adapt": lambda plan: replace(plan, spectrum=replace(plan.spectrum, **chosen)),
        "num_times": max(len(snapshots), 1 + (given["matched"] or 0)),
    }
    groups = measure_groups(first, out, given, measure, recipe, inputs=checkpoint, cost=cost)
    if groups is None:
        return
    pictures = _draw(groups, out) if set(groups) != {"spectrum"} else []
    if given["as_json"]:
        print_groups(groups)
        return
    show_groups(groups)
    say(f"results: {', '.join(map(str, [out, *pictures]))}")


def _require_sense(checkpoints: Sequence[Path], out: Path, given: dict[str, Any], chosen: dict[str, Any]) -> None:
    """Refuse, before any work, what cannot be combined."""
    for name, known in (("backend", BACKENDS), ("protocol", PROTOCOLS)):
        if given[name] not in known:
            raise unknown_name(name, given[name], known)
    kinds = {
        "several checkpoints": len(checkpoints) > 1,
        "--backend pyhessian": given["backend"] == "pyhessian",
        "--protocol saddle-longtail": given["protocol"] == "saddle-longtail",
        "--layers or --matched": given["layers"] or given["matched"] is not None,
    }
    wanted = [kind for kind, is_wanted in kinds.items() if is_wanted]
    if len(wanted) > 1:
        raise LandscapeError(
            f"expected one kind of measurement, got {', and '.join(wanted)}: run the command once for each"
        )
    if given["matched"] is not None:
        require_whole("--matched", given["matched"], 1)
    if out.suffix in PICTURES:
        raise LandscapeError(f"--out {out}: figures get that ending; choose a name such as {out.with_suffix('.nc')}")
    if chosen.get("until") == "verdict":
        _refuse(chosen, OF_DENSITY, "--until verdict measures no density")
    if given["backend"] == "pyhessian":
        others = [name for name in SETTINGS if name not in OF_PYHESSIAN]
        _refuse(chosen, others, "PyHessian takes --num-probes, --num-steps and --tolerance alone")
        _require_value(given, "augment", ("none", "frozen"), "--backend pyhessian", "choose --protocol saddle-longtail")
    if given["protocol"] == "saddle-longtail":
        what = "--protocol saddle-longtail"
        _require_value(given, "augment", ("none",), what, "it draws the images anew itself")
        _require_value(given, "objective", ("own", "ce"), what, "it measures cross-entropy, whatever the training")
    if given["dry_run"] and wanted and (wanted[0].startswith(("--backend", "--protocol")) or given["layers"]):
        what = "--layers" if given["layers"] else wanted[0]
        raise LandscapeError(f"--dry-run: expected a measurement whose cost is known, got {what}; leave either out")
    if wanted and wanted[0].startswith(("--backend", "--protocol")):
        _require_value(given, "group_average", ("examples",), wanted[0], "PyHessian pools the examples of a group")
    _require_settings(given, chosen)


def _require_settings(given: dict[str, Any], chosen: dict[str, Any]) -> None:
    """Refuse impossible numbers before anything is loaded, by the names that were typed."""
    from landscape.plan import choose_plan
    from landscape.spectrum.bridge import PyHessianSettings

    plan = choose_plan(given["preset"])
    try:
        if given["backend"] == "pyhessian":
            PyHessianSettings(**chosen)
        else:
            replace(plan.spectrum, **chosen)
    except LandscapeError as error:
        what, colon, why = str(error).partition(":")
        what = re.sub(r"\w+", lambda word: _flag(word[0]) if word[0] in SETTINGS else word[0], what)
        raise LandscapeError(what + colon + why) from None


def _refuse(chosen: dict[str, Any], names: Sequence[str], reason: str) -> None:
    for name in names:
        if name in chosen:
            raise LandscapeError(f"{_flag(name)} {chosen[name]}: {reason}; leave it out")


def _require_value(given: dict[str, Any], name: str, allowed: Sequence[str], what: str, reason: str) -> None:
    if given[name] not in allowed:
        expected = " or ".join(allowed)
        raise LandscapeError(f"{what} expects {_flag(name)} {expected}, got {given[name]}: {reason}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _options(ready: Prepared, chosen: dict[str, Any]) -> SpectrumOptions:
    return replace(ready.plan.spectrum, **chosen)


def _ours(
    ready: Prepared, given: dict[str, Any], chosen: dict[str, Any], *, lanes: Any, shared: dict[str, Any]
) -> dict[str, xr.Dataset]:
    from landscape.risk.augmented import require_fixed
    from landscape.spectrum import measure_spectrum
    from landscape.trajectory import add_accuracy

    if given["layers"] or given["matched"] is not None:
        require_fixed(ready.risk, "--layers" if given["layers"] else "--matched")
    options = _options(ready, chosen)
    groups = {"spectrum": measure_spectrum(ready.risk, lanes, options=options, **shared)}
    add_accuracy(groups["spectrum"], ready.risk, lanes, group_average=shared["group_average"])
    if given["layers"]:
        from landscape.spectrum.layers import measure_layers

        groups["layers"] = measure_layers(ready.risk, lanes, options=options, **shared)
    if given["matched"] is not None:
        from landscape.spectrum.matched import measure_matched

        groups["matched"] = measure_matched(ready.risk, lanes, num_draws=given["matched"], options=options, **shared)
    return groups


def _trajectory(
    snapshots: Sequence[Snapshot],
    ready: Prepared,
    given: dict[str, Any],
    chosen: dict[str, Any],
    *,
    lanes: Any,
    shared: dict[str, Any],
) -> xr.Dataset:
    from landscape.loading import load_checkpoint, risk_of
    from landscape.risk import ClassRisk
    from landscape.trajectory import measure_trajectory

    def open_risk(path: Path) -> ClassRisk:
        if path == ready.source.path:
            return ready.risk
        source = replace(ready.source, path=path)
        return risk_of(load_checkpoint(source), source)

    return measure_trajectory(snapshots, open_risk, lanes, options=_options(ready, chosen), **shared)


def _with_pyhessian(ready: Prepared, lanes: Any, chosen: dict[str, Any], shared: dict[str, Any]) -> xr.Dataset:
    from landscape.spectrum.bridge import PyHessianSettings
    from landscape.spectrum.pyhessian import measure_spectrum_with_pyhessian
    from landscape.trajectory import add_accuracy

    own = {name: value for name, value in shared.items() if name != "group_average"}
    risk: Any = ready.risk  # it says itself what it takes
    dataset = measure_spectrum_with_pyhessian(risk, lanes, settings=PyHessianSettings(**chosen), **own)
    add_accuracy(dataset, ready.risk, lanes)
    return dataset


def _as_released(
    ready: Prepared, given: dict[str, Any], chosen: dict[str, Any], *, lanes: Any, shared: dict[str, Any]
) -> dict[str, xr.Dataset]:
    """Measure as released, and by ourselves on the same images as stored: all of them unless --max-per-class says."""
    from landscape.loading import risk_of
    from landscape.spectrum import measure_spectrum
    from landscape.spectrum.saddle_longtail import measure_released
    from landscape.trajectory import add_accuracy

    source = replace(ready.source, loss="ce", max_per_class=given["max_per_class"])
    own = {name: value for name, value in shared.items() if name != "group_average"}
    released = measure_released(ready.loaded, source, "classes" if lanes is None else lanes, **own)
    risk = risk_of(ready.loaded, source)
    ours = measure_spectrum(risk, lanes, options=_options(ready, chosen), **shared)
    add_accuracy(ours, risk, lanes, group_average=shared["group_average"])
    return {"spectrum": ours, "released": released}


def _draw(groups: dict[str, xr.Dataset], out: Path) -> list[Path]:
    """Draw beside FILE what has a figure of its own; return the files."""
    from landscape.figures.layers import plot_layers, plot_matched
    from landscape.figures.released import plot_released_protocol
    from landscape.figures.saving import save_figure
    from landscape.figures.trajectories import plot_trajectory

    stem, files = out.with_suffix(""), []
    if "trajectory" in groups:
        files += save_figure(plot_trajectory(groups["trajectory"]), stem)
    if "released" in groups:
        files += save_figure(plot_released_protocol(groups["released"], groups["spectrum"], lanes="every"), stem)
    if "layers" in groups:
        files += save_figure(plot_layers(groups["layers"]), stem.with_name(f"{stem.name}-layers"))
    if "matched" in groups:
        files += save_figure(plot_matched(groups["matched"]), stem.with_name(f"{stem.name}-matched"))
    return files
