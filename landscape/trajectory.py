"""Spectra over a training: a list of checkpoints in the order of their epochs, each measured from where the last ended."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from torch import Tensor

from landscape.checkpoint import read_checkpoint
from landscape.diagnosis import measure_accuracy
from landscape.errors import LandscapeError
from landscape.layout import ParameterLayout
from landscape.results import Journal, savable, versions
from landscape.risk import ClassRisk, GroupAverage, LaneChoice, lanes_of
from landscape.risk.arithmetic import precise_arithmetic
from landscape.risk.augmented import require_fixed
from landscape.spectrum import SpectrumOptions, measure_spectrum
from landscape.training import Stage, epochs_done, training_stages

Progress = Callable[[int, int, str], None]

# Dimensions whose length depends on how far the runs of one checkpoint went.
RAGGED = ("probe", "step")
# What belongs to the data, the same at every checkpoint.
SHARED = ("num_examples",)
# Attributes that belong to one checkpoint; the whole carries them as lists or coordinates.
OWN_ATTRIBUTES = ("checkpoint", "checkpoint_sha256")
EPOCH_IN_NAME = re.compile(r"(?:epoch|ep|e)[-_=.]?0*(\d+)(?!.*\d)|(?:^|[-_=.])0*(\d+)$", re.IGNORECASE)


@dataclass(frozen=True)
class Snapshot:
    """One checkpoint of a training.

    Attributes
    ----------
    path
        Its file.
    epoch
        Epochs done, those of a first stage included: from its record, else from the file's name; None where neither says.
    sha256
        Hash of the file.
    record
        What the checkpoint says about itself; empty for a file of others.
    shapes
        Those of its tensors, by name.
    is_numbered
        Whether ``epoch`` is only its position in the list.
    """

    path: Path
    epoch: float | None
    sha256: str
    record: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    is_numbered: bool = False

    @classmethod
    def of(cls, path: str | Path) -> Snapshot:
        """Read what a checkpoint says about its epoch."""
        stored = read_checkpoint(path)
        record = stored.spec or {}
        epoch = epochs_done(record)
        if epoch is None:
            epoch = epoch_in_name(path)
        shapes = {n: tuple(t.shape) for n, t in stored.state_dict.items() if not n.endswith("num_batches_tracked")}
        return cls(Path(path), epoch, stored.sha256, record, shapes)


def epoch_in_name(path: str | Path) -> int | None:
    """Return the epoch that a file's name states: after ``epoch``, or a number at its end; None where it states none.

    Examples
    --------
    >>> [epoch_in_name(name) for name in ("epoch-0010.safetensors", "net_e7.pt", "ckpt.12.pth", "resnet32_best.pth")]
    [10, 7, 12, None]
    """
    found = EPOCH_IN_NAME.search(Path(path).stem)
    return int(found[1] or found[2]) if found else None


def order_snapshots(paths: Sequence[str | Path]) -> list[Snapshot]:
    """Return the checkpoints by epoch, or as given (numbered from 0) where one of them states none; each content once.

    Raises
    ------
    LandscapeError
        If a file cannot be read, two hold other tensors, or two different ones state the same epoch.
    """
    snapshots = list({s.sha256: s for s in map(Snapshot.of, paths)}.values())
    for snapshot in snapshots[1:]:
        _require_shapes(snapshots[0].shapes, snapshot.shapes, snapshots[0].path, snapshot.path)
    if any(s.epoch is None for s in snapshots):
        return [replace(s, epoch=position, is_numbered=True) for position, s in enumerate(snapshots)]
    snapshots.sort(key=lambda s: s.epoch or 0)
    for one, other in itertools.pairwise(snapshots):
        if one.epoch == other.epoch:
            raise LandscapeError(
                f"expected the checkpoints of one training, got two of epoch {one.epoch:g}: {one.path} and {other.path}"
            )
    return snapshots


@savable
@precise_arithmetic()
def measure_trajectory(
    snapshots: Sequence[Snapshot],
    open_risk: Callable[[Path], ClassRisk],
    lanes: LaneChoice | None = None,
    *,
    options: SpectrumOptions | None = None,
    seed: int = 0,
    group_average: GroupAverage = "examples",
    journal: Journal | None = None,
    progress: Progress | None = None,
    is_warm: bool = True,
) -> xr.Dataset:
    r"""Measure the spectra of the checkpoints of one training, one risk in memory at a time.

    Parameters
    ----------
    snapshots
        From :func:`order_snapshots`.
    open_risk
        Gives the risk of a checkpoint; all must have the same parameters, lanes and examples.
    lanes, options, seed, group_average
        As in :func:`landscape.spectrum.measure_spectrum`, the same for all.
    journal
        Where finished lanes of each checkpoint are kept.
    progress
        Called as ``progress(done, total, text)`` after each wave of lanes, counted over all checkpoints.
    is_warm
        Whether each extreme run starts from the extreme vectors of the checkpoint before; the first starts at random, and
        so does a lane that then shows no negative curvature, because only that can exclude it. A warm run gives no
        ``lambda_min_lower_bound``.

    Returns
    -------
    xarray.Dataset
        The variables of ``spectrum`` along a leading dimension ``checkpoint`` with the coordinates ``epoch``, ``file``
        and ``sha256``; and ``overlap_previous`` (checkpoint, lane), the squared cosine between v_min and that of the
        checkpoint before, in [0, 1]: NaN for the first. The attribute ``stages`` lists ``[epoch, text]`` of the changes
        of rule that the records tell (:func:`landscape.training.training_stages`).

    Raises
    ------
    LandscapeError
        If there is no checkpoint, two do not fit, the function is redrawn at every evaluation, or as ``measure_spectrum``.
    """
    if not snapshots:
        raise LandscapeError("expected at least one checkpoint, got none")
    parts: list[xr.Dataset] = []
    previous: dict[str, tuple[Tensor, Tensor]] = {}
    first: _Data | None = None
    for index, snapshot in enumerate(snapshots):
        risk = open_risk(snapshot.path)
        require_fixed(risk, "a trajectory")
        data = _Data(risk.layout, tuple(risk.class_names), tuple(risk.class_counts.tolist()), dict(risk.groups))
        first = first or data
        _require_fit(first, data, snapshots[0].path, snapshot.path)
        found: dict[str, tuple[Tensor, Tensor]] = {}
        part = measure_spectrum(
            risk,
            lanes,
            options=options,
            seed=seed,
            group_average=group_average,
            journal=journal.renamed(f"checkpoint={index}") if journal is not None else None,
            progress=_counted(progress, index, len(snapshots), snapshot.path.name),
            warm=previous if is_warm and previous else None,
            directions=found,
        )
        add_accuracy(part, risk, lanes, group_average=group_average)
        names = lanes_of(risk, lanes, group_average=group_average).names
        part["overlap_previous"] = ("lane", [_overlap(previous, found, name) for name in names])
        parts.append(part)
        previous = found
    return _joined(parts, snapshots).assign_attrs(kind="trajectory", is_warm=is_warm, versions=versions())


def add_accuracy(
    spectrum: xr.Dataset, risk: ClassRisk, lanes: LaneChoice | None = None, *, group_average: GroupAverage = "examples"
) -> None:
    """Add the variables ``accuracy`` and ``accuracy_stderr`` (lane), as :func:`landscape.diagnosis.measure_accuracy`."""
    measured = measure_accuracy(risk, lanes, group_average=group_average)
    for name in ("accuracy", "accuracy_stderr"):
        spectrum[name] = ("lane", measured[name].values)


class _Data(NamedTuple):
    """What all checkpoints of a training share."""

    layout: ParameterLayout
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    groups: dict[str, tuple[int, ...]]


def recipe_of(snapshots: Sequence[Snapshot]) -> str:
    """Return a hash of all checkpoints in order: with warm starts, each decides the numbers of the next."""
    return hashlib.sha256("".join(s.sha256 for s in snapshots).encode()).hexdigest()


def _require_fit(first: _Data, other: _Data, first_path: Path, path: Path) -> None:
    """Refuse a checkpoint with other parameters or data than the first."""
    ours, theirs = (dict(zip(data.layout.names, data.layout.shapes)) for data in (first, other))
    _require_shapes(ours, theirs, first_path, path)
    if first[1:] != other[1:]:
        raise LandscapeError(
            f"{path} records other data than {first_path}: give the checkpoints of one training, or name the data (--dataset)"
        )


def _require_shapes(
    ours: Mapping[str, Sequence[int]], theirs: Mapping[str, Sequence[int]], first_path: Path, path: Path
) -> None:
    differ = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if differ:
        name = differ[0]
        raise LandscapeError(
            f"{path} does not fit {first_path}: its '{name}' is {_shape(theirs.get(name))}, expected "
            f"{_shape(ours.get(name))}; give the checkpoints of one training"
        )


def _shape(shape: Sequence[int] | None) -> str:
    return "missing" if shape is None else "x".join(map(str, shape)) or "a number"


def _counted(progress: Progress | None, index: int, total: int, name: str) -> Progress | None:
    if progress is None:
        return None
    return lambda done, lanes, text: progress(index * lanes + done, total * lanes, f"{name}: {text}")


def _overlap(previous: dict[str, tuple[Tensor, Tensor]], found: dict[str, tuple[Tensor, Tensor]], name: str) -> float:
    """Return the squared cosine of a lane's v_min with the one before; NaN where either was not kept."""
    if name not in previous or name not in found:
        return float("nan")
    one, other = previous[name][0].double(), found[name][0].double()
    return min(float(one @ other) ** 2 / float((one @ one) * (other @ other)), 1.0)


