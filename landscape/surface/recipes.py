"""Axes on disk: as a recipe that rebuilds them, or as the vectors themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from landscape.errors import LandscapeError, unknown_name
from landscape.files import first_line, one_line, parse_json, write_bytes
from landscape.layout import ParameterLayout
from landscape.risk import ClassRisk
from landscape.spectrum import SpectrumOptions
from landscape.surface.anchors import Source, between_axes, point_of, three_point_axes, trajectory_axes
from landscape.surface.axes import Axes, Mark, random_axes
from landscape.surface.derivatives import eigen_axes, gradient_axes
from landscape.torch_files import require_plain

COORDINATES = ("alpha", "beta")
METADATA_KEYS = ("kind", "normalization", "labels", "recipe", "marks", "attributes")


def save_axes(axes: Axes, path: str | Path, layout: ParameterLayout) -> Path:
    """Write the vectors as a safetensors file, ``alpha/<parameter>`` and ``beta/<parameter>``, complete or not at all.

    The metadata hold ``kind``, ``normalization``, ``labels``, ``recipe``, ``marks``, ``attributes`` and
    ``checkpoint_sha256``, each as JSON. An origin other than the weights is kept as ``origin/<parameter>``.

    Parameters
    ----------
    axes
        What to write; values and dtypes come back bit for bit.
    path
        By custom ``*.safetensors``.
    layout
        Names the tensors: ``risk.layout``.

    Raises
    ------
    LandscapeError
        If the axes belong to another layout, or the file cannot be written.
    """
    num = axes.vectors[0].numel()
    if num != layout.num_parameters:
        raise LandscapeError(f"axes of {num} weights do not belong to a layout of {layout.num_parameters}")
    parts = dict(zip(COORDINATES, axes.vectors))
    if axes.origin is not None:
        parts["origin"] = axes.origin
    # Clones: safetensors refuses tensors that share memory, as views of one vector do.
    tensors = {
        f"{role}/{name}": tensor.detach().cpu().clone()
        for role, vector in parts.items()
        for name, tensor in layout.named(vector).items()
    }
    metadata = {key: json.dumps(getattr(axes, key)) for key in METADATA_KEYS}
    metadata["checkpoint_sha256"] = json.dumps(axes.recipe.get("checkpoint_sha256", ""))
    write_bytes(Path(path), safetensors.torch.save(tensors, metadata=metadata))
    return Path(path)


def load_axes(path: str | Path, risk: ClassRisk, *, is_other_allowed: bool = False) -> Axes:
    """Read axes that :func:`save_axes` wrote, for a risk with the same parameters.

    Parameters
    ----------
    path
        The file.
    risk
        Names, shapes and the device of the parameters must be these.
    is_other_allowed
        Whether the axes may come from another checkpoint of the network. Their norms, marks and eigenvalues are then the
        other's; :func:`axes_from_recipe` gives the same axes normalised by this one's weights.

    Raises
    ------
    LandscapeError
        On one line: if the file is missing, damaged or no file of axes, its parameters differ, or it belongs to another
        checkpoint.
    """
    with one_line(f"{path} is no file of axes, or is damaged"):
        return _load_axes(path, risk, is_other_allowed)


def _load_axes(path: str | Path, risk: ClassRisk, is_other_allowed: bool) -> Axes:
    tensors, metadata = _read(Path(path))
    missing = [key for key in METADATA_KEYS if key not in metadata]
    if missing:
        raise LandscapeError(f"{path} is no file of axes: its metadata lack {', '.join(missing)}")
    stored = {key: parse_json(text, f"{path}: its entry '{key}'") for key, text in metadata.items()}
    theirs, ours = stored.get("checkpoint_sha256", ""), str(risk.attributes.get("checkpoint_sha256", ""))
    if theirs != ours and not is_other_allowed:
        raise LandscapeError(
            f"{path} belongs to the checkpoint {theirs[:12] or 'of no file'}, this is {ours[:12] or 'of no file'}: rebuild its "
            "recipe for these weights (axes_from_recipe), or pass is_other_allowed=True"
        )
    vectors = _vectors(Path(path), tensors, risk)
    return Axes(
        tuple(vectors[role] for role in COORDINATES if role in vectors),
        stored["kind"],
        stored["normalization"],
        tuple(stored["labels"]),
        stored["recipe"],
        marks=tuple(Mark(*mark) for mark in stored["marks"]),
        attributes=stored["attributes"],
        origin=vectors.get("origin"),
    )


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise LandscapeError(f"no file of axes at {path}: expected what save_axes wrote")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        require_plain(tensors, path)
        return tensors, metadata
    except LandscapeError:
        raise
    except Exception as error:  # SafetensorError, and what torch raises for dtypes and sizes it does not know
        raise LandscapeError(
            f"{path} is not a whole safetensors file (truncated or damaged): {first_line(error)}"
        ) from error


def _vectors(path: Path, tensors: Mapping[str, Tensor], risk: ClassRisk) -> dict[str, Tensor]:
    """Return the flat vectors by role, in the order of the risk's parameters."""
    layout = risk.layout
    roles = list(dict.fromkeys(name.partition("/")[0] for name in tensors))
    if "alpha" not in roles or not set(roles) <= {*COORDINATES, "origin"}:
        raise LandscapeError(f"{path} is no file of axes: expected tensors alpha/..., got {', '.join(roles) or 'none'}")
    expected = {f"{role}/{name}": shape for role in roles for name, shape in zip(layout.names, layout.shapes)}
    problems = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": [name for name in tensors if name not in expected],
        "wrong shape": [name for name, shape in expected.items() if name in tensors and tensors[name].shape != shape],
    }
    if any(problems.values()):
        found = "; ".join(f"{len(names)} {what}, first {names[0]}" for what, names in problems.items() if names)
        raise LandscapeError(
            f"{path} does not fit these parameters ({found}): axes need the network they were made for"
        )
    device = risk.theta.device
    return {role: layout.flatten([tensors[f"{role}/{n}"] for n in layout.names]).to(device) for role in roles}


