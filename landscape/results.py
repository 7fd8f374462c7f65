"""What a measurement is made of: names and dimensions, files, and the journal of finished blocks. Loads no torch."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import logging
import platform
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
import xarray as xr

from landscape import hdf5
from landscape.errors import LandscapeError
from landscape.files import one_line, read_npz, writing_atomically

_DIFFERENCE = tuple(f"loss_difference{part}" for part in ("", "_low", "_high", "_stderr"))
_RADII = {
    **dict.fromkeys(("radius", "radius_low", "radius_high"), ("delta", "direction", "side", "lane")),
    "num_evaluations": ("direction", "side"),
    "loss": ("lane",),
}

_LOG = logging.getLogger(__name__)
# The entry of a block that says what the others were when they were written.
_SEAL = "sha256 of the block"

# Variables that a group must have, with their dimensions; measurements may add more.
SCHEMA: dict[str, dict[str, tuple[str, ...]]] = {
    "accuracy": dict.fromkeys(("accuracy", "loss", "num_examples"), ("lane",)),
    "spectrum": {
        "ritz_value": ("lane", "probe", "step"),
        "ritz_weight": ("lane", "probe", "step"),
        **dict.fromkeys(
            (
                "lambda_min",
                "lambda_max",
                "lambda_min_low",
                "lambda_min_high",
                "lambda_max_low",
                "lambda_max_high",
                "lambda_min_residual",
                "lambda_max_residual",
                "lambda_min_lower_bound",
                "trace",
                "trace_stderr",
                "negative_energy",
                "negative_energy_stderr",
                "gradient_norm",
                "loss",
                "num_examples",
                "noise_floor",
                "num_hvps",
                "crossover_radius",
                "quadratic_radius",
                "verdict",
            ),
            ("lane",),
        ),
    },
    "perturbation": {"loss_increase": ("lane", "radius", "draw"), "worst_case_increase": ("lane", "rho")},
    "flatness": dict.fromkeys(("loss", "gradient_norm", "num_examples"), ("lane",)),
    "surface": {"loss": ("pair", "beta", "alpha", "lane"), "done": ("pair", "beta", "alpha")},
    "surface_line": {"loss": ("pair", "alpha", "lane"), "done": ("pair", "alpha")},
    "surface_eigen": {"loss": ("pair", "beta", "alpha", "lane"), "done": ("pair", "beta", "alpha")},
    "surface_difference": dict.fromkeys(_DIFFERENCE, ("pair", "beta", "alpha", "lane")),
    "surface_line_difference": dict.fromkeys(_DIFFERENCE, ("pair", "alpha", "lane")),
    "surface_radii_x": _RADII,
    "surface_radii_y": _RADII,
    "escape": {
        **dict.fromkeys(("loss", "increase", "increase_stderr"), ("lane", "step", "affected_lane")),
        "gradient_increase": ("lane", "length", "affected_lane"),
        **dict.fromkeys(
            (
                "lambda_min",
                "lambda_min_residual",
                "best_decrease",
                "best_distance",
                "affordable_decrease",
                "affordable_distance",
                "resolution",
            ),
            ("lane",),
        ),
        **dict.fromkeys(("increase_at_best", "increase_at_affordable"), ("lane", "affected_lane")),
    },
}

# The groups that the analysis of a whole checkpoint (``landscape figures``, ``landscape run``) writes.
WHOLE_ANALYSIS = (
    *("accuracy", "spectrum", "perturbation", "flatness", "escape"),
    *("surface", "surface_line", "surface_eigen"),
)

Parameters = ParamSpec("Parameters")

PACKAGES = ("landscape-longtail", "torch", "numpy", "scipy", "xarray")


def validate(group: str, dataset: xr.Dataset) -> xr.Dataset:
    """Return ``dataset`` if it has the variables and dimensions of its group, else raise LandscapeError."""
    for name, dims in SCHEMA[group].items():
        if name not in dataset:
            raise LandscapeError(f"results group '{group}': variable '{name}' is missing")
        if dataset[name].dims != dims:
            raise LandscapeError(
                f"results group '{group}': '{name}' should have dimensions {dims}, got {dataset[name].dims}"
            )
    return dataset


@functools.cache
def versions() -> str:
    """Return the versions of what computes the numbers, as one line."""
    found = [f"python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def _plain_attributes(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, value in attributes.items():
        if value is None:
            continue
        if isinstance(value, (bool, np.bool_)):
            plain[str(key)] = str(bool(value))
        elif isinstance(value, (str, int, float, np.integer, np.floating)):
            plain[str(key)] = value
        else:
            plain[str(key)] = json.dumps(value, default=str)
    return plain


def savable(measure: Callable[Parameters, xr.Dataset]) -> Callable[Parameters, xr.Dataset]:
    """Let a measurement return a dataset whose attributes netCDF takes: strings and numbers, the rest as JSON.

    So xarray itself can save it.
    """

    @functools.wraps(measure)
    def measured(*args: Parameters.args, **kwargs: Parameters.kwargs) -> xr.Dataset:
        dataset = measure(*args, **kwargs)
        dataset.attrs = _netcdf_attributes(dataset.attrs)
        return dataset

    return measured


def _netcdf_attributes(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """Return attributes that netCDF takes; lists of numbers stay what they are."""
    plain = _plain_attributes(attributes)
    for key, value in attributes.items():
        is_list = isinstance(value, (list, tuple)) and len(value) > 0
        if is_list and all(isinstance(part, (int, float)) and not isinstance(part, bool) for part in value):
            plain[str(key)] = list(value)
    return plain


def save_results(results: xr.DataTree | Mapping[str, xr.Dataset], path: str | Path) -> Path:
    """Write result groups to one netCDF file, complete or not at all.

    Parameters
    ----------
    results
        A DataTree, or a mapping from group name to Dataset.
    path
        File to write, sealed with a digest of its bytes; it is replaced in one step when the new one is complete.

    Raises
    ------
    LandscapeError
        If the folder cannot be written.
    """
    path = Path(path)
    groups = results if isinstance(results, Mapping) and not isinstance(results, xr.DataTree) else _groups(results)
    clean = {}
    for name, dataset in groups.items():
        dataset = dataset.copy()
        dataset.attrs = _plain_attributes(dataset.attrs)
        clean[f"/{name}"] = dataset
    tree = xr.DataTree.from_dict(clean)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing_atomically(path) as temporary:
            tree.to_netcdf(temporary, engine="h5netcdf")
            hdf5.seal(temporary)
    except OSError as error:
        raise LandscapeError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that you may write to"
        ) from None
    return path


def _groups(tree: Any) -> dict[str, xr.Dataset]:
    return {name: node.to_dataset() for name, node in tree.children.items()}


def load_results(path: str | Path) -> xr.DataTree:
    """Read a results file completely into memory and close it.

    Raises
    ------
    LandscapeError
        If the file is missing or is not a results file, or its content is no longer what was written.

    Notes
    -----
    What :func:`save_results` writes ends in a digest of its bytes, which is checked first: a changed number is an error. A
    file without one (written by others, or changed since) is first read by a process with limits of time and memory,
    because damaged HDF5 can make the library crash or loop.
    """
    path = Path(path)
    if not path.is_file():
        raise LandscapeError(f"no results file at {path}: expected a .nc file written by landscape")
    with one_line(f"{path} is not a results file of landscape, or is damaged"):
        hdf5.require_readable(path, "groups")
        return _read(path)


def _read(path: Path) -> xr.DataTree:
    # Foreign HDF5 files have dimensions without names: naming them avoids a warning before they are refused.
    with xr.open_datatree(path, engine="h5netcdf", phony_dims="access") as tree:
        return tree.load()


class Journal:
    """Finished blocks of a long measurement, one small file each, never computed twice.

    A block is a dictionary of arrays. Its file holds a digest of them: a block is whole and unchanged, or it is computed
    again. Blocks belong to one *recipe* (everything that decides their values); a folder
    with another recipe's blocks is left alone, because the recipe's digest is part of the file names.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     journal = Journal(folder, {"seed": 0})
    ...     first = journal.block("row=0", lambda: {"loss": np.arange(3.0)})
    ...     again = journal.block("row=0", lambda: 1 / 0)
    >>> again["loss"].tolist()
    [0.0, 1.0, 2.0]
    """

    def __init__(self, folder: str | Path, recipe: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self._prefix = ""
        text = json.dumps(recipe, sort_keys=True, default=str)
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LandscapeError(
                f"cannot write {self.folder}: {error.strerror}; choose another output folder"
            ) from None

    def renamed(self, prefix: str) -> Journal:
        """Return a view of this journal whose blocks carry a prefix: two measurements of one kind stay apart."""
        view = copy.copy(self)
        view._prefix = f"{self._prefix}{prefix}."
        return view

    def path(self, name: str) -> Path:
        """Return the file of a block."""
        name = self._prefix + name
        safe = "".join(ch if (ch.isascii() and ch.isalnum()) or ch in "=-." else "_" for ch in name)[:80]
        # Class names that differ only in what a file name cannot hold must not share a file.
        return self.folder / f"{self.digest}.{safe}.{hashlib.sha256(name.encode()).hexdigest()[:8]}.npz"

    def block(self, name: str, compute: Any) -> dict[str, np.ndarray]:
        """Return the block from its file, or compute it (a call without arguments) and keep it."""
        stored = self.stored(name)
        return stored if stored is not None else self.store(name, compute())

    def stored(self, name: str) -> dict[str, np.ndarray] | None:
        """Return the block from its file; None where it has not been computed, or the file is not what was stored."""
        path = self.path(name)
        if path.is_file():
            try:
                block = read_npz(path)
                if str(block.pop(_SEAL)) == self._seal(name, block):
                    return block
            except MemoryError:
                raise
            except Exception as error:  # cut short, damaged in any way, or of another make
                _LOG.info("%s is computed again: %s", path, error)
            path.unlink()
        return None

    def _seal(self, name: str, block: Mapping[str, np.ndarray]) -> str:
        """Return the digest of a block's content and of whose it is: whole, unchanged, and not another's."""
        digest = hashlib.sha256(f"{self.digest}\0{self._prefix}{name}".encode())
        for key in sorted(block):
            values = np.ascontiguousarray(block[key])
            digest.update(f"\0{key}\0{values.dtype.str}\0{block[key].shape}\0".encode())
            digest.update(values.tobytes())
        return digest.hexdigest()

    def store(self, name: str, block: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Keep a computed block; return its arrays."""
        path = self.path(name)
        arrays = {key: np.asarray(value) for key, value in block.items()}
        with writing_atomically(path) as temporary, open(temporary, "wb") as target:
            np.savez(target, **arrays, **{_SEAL: np.array(self._seal(name, arrays))})  # type: ignore[arg-type]
        return arrays

    def discard(self, name: str) -> None:
        """Remove a block, if it is there."""
        self.path(name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove this recipe's blocks (after the merged result was written) and the folder if nothing else is in it.

        What a killed run had begun to write goes as well.
        """
        for pattern in (f"{self.digest}.*.npz", f".{self.digest}.*.partial"):
            for path in self.folder.glob(pattern):
                path.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def keep_block(journal: Journal | None, name: str, compute: Any) -> dict[str, np.ndarray]:
    """Return ``journal.block(name, compute)``, or just the computed arrays where there is no journal."""
    if journal is not None:
        return journal.block(name, compute)
    return {key: np.asarray(value) for key, value in compute().items()}
