"""One dataset from the records of many lanes, with what only all lanes together show: overlaps and escapes."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from landscape.risk import ClassRisk, Lanes

VECTORS = ("v_min", "v_max")
PER_CLASS = ("escape_along_v", "escape_along_gradient")
RANKED = "eigenvalue_"


def assemble(risk: ClassRisk, lanes: Lanes, records: list[dict[str, np.ndarray]]) -> xr.Dataset:
    """Return the dataset of lanes from their records, in the order of the lanes."""
    steps = max(record["ritz_value"].shape[1] for record in records)
    probes = max(record["ritz_value"].shape[0] for record in records)
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for key in dict.fromkeys(key for record in records for key in record):
        values = [record.get(key, np.asarray(np.nan)) for record in records]
        if key in VECTORS:
            continue
        if key.startswith("ritz_"):
            padded = [
                np.pad(v, ((0, probes - v.shape[0]), (0, steps - v.shape[1])), constant_values=np.nan) for v in values
            ]
            variables[key] = (("lane", "probe", "step"), np.stack(padded))
        elif key in PER_CLASS:
            variables[key] = (("lane", "affected_lane"), np.stack([_lane_values(lanes, v) for v in values]))
        elif key.startswith(RANKED):
            variables[key] = (("lane", "rank"), np.stack(values))
        else:
            variables[key] = (("lane",), np.array([v.item() for v in values]))
    dataset = xr.Dataset(variables)
    dataset["num_examples"] = ("lane", np.asarray(lanes.num_examples))
    if all(key in record for record in records for key in VECTORS):
        _add_vectors(dataset, risk, records)
    names = list(lanes.names)
    others = {key: names for key in ("affected_lane", "other_lane") if key in dataset.dims}
    kinds = {"lane_kind": ("lane", list(lanes.kinds)), "lane_group": ("lane", list(lanes.groups))}
    return dataset.assign_coords({"lane": names, **kinds, **others})


def _lane_values(lanes: Lanes, per_class: np.ndarray) -> np.ndarray:
    """Return the lanes' means (L,) of class values (C,); classes that a lane does not hold may be NaN."""
    weights = lanes.weights.numpy()
    return np.where(weights != 0, weights * per_class, 0.0).sum(1)


def _add_vectors(dataset: xr.Dataset, risk: ClassRisk, records: list[dict[str, np.ndarray]]) -> None:
    """Add the mass of v_min in every parameter tensor, and squared cosines between lanes and with class gradients."""
    layout = risk.layout
    vectors = {key: torch.stack([torch.as_tensor(record[key]) for record in records]).double() for key in VECTORS}
    mass = torch.stack([part.square().sum(1) for part in vectors["v_min"].split(layout.sizes, 1)], 1)
    dataset["v_min_mass"] = (("lane", "parameter"), mass.numpy())
    dataset.coords["parameter"] = list(layout.names)
    dataset.coords["parameter_layer"] = ("parameter", list(layout.layers))
    for key, v in vectors.items():
        dataset[f"overlap_{key}"] = (("lane", "other_lane"), (v @ v.T).square().clamp_max(1.0).numpy())

    if getattr(risk, "is_fixed", True):
        gradients = _class_gradients(risk)
        for key, v in vectors.items():
            dataset[f"overlap_gradient_{key}"] = (("lane", "class_name"), (v @ gradients.T).square().numpy())
        dataset.coords["class_name"] = list(risk.class_names)


def _class_gradients(risk: ClassRisk) -> Tensor:
    """Return the unit mean gradients of the classes (C, n), zero for a class without examples or gradient."""
    present = torch.nonzero(risk.class_counts > 0)[:, 0]
    rows = torch.zeros(len(present), len(risk.class_names), dtype=torch.float64)
    rows[torch.arange(len(present)), present] = 1.0
    found = risk.gradients(risk.theta, rows).double().cpu()
    norms = torch.linalg.vector_norm(found, dim=1, keepdim=True)
    out = torch.zeros(len(risk.class_names), found.shape[1], dtype=torch.float64)
    out[present] = found / norms.clamp_min(torch.finfo(torch.float64).tiny)
    return out
