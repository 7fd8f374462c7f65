"""What ``landscape surface`` prints: every lane's loss at the weights, its lowest point and its highest, with errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from landscape.cli.terminal import say, show_table, with_error

if TYPE_CHECKING:
    import xarray as xr


def show_surfaces(surfaces: Mapping[str, xr.Dataset]) -> None:
    """Print a table per checkpoint."""
    for name, dataset in surfaces.items():
        if len(surfaces) > 1:
            say(f"\n{name}")
        show_table(_columns(dataset))
    first = next(iter(surfaces.values()))
    say(f"\n{first.attrs['exactness']}")
    if "increase_stderr" in first:
        say("± standard error over images of the change from the weights, the same images at both points")
    if "interpolation_error" in first:
        worst = float(first.interpolation_error.max())
        say(f"where interpolated: estimated error at most {worst:.2g} nats in any lane")
    if "preview_error" in first.attrs:
        say(str(first.attrs["precision"]))


def _columns(dataset: xr.Dataset) -> dict[str, list[str]]:
    loss = dataset.loss.transpose("lane", ...)
    errors = dataset.increase_stderr.transpose("lane", ...) if "increase_stderr" in dataset else None
    columns: dict[str, list[str]] = {"lane": [str(name) for name in dataset.lane.values]}
    columns["n"] = [str(n) for n in dataset.num_examples.values]
    centre = _centre(dataset)
    if centre is not None:
        columns["at the weights"] = [f"{value:.4g}" for value in centre]
    for title, pick in (("lowest", np.nanargmin), ("highest", np.nanargmax)):
        cells, places = [], []
        for number, values in enumerate(loss.values.reshape(len(loss), -1)):
            if not np.isfinite(values).any():
                cells.append("-")
                places.append("-")
                continue
            where = int(pick(np.where(np.isfinite(values), values, np.nan)))
            error = float("nan") if errors is None else float(errors.values[number].ravel()[where])
            cells.append(with_error(float(values[where]), error) if errors is not None else f"{values[where]:.4g}")
            places.append(_place(dataset, loss.isel(lane=number), where))
        columns[title], columns[f"{title} at"] = cells, places
    return columns


def _centre(dataset: xr.Dataset) -> np.ndarray | None:
    point = dataset.loss.isel(pair=0)
    for axis in ("beta", "alpha"):
        if axis in point.dims:
            at = np.flatnonzero(np.abs(point[axis].values) < 1e-9)
            if not len(at):
                return None
            point = point.isel({axis: int(at[0])})
    return point.values


def _place(dataset: xr.Dataset, values: xr.DataArray, where: int) -> str:
    index = dict(zip(values.dims, np.unravel_index(where, values.shape)))
    named = [f"{float(dataset[axis].values[index[axis]]):.3g}" for axis in ("alpha", "beta") if axis in index]
    pair = f" #{index['pair']}" if dataset.sizes["pair"] > 1 else ""
    return f"({', '.join(named)}){pair}"


def show_differences(differences: Mapping[str, xr.Dataset]) -> None:
    """Print, per lane, where one checkpoint's rise differs most from the first's, with its paired interval."""
    for name, dataset in differences.items():
        variable = "increase_difference" if "increase_difference" in dataset else "loss_difference"
        values = dataset[variable].transpose("lane", ...)
        low, high = (dataset[f"{variable}_{side}"].transpose("lane", ...) for side in ("low", "high"))
        flat = [array.values.reshape(len(values), -1) for array in (values, low, high)]
        rows = []
        for found, below, above in zip(*flat):
            sure = np.isfinite(below) & np.isfinite(above) & ((below > 0) | (above < 0))
            where = int(np.nanargmax(np.abs(np.where(np.isfinite(found), found, 0))))
            interval = f"{found[where]:+.3g} [{below[where]:+.3g}, {above[where]:+.3g}]"
            rows.append((interval, f"{sure.mean():.0%}"))
        say(f"\n{name}, {'rise from the weights' if variable.startswith('increase') else 'loss'}")
        show_table(
            {
                "lane": [str(lane) for lane in dataset.lane.values],
                "largest difference": [row[0] for row in rows],
                "points with an interval off 0": [row[1] for row in rows],
            }
        )
        say("0.95 intervals over images, paired image by image; at each point by itself, not over all of them together")
