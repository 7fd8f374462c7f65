"""Checkpoints: one format of our own, and a careful reader for the files of others.

Our file is a safetensors file with the parameters and the buffers of the network. How it was trained stands as JSON in
the file's metadata under the key ``landscape``, so that a checkpoint needs no companion to be analysed.

Files of others are torch files (opened with ``weights_only=True``: no code in them is ever executed) or plain
safetensors files. They carry no spec; the caller names model and data.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError
from landscape.file_kinds import kind_of_content, shard_of
from landscape.files import first_line, kind_of, one_line, parse_json, require_file, shown_path, write_bytes
from landscape.models import find_head, infer_model
from landscape.torch_files import Found, Weights, find_weights, read_torch, require_plain

logger = logging.getLogger(__name__)

METADATA_KEY = "landscape"
# DataParallel, wrappers of training scripts, torch.compile, the encoder of ImbSAM and SSE-SAM
PREFIXES = ("module.", "model.", "_orig_mod.", "encoder.")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file in memory.

    Attributes
    ----------
    path
        The file it came from.
    state_dict
        Parameters and buffers on the CPU, wrappers' prefixes removed from their names.
    spec
        How the network was trained (:func:`write_checkpoint` lists the entries), or None for a file of others.
    sha256
        Hash of the whole file, recorded with every result.
    container
        Where the tensors were found: ``landscape``, ``safetensors``, ``torch`` (a bare state dict) or
        ``torch:net`` and the like.
    other_container
        Where the file holds a second set of weights: the moving average (EMA) of these, or what they are the average of.
        None where these are all.
    """

    path: Path
    state_dict: dict[str, Tensor]
    spec: dict[str, Any] | None
    sha256: str
    container: str
    other_container: str | None = None


def write_checkpoint(path: str | os.PathLike[str], state_dict: Mapping[str, Tensor], spec: Mapping[str, Any]) -> Path:
    """Write our checkpoint format; the same arguments give the same bytes.

    Parameters
    ----------
    path
        The file to write, by custom ``*.safetensors``; its folder must exist.
    state_dict
        Parameters *and* buffers of the network, on any device.
    spec
        JSON-able: ``model``, ``head``, ``num_classes``, ``class_names``, ``in_channels``, ``image_size``, ``loss``,
        ``loss_options``, ``class_counts``, ``reweight``, ``data`` (the arguments of ``load_dataset``), ``groups``
        (``rule``, ``members``), ``normalization`` (``mean``, ``std``), ``optimizer``, ``optimizer_options``,
        ``epoch``, ``seed``, ``versions``, ``accuracy``.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    LandscapeError
        If the file cannot be written.
    """
    path = Path(path)
    # Clones: safetensors refuses tensors that share memory (tied weights).
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state_dict.items()}
    metadata = {METADATA_KEY: json.dumps(dict(spec))}
    write_bytes(path, safetensors.torch.save(tensors, metadata=metadata))
    return path


def read_checkpoint(path: str | os.PathLike[str], *, weights: Weights | None = None) -> Checkpoint:
    """Read a checkpoint: ours, a plain safetensors file, or a torch file of others.

    In a torch file the weights may lie bare or under one of ``state_dict``, ``model``, ``model_state``,
    ``model_state_dict``, ``net``, ``params``; a moving average of them (EMA) beside or in their place, as ``state_dict_ema``,
    ``model_ema``, ``ema``, ``params_ema``, or under names that begin with ``ema_model.``. The prefixes ``module.``, ``model.``,
    ``_orig_mod.``, ``encoder.`` go when all names share them.

    Parameters
    ----------
    path
        The file. Its content decides what it is, not its name.
    weights
        ``raw`` or ``ema``, where a file holds both. By default the raw ones, with a warning; the average where it is alone.

    Returns
    -------
    Checkpoint
        The tensors, the spec if there is one, the file's hash.

    Raises
    ------
    LandscapeError
        If the file is missing, truncated, of another kind, holds objects other than tensors (they are not executed), would
        take memory out of proportion, a weight is not finite or not plain (sparse, quantised, meta, float8), or the weights
        asked for are not in it.

    Examples
    --------
    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = f"{folder}/weights.pt"
    ...     torch.save({"net": {"module.w": torch.ones(2)}}, file)
    ...     checkpoint = read_checkpoint(file)
    >>> checkpoint.container, list(checkpoint.state_dict)
    ('torch:net', ['w'])
    """
    if kind_of(path) == "nothing":
        raise LandscapeError(f"no checkpoint at {shown_path(path)}: the file does not exist")
    path = require_file(path, "a checkpoint file")
    try:
        with path.open("rb") as stream:
            start = stream.read(16)
            stream.seek(0)
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        kind = None if _is_safetensors(start) else kind_of_content(path)
    except OSError as error:
        raise LandscapeError(f"cannot read checkpoint {path}: {error.strerror or error}") from error
    if kind is not None:
        raise LandscapeError(f"{path} is not a checkpoint: {kind}")
    if (part := shard_of(path)) is not None:
        raise LandscapeError(f"{path} is {part} of a checkpoint: load them all, join their state dicts, save one file")

    spec, other = None, None
    is_torch = start.startswith((b"PK", b"\x80"))  # a zip archive; a pickle
    if _is_safetensors(start) or (path.suffix == ".safetensors" and not is_torch):
        state, spec = _read_safetensors(path)
        found = Found("safetensors" if spec is None else "landscape", state)
        if spec is None:
            found, other = find_weights(state, path, weights)
            found = Found(found.container.replace("torch", "safetensors", 1), found.state)
    elif is_torch:
        with one_line(f"{path} is truncated or damaged"):
            found, other = find_weights(read_torch(path, is_zip=start.startswith(b"PK")), path, weights)
    else:
        raise LandscapeError(
            f"{path} is not a checkpoint (expected a safetensors or torch file, got one that starts with {start!r})"
        )
    state = found.state
    require_plain(state, path)
    if spec is None:
        prefix = _common_prefix(state)
        state = {name[len(prefix) :]: tensor for name, tensor in state.items()}
    if other is not None and weights is None:
        logger.warning(
            "%s holds two sets of weights, %s and %s (a moving average, EMA): taken is %s, --weights ema takes the other",
            path, found.container, other.container, found.container,
        )  # fmt: skip
    return Checkpoint(path, state, spec, sha256, found.container, None if other is None else other.container)


