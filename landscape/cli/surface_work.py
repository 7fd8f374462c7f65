"""The work of ``landscape surface``: prepared checkpoints, their axes, range and journals, the files that come out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.cli import options as opt
from landscape.cli.terminal import ProgressLine, note, show_estimate
from landscape.errors import LandscapeError, unknown_name

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from landscape.loading import SplitName
    from landscape.pipeline import Prepared
    from landscape.risk import ClassRisk, ModelRisk
    from landscape.surface import Axes

AUTO = "auto"
NAMED = ("random", "eigen:LANE", "gradient:LANE", "CKPT", "CKPT,CKPT", "trajectory:CKPT,CKPT,...")
OWN: tuple[str, ...] = (
    "kind",
    "directions",
    "normalization",
    "one_dimensional",
    "x",
    "y",
    "range_",
    "delta",
    "num_pairs",
    "batchnorm",
)
OWN += ("calibration", "held_out", "keep_examples", "quadratic", "refine", "precision")


def other_files(directions: str) -> list[Path]:
    """Return the checkpoints that the directions name; LandscapeError for a name that means nothing."""
    kind, colon, rest = directions.partition(":")
    if directions == "random" or (kind in ("eigen", "gradient") and colon and rest):
        return []
    if kind in ("eigen", "gradient") and colon:
        raise LandscapeError(f"--directions {directions}: expected a lane behind the colon, such as {kind}:tail")
    paths = [Path(part) for part in (rest if kind == "trajectory" and colon else directions).split(",")]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise unknown_name("--directions (or no such checkpoint)", str(missing[0]), NAMED)
    return paths


def axes_of(text: str, kind: str, risk: ClassRisk, seed: int) -> Axes:
    """Return the axes that ``--directions`` names, of one risk; not for random ones."""
    from landscape.checkpoint import read_checkpoint
    from landscape.surface import between_axes, eigen_axes, gradient_axes, three_point_axes, trajectory_axes

    name, _, rest = text.partition(":")
    if name == "eigen" and rest:
        return eigen_axes(risk, rest, ends="min" if kind == "line" else "both", seed=seed)
    if name == "gradient" and rest:
        return gradient_axes(risk, rest)
    files = [read_checkpoint(path) for path in other_files(text)]
    if name == "trajectory" and rest:
        return trajectory_axes(risk, [*files], num=1 if kind == "line" else 2)
    if len(files) == 1:
        if kind != "line":
            raise LandscapeError(f"--directions {text}: the way to another checkpoint is a line; add --kind line")
        return between_axes(risk, files[0])
    if len(files) == 2:
        if kind != "plane":
            raise LandscapeError(f"--directions {text}: two other checkpoints span a plane; add --kind plane")
        return three_point_axes(risk, files[0], files[1])
    raise LandscapeError(
        f"--directions {text}: expected one or two checkpoints, or trajectory:CKPT,CKPT,..., got {len(files)}"
    )


class SurfaceWork:
    """What the command measures: the prepared checkpoints with their options, journals and range."""

    def __init__(
        self, ready: Mapping[str, Prepared], given: dict[str, Any], grid: Mapping[str, Any], journals: Mapping[str, Any]
    ) -> None:
        self.ready, self.given, self.journals = ready, given, journals
        self._grid = grid
        self.risks = {name: one.risk for name, one in ready.items()}
        self.radii: dict[str, xr.Dataset] = {}

    @classmethod
    def of(
        cls,
        sources: Mapping[str, Any],
        given: dict[str, Any],
        grid: Mapping[str, Any],
        folder: Path,
        others: Sequence[Path],
    ) -> SurfaceWork:
        """Prepare every checkpoint and, unless this is a dry run, its journal."""
        from landscape.pipeline import prepare
        from landscape.results import Journal
        from landscape.risk.augmented import require_fixed

        spec = opt.analysis_spec(given)
        ready = {name: prepare(source, spec) for name, source in sources.items()}
        recipe = {name: given[name] for name in OWN}
        recipe["others"] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in others]
        journals = {}
        for name, one in ready.items():
            require_fixed(one.risk, "a surface")
            whole = {**one.risk.attributes, "spec": asdict(spec), "plan": asdict(one.plan), **recipe}
            journals[name] = Journal(folder, whole) if not given["dry_run"] else None
        return cls(ready, given, grid, journals)

    @property
    def _plan(self) -> Any:
        return next(iter(self.ready.values())).plan

    @property
    def _lanes(self) -> Any:
        return opt.analysis_spec(self.given).lanes

    def _points(self) -> int:
        return self._plan.line_points if self.given["kind"] == "line" else self._plan.plane_points

    def _num_pairs(self) -> int:
        lines = self._plan.line_pairs if self.given["kind"] == "line" else 1
        return self.given["num_pairs"] or lines

    def _axes(self) -> Callable[[ClassRisk], Any] | None:
        """Return the axes of a risk, found once for each; None for random ones."""
        text, known = self.given["directions"], {}
        if text == "random":
            return None

        def find(risk: ClassRisk) -> Axes:
            if id(risk) not in known:
                known[id(risk)] = axes_of(text, self.given["kind"], risk, self.given["seed"])
            return known[id(risk)]

        return find

    def _random(self, risk: ClassRisk) -> list[Axes]:
        from landscape.surface import random_axes

        num = 1 if self.given["kind"] == "line" else 2
        how = {name: self.given[name] for name in ("normalization", "one_dimensional", "seed")}
        return [random_axes(risk, num=num, pair=pair, **how) for pair in range(self._num_pairs())]

    def _coordinates(self, axes: Callable[[ClassRisk], Any] | None) -> dict[str, np.ndarray]:
        from landscape.ranges import parse_range
        from landscape.surface import RadiusOptions, shared_range

        found = {}
        for number, name in enumerate(["x"] if self.given["kind"] == "line" else ["x", "y"]):
            wish = self._grid[name]
            if wish is None:
                found[name] = parse_range(f"-1:1:{self._points()}")
            elif not isinstance(wish, str):
                found[name] = wish
            else:
                count = int(wish.partition(":")[2] or self._points())

                def vectors(risk: ClassRisk, number: int = number) -> list[Any]:
                    chosen = self._random(risk) if axes is None else [axes(risk)]
                    return [one.vectors[number] for one in chosen]

                options = RadiusOptions(deltas=(self.given["delta"],))
                found[name], self.radii[name] = _with_first(
                    shared_range(self.risks, self._lanes, vectors=vectors, options=options, num_points=count)
                )
        return found

    def _held_out(self) -> dict[str, ModelRisk] | None:
        from landscape.loading import risk_of

        if not self.given["held_out"]:
            return None
        other: SplitName = "test" if self.given["split"] == "train" else "train"
        sides = {name: replace(one.source, split=other) for name, one in self.ready.items()}
        return {name: risk_of(self.ready[name].loaded, source) for name, source in sides.items()}  # type: ignore[misc]

    def _options(self) -> dict[str, Any]:
        names = (
            "kind",
            "normalization",
            "one_dimensional",
            "batchnorm",
            "keep_examples",
            "quadratic",
            "refine",
            "precision",
        )
        return {name: self.given[name] for name in (*names, "seed", "group_average")}

    def estimate(self) -> None:
        """Print what the surfaces will cost, from timed points with the same options."""
        from landscape.estimation import estimate_surface

        held_out = self._held_out()
        stages = {}
        for name, one in self.ready.items():
            axes = self._num_pairs() if self.given["directions"] == "random" else 1
            cells = axes
            for axis in ["x"] if self.given["kind"] == "line" else ["x", "y"]:
                wish = self._grid[axis]
                count = int(wish.partition(":")[2] or self._points()) if isinstance(wish, str) else None
                cells *= count or (self._points() if wish is None else len(wish))
            with one.threads():
                cost = estimate_surface(
                    one.risk,
                    self._lanes,
                    num_points=cells,
                    held_out=None if held_out is None else held_out[name],
                    **{key: self.given[key] for key in ("batchnorm", "precision", "keep_examples", "group_average")},
                )
            stages[f"surface of {Path(one.source.path).name if len(self.ready) == 1 else name}"] = cost
        show_estimate(stages, as_json=self.given["as_json"])

    def measure(self) -> tuple[dict[str, xr.Dataset], dict[str, xr.Dataset]]:
        """Return surfaces by name, and the differences to the first."""
        from landscape.surface import measure_surfaces, save_axes

        axes = self._axes()
        first = next(iter(self.ready.values()))
        with first.threads():
            grid = self._coordinates(axes)
            if self.given["save_directions"] is not None:
                chosen = self._random(first.risk)[0] if axes is None else axes(first.risk)
                note(f"axes: {save_axes(chosen, self.given['save_directions'], first.risk.layout)}")
            return measure_surfaces(
                self.risks,
                self._lanes,
                axes=axes,
                held_out=self._held_out(),
                journals=self.journals,
                num_pairs=self._num_pairs(),
                progress=ProgressLine(),
                **grid,
                **self._options(),
            )

    def save(self, out: Path, surfaces: Mapping[str, xr.Dataset], differences: Mapping[str, xr.Dataset]) -> list[Path]:
        """Write the files and figures, then forget the journals."""
        import xarray as xr

        from landscape.figures import save_comparison_figures, save_figures
        from landscape.results import save_results

        group = "surface_line" if self.given["kind"] == "line" else "surface"
        radii = {f"surface_radii_{axis}": found for axis, found in self.radii.items()}
        files = []
        several = len(surfaces) > 1
        for name, dataset in surfaces.items():
            path = out / f"{name}.nc" if several else out
            files.append(save_results({group: dataset, **({} if several else radii)}, path))
        trees = {name: xr.DataTree.from_dict({group: dataset}) for name, dataset in surfaces.items()}
        if several:
            for name, dataset in differences.items():
                path = out / f"difference {name}.nc".replace(" ", "-")
                files.append(save_results({f"{group}_difference": dataset}, path))
            files += save_comparison_figures(trees, out / "figures")
            for name, dataset in differences.items():
                tree = xr.DataTree.from_dict({f"{group}_difference": dataset})
                files += save_figures(tree, out / "figures" / name.replace(" ", "-"))
        elif self.given["draw"]:
            files += save_figures(next(iter(trees.values())), out.with_name(f"{out.stem}-figures"))
        for journal in self.journals.values():
            journal.clear()
        return files


def _with_first(found: tuple[np.ndarray, dict[str, xr.Dataset]]) -> tuple[np.ndarray, xr.Dataset]:
    return found[0], next(iter(found[1].values()))