def _joined(parts: Sequence[xr.Dataset], snapshots: Sequence[Snapshot]) -> xr.Dataset:
    longest = {dim: max(part.sizes[dim] for part in parts) for dim in RAGGED}
    padded = [part.pad({d: (0, n - part.sizes[d]) for d, n in longest.items()}, keep_attrs=True) for part in parts]
    shared = padded[0][list(SHARED)]
    joined = xr.concat(
        [part.drop_vars(SHARED) for part in padded],
        dim="checkpoint",
        data_vars="all",
        coords="minimal",
        compat="override",
        join="override",
        combine_attrs="drop_conflicts",
    )
    joined = joined.merge(shared)
    joined.attrs = {k: v for k, v in parts[0].attrs.items() if k not in OWN_ATTRIBUTES}
    stages: dict[Stage, None] = dict.fromkeys(stage for s in snapshots for stage in training_stages(s.record))
    joined.attrs["epoch_means"] = "position" if any(s.is_numbered for s in snapshots) else "epochs done"
    joined.attrs["stages"] = [list(stage) for stage in sorted(stages)]
    epochs = [float("nan") if s.epoch is None else float(s.epoch) for s in snapshots]
    return joined.assign_coords(
        epoch=("checkpoint", np.array(epochs)),
        file=("checkpoint", [s.path.name for s in snapshots]),
        sha256=("checkpoint", [s.sha256 for s in snapshots]),
    )