def axes_from_recipe(risk: ClassRisk, recipe: Mapping[str, Any], points: Sequence[Source] = ()) -> Axes:
    """Rebuild axes from what :class:`Axes` records of itself; for another checkpoint, with its weights and derivatives.

    Random axes come back bit for bit, and on other checkpoints have the same raw draws; gradients and eigenvectors come
    back as exactly as the machine repeats their passes (bit for bit on one CPU).

    Parameters
    ----------
    risk
        The weights under study, the same or others.
    recipe
        ``axes.recipe``, perhaps through JSON.
    points
        The checkpoints that the recipe names (``between``, ``three-point``, ``trajectory``), in its order; their hashes
        must be the recipe's.

    Raises
    ------
    LandscapeError
        For an unknown kind, a missing entry, or other checkpoints.

    Examples
    --------
    >>> from landscape import AnalyticRisk
    >>> risk = AnalyticRisk(lambda t: (t**2).sum()[None], torch.ones(9))
    >>> axes = random_axes(risk, seed=3)
    >>> again = axes_from_recipe(risk, json.loads(json.dumps(axes.recipe)))
    >>> all(bool((a == b).all()) for a, b in zip(axes.vectors, again.vectors))
    True
    """
    kind = recipe.get("kind") if isinstance(recipe, Mapping) else None
    if not isinstance(kind, str) or kind not in _BUILDERS:
        raise unknown_name("kind of axes", str(kind)[:60], _BUILDERS)
    try:
        return _BUILDERS[kind](risk, recipe, _the_points(risk, recipe, points))
    except KeyError as error:
        raise LandscapeError(f"a recipe of {kind} axes: the entry {error} is missing") from None
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        if isinstance(error, LandscapeError):
            raise
        raise LandscapeError(f"a recipe of {kind} axes cannot be used ({first_line(error)})") from error


def _the_points(risk: ClassRisk, recipe: Mapping[str, Any], points: Sequence[Source]) -> list[Source]:
    wanted = recipe.get("points", [])
    if len(points) != len(wanted):
        raise LandscapeError(
            f"a recipe of {recipe['kind']} axes: expected {len(wanted)} checkpoints ({_names(wanted)}), got {len(points)}"
        )
    found: list[Source] = []
    for entry, source in zip(wanted, points):
        point = point_of(risk, source, label=entry["label"])
        if point.sha256 != entry["sha256"]:
            wanted_hash, got_hash = (text[:12] or "no file" for text in (entry["sha256"], point.sha256))
            raise LandscapeError(
                f"a recipe of {recipe['kind']} axes: expected the checkpoint {entry['label']} ({wanted_hash}), got {got_hash}"
            )
        found.append(point)
    return found


def _names(wanted: Sequence[Mapping[str, Any]]) -> str:
    shown = ", ".join(entry["label"] for entry in wanted[:3])
    return shown + (", ..." if len(wanted) > 3 else "") if wanted else "none"


def _random(risk: ClassRisk, recipe: Mapping[str, Any], points: Sequence[Source]) -> Axes:
    names = ("num", "seed", "pair", "normalization", "one_dimensional")
    return random_axes(risk, **{name: recipe[name] for name in names})


def _gradient(risk: ClassRisk, recipe: Mapping[str, Any], points: Sequence[Source]) -> Axes:
    return gradient_axes(risk, recipe["lanes"], length=recipe["length"])


def _eigen(risk: ClassRisk, recipe: Mapping[str, Any], points: Sequence[Source]) -> Axes:
    return eigen_axes(
        risk,
        recipe["lanes"],
        ends=recipe["ends"],
        length=recipe["length"],
        options=SpectrumOptions(**recipe["options"]),
        seed=recipe["seed"],
    )


_BUILDERS: dict[str, Callable[[ClassRisk, Mapping[str, Any], Sequence[Source]], Axes]] = {
    "random": _random,
    "gradient": _gradient,
    "eigen": _eigen,
    "between": lambda risk, recipe, points: between_axes(risk, points[0]),
    "three-point": lambda risk, recipe, points: three_point_axes(risk, *points),
    "trajectory": lambda risk, recipe, points: trajectory_axes(
        risk, points, num=recipe["num"], through=recipe["through"]
    ),
}