def _is_safetensors(start: bytes) -> bool:
    """Return whether a file begins as a safetensors file: the length of a header of up to 100 MB, then JSON."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= 100_000_000


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except Exception as error:  # SafetensorError, and what torch raises for dtypes and sizes it does not know
        raise LandscapeError(
            f"{path} is not a whole safetensors file (truncated or damaged): {first_line(error)}"
        ) from error
    if not state:
        raise LandscapeError(f"{path} is not a checkpoint: it holds no tensors")
    if METADATA_KEY not in metadata:
        return state, None
    spec = parse_json(metadata[METADATA_KEY], f"{path}: its metadata '{METADATA_KEY}'")
    if not isinstance(spec, dict):
        raise LandscapeError(f"{path}: expected a JSON object as metadata '{METADATA_KEY}', got {str(spec)[:60]!r}")
    return state, spec


def _common_prefix(names: Mapping[str, Any]) -> str:
    """Return the longest chain of ``PREFIXES`` that all names begin with."""
    prefix = ""
    while longer := [prefix + p for p in PREFIXES if names and all(name.startswith(prefix + p) for name in names)]:
        prefix = longer[0]
    return prefix


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint's tensors into a network; every name and shape must match.

    Missing ``num_batches_tracked`` counters (files older than torch 0.4.1) are tolerated. A network that is itself
    wrapped (``module.``, ``_orig_mod.``) is recognised.

    Parameters
    ----------
    model
        The network; unchanged if the checkpoint does not match.
    checkpoint
        What :func:`read_checkpoint` returned.

    Raises
    ------
    LandscapeError
        On one line: the missing, unexpected and wrongly shaped names, and what they probably mean.
    """
    own = model.state_dict()
    prefix = _common_prefix(own)
    state = {prefix + name: tensor for name, tensor in checkpoint.state_dict.items()}
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    reshaped = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or unexpected or reshaped:
        shapes = [f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}" for name in reshaped]
        lists = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes}
        listed = "; ".join(f"{title}: {_shorten(names)}" for title, names in lists.items() if names)
        raise LandscapeError(f"{checkpoint.path} does not fit the model: {_mismatch_hint(model, state)}{listed}")
    for name, tensor in own.items():
        if name in state and not name.endswith("num_batches_tracked"):
            _require_kind(name, state[name], tensor, checkpoint.path)
    model.load_state_dict(state, strict=False)


def _require_kind(name: str, theirs: Tensor, own: Tensor, path: Path) -> None:
    """Raise LandscapeError where copying would lose what a tensor holds, or take whole numbers for weights."""
    kinds = [
        "complex"
        if t.is_complex()
        else "real"
        if t.is_floating_point()
        else "bool"
        if t.dtype == torch.bool
        else "whole"
        for t in (theirs, own)
    ]
    if kinds[0] != kinds[1]:
        raise LandscapeError(
            f"{path}: '{name}' holds {theirs.dtype}, the model {own.dtype}: expected {kinds[1]} numbers; convert it before "
            "saving if that is what it means"
        )


def _mismatch_hint(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Return the likely cause, ending in '; ', or nothing."""
    prefix = _common_prefix(model.state_dict())
    theirs = infer_model({name[len(prefix) :]: tensor for name, tensor in state.items()})
    ours = infer_model({name[len(prefix) :]: tensor for name, tensor in model.state_dict().items()})
    if theirs is not None and theirs != ours:
        return f"its weights look like {theirs}, the model is {ours or type(model).__name__}; "
    head = find_head(model)[0]
    weight, own = state.get(f"{head}.weight"), model.state_dict()[f"{head}.weight"]
    if weight is None or weight.ndim != 2 or own.ndim != 2:
        return ""
    is_linear = f"{head}.bias" in state
    if is_linear != (f"{head}.bias" in model.state_dict()):
        kinds = ("linear", "cosine") if is_linear else ("cosine", "linear")
        return f"its classifier is a {kinds[0]} head, the model's a {kinds[1]} head; "
    axis = 0 if is_linear else 1
    if weight.shape[axis] != own.shape[axis]:
        return f"its classifier has {weight.shape[axis]} classes, the model {own.shape[axis]}; "
    return ""


def _shorten(names: list[str], limit: int = 4) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
