"""What a file is that was given as a checkpoint and is none: whole files of another kind are called by their name."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

# The first bytes of files that are no checkpoints, what each is, and what to do.
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a pointer of git-lfs, not the file itself: run 'git lfs pull' where it came from"),
    (b"\x1f\x8b", "compressed with gzip: unpack it (gunzip) and give what was in it"),
    (b"BZh", "compressed with bzip2: unpack it (bunzip2) and give what was in it"),
    (b"\xfd7zXZ\0", "compressed with xz: unpack it (unxz) and give what was in it"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it (unzstd) and give what was in it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it and give the checkpoint in it"),
    (b"Rar!", "a rar archive: unpack it and give the checkpoint in it"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (weights of Keras, or results): convert the weights to a torch state dict"),
    (b"\x93NUMPY", "a NumPy array (.npy): save the state dict with torch.save"),
    (b"GGUF", "a GGUF file of quantised weights: give the torch or safetensors file it was made from"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (b"SQLite format 3", "an SQLite database"),
)
_WEB = re.compile(rb"\s*(<!doctype html|<html|<\?xml)", re.IGNORECASE)
_SHARD = re.compile(r"[-_.](\d+)[-_]of[-_](\d+)(?=[-_.]|$)")


def kind_of_content(path: Path) -> str | None:
    """Return what a file is that is no checkpoint, and what to do; None where it may be one, or is unknown."""
    with path.open("rb") as file:
        start = file.read(1024)
    if not start:
        return "an empty file: copy or download it again"
    for mark, kind in _STARTS:
        if start.startswith(mark):
            return kind
    if start[257:262] == b"ustar":
        return "a tar archive: unpack it and give the checkpoint in it"
    if _WEB.match(start):
        return "a web page that was saved under this name, perhaps one that asks to log in: download the file itself"
    if start.startswith(b"PK"):
        return _kind_of_zip(path)
    if start[:1] == b"\x08" and (path.suffix == ".onnx" or b"onnx" in start or b"pytorch" in start[:64]):
        return "an ONNX graph: give the torch checkpoint that it was exported from"
    return _kind_of_text(path, start)


def shard_of(path: Path) -> str | None:
    """Return which part of a checkpoint in several files a name says it is; None for a whole one.

    Examples
    --------
    >>> shard_of(Path("model-00001-of-00002.safetensors"))
    'shard 1 of 2'
    >>> shard_of(Path("resnet32.pt"))
    """
    found = _SHARD.search(path.name)
    return f"shard {int(found[1])} of {int(found[2])}" if found and int(found[2]) > 1 else None


def _kind_of_zip(path: Path) -> str | None:
    """Return what a zip archive is; None for one of torch.save, and for one that is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # truncated or damaged: the reader says so
        return None
    inside = [name.partition("/")[2] for name in names]
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside) or "model.json" in inside:
        return (
            "a TorchScript archive (torch.jit.save), a program and not weights alone: save model.state_dict() instead"
        )
    if any(
        name.endswith("exported_program.json") or name in ("archive_format", "models/model.json") for name in inside
    ):
        return "an exported program (torch.export.save): save model.state_dict() instead"
    if "data.pkl" in inside:
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "an .npz archive of NumPy arrays: as data give it to --data-dir; weights are saved with torch.save"
    if "model.weights.h5" in names:
        return "a Keras model: convert the weights to a torch state dict"
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "nothing"
    return f"a zip archive that torch did not write (it holds {shown[:200]}): unpack it and give the checkpoint in it"


def _kind_of_text(path: Path, start: bytes) -> str | None:
    """Return what a text file is; None for bytes that are none."""
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # not just cut within a character
            return None
        text = start[: error.start].decode()
    if not all(character.isprintable() or character.isspace() for character in text):
        return None
    if text.lstrip().startswith(("{", "[")):
        return _kind_of_json(path)
    return f"a text file that begins with '{' '.join(text.split())[:60]}'"


def _kind_of_json(path: Path) -> str:
    content: Any = None
    if path.stat().st_size < 100 << 20:
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return "a text file, nearly JSON"
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if isinstance(shards, dict):
        files = sorted({str(name) for name in shards.values()})
        return (
            f"the index of a sharded checkpoint ({len(files)} shards, the first {files[0] if files else 'missing'}): "
            "load the shards, join their state dicts and save that as one file"
        )
    return "a JSON file, which holds no weights"
