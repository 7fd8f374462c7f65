"""Torch files of others: what is in them is looked at before it is loaded, and no code in them is run."""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.files import first_line, require_unpackable

CONTAINERS = ("state_dict", "model", "model_state", "model_state_dict", "net", "params")
# Where averages keep their weights, beside the names above.
_INNER = (*CONTAINERS, "shadow", "shadow_params", "module")
_AVERAGE = re.compile(r"(^|[_.-])(ema|averaged?|shadow|swa)(?=$|[_.-])", re.IGNORECASE)
# What networks beside their average are called.
_WHOLE = {"model", "online_model", "module", "net", "network", "student"}
# Counters that averages keep among the weights.
_COUNTERS = ("n_averaged", "initted", "step", "decay", "num_updates")
# The first bytes of every file that torch.save wrote before it wrote zip archives: a magic number, pickled.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# A byte array in a checkpoint (the state of a generator) has a few thousand bytes.
_LONGEST_BYTEARRAY = 1 << 20

Weights = Literal["raw", "ema"]


class Found(NamedTuple):
    """A state dict in a file, and under which names it lies."""

    container: str
    state: dict[str, Tensor]


def read_torch(path: Path, *, is_zip: bool) -> Any:
    """Return the content of a torch file: tensors, numbers, text and containers.

    Raises LandscapeError for code, other objects, damage, and sizes out of proportion to the file.
    """
    damaged = f"{path} is truncated or damaged: copy or download it again"
    if is_zip and not zipfile.is_zipfile(path):
        raise LandscapeError(damaged)
    try:
        _look_through(path, is_zip=is_zip)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickle protocols before it refuses them
            return torch.load(path, map_location="cpu", weights_only=True)
    except LandscapeError:
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL:? (?:GLOBAL )?([\w.]+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise LandscapeError(
            f"{path} holds code or objects other than tensors{what}, which was not executed: "
            "in its own project, save model.state_dict() alone"
        ) from error
    except Exception as error:  # torch raises whatever its readers ran into: OSError, EOFError, RuntimeError, KeyError
        raise LandscapeError(f"{damaged} ({type(error).__name__}: {first_line(error)})") from error


def _look_through(path: Path, *, is_zip: bool) -> None:
    """Refuse what would take memory out of proportion, and pickles that are whole but not torch's."""
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            require_unpackable(sum(entry.file_size for entry in entries), path.stat().st_size, str(path))
            _require_checksums(archive, path)
            for entry in entries:
                if entry.filename.endswith("data.pkl"):
                    _look_through_pickle(archive.read(entry), path)
        return
    content = path.read_bytes()
    if content.startswith(_LEGACY):
        place = len(_LEGACY)
        for _ in range(3):  # protocol, facts about the system, the object itself
            place += _look_through_pickle(content[place:], path)
    elif not _LEGACY.startswith(content):
        _look_through_pickle(content, path)
        if not any(opcode.name in ("GLOBAL", "STACK_GLOBAL") for opcode, _, _ in pickletools.genops(content)):
            raise LandscapeError(
                f"{path} is not a checkpoint: a Python pickle without tensors that torch.save did not write; save "
                "model.state_dict() with torch.save"
            )


def _require_checksums(archive: zipfile.ZipFile, path: Path) -> None:
    """Raise LandscapeError where the content of some entries is not what their checksums say.

    Where it is that of none, the file was written without them (``torch.serialization.set_crc32_options``).
    """
    wrong, right = [], 0
    for entry in archive.infolist():
        with archive.open(entry) as content:
            try:
                while content.read(1 << 20):
                    pass
                right += entry.file_size > 0
            except zipfile.BadZipFile:
                wrong.append(entry.filename)
    if wrong and right:
        raise LandscapeError(
            f"{path} is damaged: the checksum of '{wrong[0]}' in it is wrong; copy or download it again"
        )


def _look_through_pickle(content: bytes, path: Path) -> int:
    """Return the length of a pickle; LandscapeError where it would make a large byte array out of a number."""
    countdown, end = 0, 0
    for opcode, argument, place in pickletools.genops(content):
        end = place or 0
        if opcode.name in ("GLOBAL", "SHORT_BINUNICODE", "BINUNICODE") and str(argument).endswith("bytearray"):
            countdown = 8
        length = argument if opcode.name.startswith(("BININT", "LONG", "INT")) and isinstance(argument, int) else 0
        if countdown and length > _LONGEST_BYTEARRAY:
            raise LandscapeError(f"{path} would make an array of {length} bytes out of a number: not a checkpoint")
        countdown = max(countdown - 1, 0)
    return end + 1


def find_weights(content: Any, path: Path, wanted: Weights | None) -> tuple[Found, Found | None]:
    """Return the weights in the content of a file, and those that were left: a moving average, or what it is of.

    Where both are there the raw weights are taken unless ``wanted`` says ``ema``.
    """
    raw, average = _search(content)
    kinds = {"raw": raw, "ema": average}
    if wanted is not None and kinds[wanted] is None and (raw or average):
        held = raw or average
        assert held is not None
        what = "a moving average" if wanted == "ema" else "raw weights beside their moving average"
        raise LandscapeError(
            f"{path}: expected {what} (weights '{wanted}'), got only {held.container}: leave the choice out"
        )
    chosen = kinds[wanted] if wanted is not None else raw or average
    if chosen is None:
        got = (
            f"the entries {_shorten([str(key)[:60] for key in list(content)[:5]], len(content))}"
            if isinstance(content, Mapping)
            else type(content).__name__
        )
        raise LandscapeError(
            f"{path} is not a checkpoint: expected a state dict, bare or under {CONTAINERS}, got {got}"
        )
    return chosen, average if chosen is raw else raw


def _search(content: Any) -> tuple[Found | None, Found | None]:
    """Return the raw weights and their moving average, as far as they are there."""
    container, found, average = "torch", content, None
    seen: set[int] = set()
    while isinstance(found, Mapping) and id(found) not in seen:  # one that contains itself has no end
        seen.add(id(found))
        if _is_state(found):
            raw, inside = split_average(Found(container, {name: tensor.detach() for name, tensor in found.items()}))
            return raw, average or inside
        average = average or _average_in(found, container)
        key = next((key for key in CONTAINERS if isinstance(found.get(key), Mapping) and found.get(key)), None)
        if key is None:
            break
        container, found = f"{container}:{key}", found[key]
    return None, average


def _is_state(found: Mapping[Any, Any]) -> bool:
    return bool(found) and all(isinstance(name, str) and isinstance(t, Tensor) for name, t in found.items())


def _average_in(found: Mapping[Any, Any], container: str) -> Found | None:
    for key, inner in found.items():
        label, seen = f"{container}:{key}", set()
        while isinstance(key, str) and _AVERAGE.search(key) and isinstance(inner, Mapping) and id(inner) not in seen:
            seen.add(id(inner))
            if _is_state(inner):
                return Found(label, {name: tensor.detach() for name, tensor in inner.items()})
            below = next((name for name in _INNER if isinstance(inner.get(name), Mapping)), None)
            if below is None:
                break
            label, inner = f"{label}:{below}", inner[below]
    return None


def split_average(found: Found) -> tuple[Found | None, Found | None]:
    """Split one state dict that holds weights and their average under two first names, such as ``ema_model.``.

    Only where the names that follow are the same: a layer may be called ``ema``.
    """
    firsts = list(dict.fromkeys(name.partition(".")[0] for name in found.state if "." in name))
    prefix = next((first for first in firsts if _AVERAGE.search(first)), None)
    if prefix is None:
        if "n_averaged" in found.state and firsts == ["module"]:  # torch.optim.swa_utils.AveragedModel
            state = {name: tensor for name, tensor in found.state.items() if name != "n_averaged"}
            return None, Found(f"{found.container}, averaged", state)
        return found, None
    kept = {name: t for name, t in found.state.items() if name.rpartition(".")[2] not in _COUNTERS}
    average = {name[len(prefix) + 1 :]: t for name, t in kept.items() if name.startswith(f"{prefix}.")}
    rest = {name: t for name, t in kept.items() if not name.startswith(f"{prefix}.")}
    others = {name.partition(".")[0] for name in rest}
    bare = {name.partition(".")[2]: t for name, t in rest.items()} if len(others) == 1 and others <= _WHOLE else {}
    raw = next((state for state in (rest, bare) if average.keys() <= state.keys()), None)
    if average and not rest:
        return None, Found(f"{found.container}:{prefix}", average)
    if not average or raw is None:
        return found, None
    return Found(found.container, raw), Found(f"{found.container}:{prefix}", average)


def require_plain(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise LandscapeError unless all tensors are plain numbers in memory, finite, and in proportion to the file."""
    require_unpackable(sum(t.numel() * t.element_size() for t in state.values()), path.stat().st_size, str(path))
    for name, tensor in state.items():
        kind = _kind_of_tensor(tensor)
        if kind is not None:
            raise LandscapeError(f"{path}: '{name}' is {kind}: expected plain numbers, convert it before saving")
        if not bool(torch.isfinite(tensor).all()):
            num_bad = int((~torch.isfinite(tensor)).sum())
            raise LandscapeError(
                f"{path}: {num_bad} of {tensor.numel()} values of '{name}' are NaN or infinite (the training diverged?)"
            )


def _kind_of_tensor(tensor: Tensor) -> str | None:
    """Return what is unusual about a tensor; None for a plain one."""
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout != torch.strided:
        return f"a sparse tensor ({tensor.layout})"
    if tensor.is_meta:
        return "a meta tensor, which has no values"
    if tensor.is_quantized:
        return f"quantised ({tensor.dtype})"
    if tensor.dtype not in _PLAIN:
        return f"of dtype {tensor.dtype}"
    return None


_PLAIN = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64),
}


def _shorten(names: list[str], total: int, limit: int = 4) -> str:
    rest = f" and {total - limit} more" if total > limit else ""
    return ", ".join(names[:limit]) + rest
