"""Surfaces as VTK structured grids, written."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import xarray as xr

from landscape.errors import LandscapeError
from landscape.exchange.selection import GRID, measured, named, replacing, selected

# Of vtkDataSetAttributes: the point is not drawn.
_HIDDEN_POINT = 2
_VTK_TYPES = {"float64": "Float64", "uint8": "UInt8"}


def write_vts(
    dataset: xr.Dataset,
    path: str | Path,
    *,
    lanes: Sequence[str] | None = None,
    pair: int | None = None,
    variable: str = "loss",
) -> Path:
    """Write a surface as a VTK structured grid (``.vts``) for ParaView or PyVista.

    Parameters
    ----------
    dataset
        A line or plane.
    path
        The file, ending in ``.vts``.
    lanes
        The lanes that are written, by default all; the first gives the heights.
    pair
        Which pair of directions; the first by default.
    variable
        What the heights are.

    Returns
    -------
    pathlib.Path
        The file: points (alpha, beta, height of the first lane), and as point data every variable of every lane under
        the name ``VARIABLE/LANE``, in float64 bit for bit, NaN as NaN. A point whose height was not measured or is not
        finite is hidden (``vtkGhostType``) and lies at the lowest height, so that it does not spoil the bounds.

    Raises
    ------
    LandscapeError
        For a pair, lane or variable that is unknown, or where no height is finite.

    Notes
    -----
    Layout: VTK XML file format, ``StructuredGrid``, arrays inline in base64 with a UInt64 length; alpha runs fastest.
    VTK 9.7 was seen to read the same bits and to hide the cells at hidden points.
    """
    path = named(path, ".vts")
    names = [str(name) for name, v in dataset.data_vars.items() if {"alpha", "lane"} <= set(v.dims) <= set(GRID)]
    chosen = selected(dataset, lanes, pair, [variable])
    if "beta" not in chosen.dims:
        chosen = chosen.expand_dims(beta=[0.0])
    first = measured(chosen, variable).isel(lane=0).transpose("beta", "alpha").values
    is_hidden = ~np.isfinite(first)
    if is_hidden.all():
        raise LandscapeError(f"'{variable}' of '{chosen['lane'].values[0]}': expected a finite value, got none to draw")
    beta, alpha = np.meshgrid(chosen["beta"].values, chosen["alpha"].values, indexing="ij")
    points = np.stack([alpha, beta, np.where(is_hidden, first[~is_hidden].min(), first)], -1).reshape(-1, 3)
    arrays: dict[str, np.ndarray] = {}
    for name in sorted(names, key=lambda n: n != variable):
        grid = measured(chosen, name).transpose("lane", "beta", "alpha").values
        arrays |= {f"{name}/{lane}": grid[k].ravel() for k, lane in enumerate(chosen["lane"].values)}
    ghosts = np.where(is_hidden, _HIDDEN_POINT, 0).astype(np.uint8).ravel() if is_hidden.any() else None
    with replacing(path) as temporary:
        _vts_tree(points, arrays, ghosts, alpha.shape).write(temporary, encoding="utf-8", xml_declaration=True)
    return path


def _vts_tree(
    points: np.ndarray, arrays: dict[str, np.ndarray], ghosts: np.ndarray | None, shape: tuple[int, ...]
) -> ElementTree.ElementTree:
    extent = f"0 {shape[1] - 1} 0 {shape[0] - 1} 0 0"
    root = ElementTree.Element(
        "VTKFile", type="StructuredGrid", version="1.0", byte_order="LittleEndian", header_type="UInt64"
    )
    grid = ElementTree.SubElement(root, "StructuredGrid", WholeExtent=extent)
    piece = ElementTree.SubElement(grid, "Piece", Extent=extent)
    data = ElementTree.SubElement(piece, "PointData", Scalars=next(iter(arrays)))
    for name, values in arrays.items():
        _add_array(data, name, values.astype(np.float64))
    if ghosts is not None:
        _add_array(data, "vtkGhostType", ghosts)
    _add_array(ElementTree.SubElement(piece, "Points"), "Points", points, 3)
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)


def _add_array(parent: ElementTree.Element, name: str, values: np.ndarray, num_components: int = 1) -> None:
    attributes = {"type": _VTK_TYPES[str(values.dtype)], "Name": name, "NumberOfComponents": str(num_components)}
    element = ElementTree.SubElement(parent, "DataArray", {**attributes, "format": "binary"})
    raw = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
    element.text = base64.b64encode(np.array(len(raw), dtype="<u8").tobytes() + raw).decode()
