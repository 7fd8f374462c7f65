"""Checkpoints: one format of our own, and a careful reader for the files of others.

Our file is a safetensors file with the parameters and the buffers of the network. How it was trained stands as JSON in
the file's metadata under the key ``landscape``, so that a checkpoint needs no companion to be analysed.

Files of others are torch files (opened with ``weights_only=True``: no code in them is ever executed) or plain
safetensors files. They carry no spec; the caller names model and data.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError
from landscape.files import write_bytes
from landscape.models import find_head, infer_model

METADATA_KEY = "landscape"
CONTAINERS = ("state_dict", "model", "model_state", "model_state_dict", "net")
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
    """

    path: Path
    state_dict: dict[str, Tensor]
    spec: dict[str, Any] | None
    sha256: str
    container: str


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


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint: ours, a plain safetensors file, or a torch file of others.

    In a torch file the weights may lie bare or under one of ``state_dict``, ``model``, ``model_state``,
    ``model_state_dict``, ``net``; the prefixes ``module.``, ``model.``, ``_orig_mod.``, ``encoder.`` go when all names share them.

    Parameters
    ----------
    path
        The file. Its content decides what it is, not its name.

    Returns
    -------
    Checkpoint
        The tensors, the spec if there is one, the file's hash.

    Raises
    ------
    LandscapeError
        If the file is missing, truncated, not a checkpoint, holds objects other than tensors (they are not executed),
        or a weight is not finite.

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
    path = Path(path)
    if path.is_dir():
        raise LandscapeError(f"expected a checkpoint file, got the folder {path}: name the file in it")
    try:
        with path.open("rb") as stream:
            start = stream.read(16)
            stream.seek(0)
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise LandscapeError(f"no checkpoint at {path}: the file does not exist") from None
    except OSError as error:
        raise LandscapeError(f"cannot read checkpoint {path}: {error.strerror or error}") from error

    spec = None
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        state, spec = _read_safetensors(path)
        container = "safetensors" if spec is None else "landscape"
    elif start.startswith((b"PK", b"\x80")):  # a zip archive; a pickle
        state, container = _find_state_dict(_read_torch(path, is_zip=start.startswith(b"PK")), path)
    else:
        raise LandscapeError(
            f"{path} is not a checkpoint (expected a safetensors or torch file, got one that starts with {start!r})"
        )
    if spec is None:
        prefix = _common_prefix(state)
        state = {name[len(prefix) :]: tensor for name, tensor in state.items()}
    _check_finite(state, path)
    return Checkpoint(path, state, spec, sha256, container)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except safetensors.SafetensorError as error:
        raise LandscapeError(f"{path} is not a whole safetensors file (truncated or damaged): {error}") from None
    if not state:
        raise LandscapeError(f"{path} is not a checkpoint: it holds no tensors")
    if METADATA_KEY not in metadata:
        return state, None
    try:
        spec = json.loads(metadata[METADATA_KEY])
    except json.JSONDecodeError as error:
        raise LandscapeError(f"{path}: its metadata '{METADATA_KEY}' is not JSON: {error}") from None
    if not isinstance(spec, dict):
        raise LandscapeError(f"{path}: expected a JSON object as metadata '{METADATA_KEY}', got {spec!r}")
    return state, spec


def _read_torch(path: Path, *, is_zip: bool) -> Any:
    truncated = LandscapeError(f"{path} is truncated or damaged: copy or download it again")
    if is_zip and not zipfile.is_zipfile(path):
        raise truncated
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickle protocols before it refuses them
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL:? (?:GLOBAL )?([\w.]+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise LandscapeError(
            f"{path} holds code or objects other than tensors{what}, which was not executed: "
            "in its own project, save model.state_dict() alone"
        ) from None
    except Exception as error:  # torch raises whatever its readers ran into: OSError, EOFError, RuntimeError, KeyError
        if is_zip and "not in a subdirectory" in str(error):
            raise LandscapeError(f"{path} is not a checkpoint: a zip archive that torch did not write") from None
        raise truncated from error


def _find_state_dict(content: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    container, found = "torch", content
    while isinstance(found, Mapping):
        if found and all(isinstance(name, str) and isinstance(t, Tensor) for name, t in found.items()):
            return {name: tensor.detach() for name, tensor in found.items()}, container
        key = next((key for key in CONTAINERS if isinstance(found.get(key), Mapping)), None)
        if key is None:
            break
        container, found = f"{container}:{key}", found[key]
    got = f"the entries {_shorten(list(map(str, found)))}" if isinstance(found, Mapping) else type(found).__name__
    raise LandscapeError(f"{path} is not a checkpoint: expected a state dict, bare or under {CONTAINERS}, got {got}")


def _common_prefix(names: Mapping[str, Any]) -> str:
    """Return the longest chain of ``PREFIXES`` that all names begin with."""
    prefix = ""
    while longer := [prefix + p for p in PREFIXES if names and all(name.startswith(prefix + p) for name in names)]:
        prefix = longer[0]
    return prefix


def _check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            num_bad = int((~torch.isfinite(tensor)).sum())
            raise LandscapeError(
                f"{path}: {num_bad} of {tensor.numel()} values of '{name}' are NaN or infinite (the training diverged?)"
            )


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
    model.load_state_dict(state, strict=False)


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
