"""One surface under two BatchNorm policies, or on two splits, as Datasets with plain names."""

from __future__ import annotations

from collections.abc import Mapping

import xarray as xr

from landscape.errors import LandscapeError
from landscape.figures.quantities import split_name

# What belongs to the grid, not to a policy or a split.
_OF_THE_GRID = ("done", "interpolated")
_COUNTS = "num_examples"
_PLAIN = ("loss", "own_loss", "error", "margin")


def views(dataset: xr.Dataset) -> dict[str, xr.Dataset]:
    """Take a surface apart into one Dataset with plain names per BatchNorm policy and split.

    ``loss`` and ``recalibrated_loss`` become ``loss`` of the views ``frozen`` and ``recalibrated``; ``held_out_loss``
    becomes that of ``held-out``. Where both are there, the names are ``frozen, train``, ``recalibrated, held-out`` and
    so on. Errors and counts follow their view; a split whose counts were not recorded has none.

    Parameters
    ----------
    dataset
        A ``surface`` or ``surface_line`` Dataset.

    Returns
    -------
    dict of str to xarray.Dataset
        In the order frozen before recalibrated, first split before held-out; a surface with one policy and one split has
        one view, whose name is empty.

    Examples
    --------
    >>> line = xr.Dataset({"loss": ("alpha", [1.0]), "recalibrated_loss": ("alpha", [0.5])}, {"alpha": [0.0]})
    >>> {name: view.loss.item() for name, view in views(line).items()}
    {'frozen': 1.0, 'recalibrated': 0.5}
    """
    found = {}
    for prefix in ("", "held_out_", "recalibrated_", "recalibrated_held_out_"):
        if any(f"{prefix}{name}" in dataset for name in _PLAIN):
            found[prefix] = _view(dataset, prefix)
    policies = {prefix.startswith("recalibrated_") for prefix in found}
    splits = {prefix.endswith("held_out_") for prefix in found}
    return {_name(dataset, prefix, len(policies) > 1, len(splits) > 1): view for prefix, view in found.items()}


def several(data: Mapping[str, xr.Dataset], by: str, *, other: bool) -> dict[str, dict[str, xr.Dataset]]:
    """Return {optimizer: {view: Dataset}} with the two views by ``"policy"`` or ``"split"``.

    Parameters
    ----------
    data
        Surfaces by optimizer.
    by
        Which of the two differs between the views.
    other
        Of the other one: False for the first (training images, frozen statistics), True for the second.

    Raises
    ------
    LandscapeError
        If a surface does not hold both.
    """
    pairs = {"policy": ("", "recalibrated_"), "split": ("", "held_out_")}[by]
    chosen = [f"{'recalibrated_' if by == 'split' and other else ''}{p}" for p in pairs]
    if by == "policy" and other:
        chosen = [f"{p}held_out_" for p in pairs]
    found = {}
    for name, dataset in data.items():
        missing = [prefix for prefix in chosen if not any(f"{prefix}{plain}" in dataset for plain in _PLAIN)]
        if missing:
            how = {"policy": "measure with batchnorm 'both'", "split": "measure with a held-out split"}[by]
            where = f" of '{name}'" if name else ""
            held = ", ".join(map(str, dataset.data_vars)) or "nothing"
            raise LandscapeError(f"expected the variable '{missing[0]}loss' in the surface{where}, got {held}: {how}")
        pick = {"policy": (True, False), "split": (False, True)}[by]
        found[name] = {_name(dataset, prefix, *pick): _view(dataset, prefix) for prefix in chosen}
    return found


def _view(dataset: xr.Dataset, prefix: str) -> xr.Dataset:
    kept = {str(name): split_name(str(name))[1] for name in dataset.data_vars if split_name(str(name))[0] == prefix}
    if prefix:
        kept |= {name: name for name in _OF_THE_GRID if name in dataset}
        if _COUNTS not in kept.values():
            source = f"held_out_{_COUNTS}" if prefix.endswith("held_out_") else _COUNTS
            kept |= {source: _COUNTS} if source in dataset else {}
    view = dataset[list(kept)].rename(kept)
    recorded = str(dataset.attrs.get("batchnorm", ""))
    attrs = {**dataset.attrs}
    if prefix.startswith("recalibrated_"):
        attrs["batchnorm"] = str(dataset.attrs.get("recalibrated_batchnorm", "recalibrated at every point"))
    elif recorded.startswith("both"):
        attrs["batchnorm"] = "frozen"
    if prefix.endswith("held_out_"):
        attrs["split"] = str(dataset.attrs.get("held_out_split", "held-out"))
    return view.assign_attrs(attrs)


def _name(dataset: xr.Dataset, prefix: str, by_policy: bool, by_split: bool) -> str:
    policy = "recalibrated" if prefix.startswith("recalibrated_") else "frozen"
    split = "held-out" if prefix.endswith("held_out_") else str(dataset.attrs.get("split", "train"))
    return ", ".join(text for text, told in ((policy, by_policy), (split, by_split)) if told)
