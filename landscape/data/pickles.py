"""Read the pickled CIFAR files without running code from them."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from landscape.errors import LandscapeError
from landscape.files import first_line


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for ``_codecs.encode``, by which Python 3 pickles bytes in protocol 2; ``str`` has text codecs only."""
    return text.encode(encoding)


def _no_bytes() -> bytes:
    """Stand in for ``bytes``, by which empty ones are pickled; a number as argument would be their length."""
    return b""


# NumPy has moved these functions between modules; the objects are taken from where they live now.
_RECONSTRUCT = np.zeros(0, np.uint8).__reduce__()[0]
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
}


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that knows arrays, bytes, text, numbers, lists and dicts, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise LandscapeError(
                f"refused: the file asks for '{module}.{name}', which an official CIFAR pickle never does; "
                "loading it could run code"
            ) from None


def read_pickle(path: Path) -> dict[str, Any]:
    """Return the dictionary pickled in ``path``, its keys as text.

    Raises
    ------
    LandscapeError
        If the pickle refers to anything but plain arrays and containers, is damaged, or holds no dictionary.
    """
    try:
        packed = path.read_bytes()
        _require_true_places(packed)
        content = _ArrayUnpickler(io.BytesIO(packed), encoding="bytes").load()
    except LandscapeError as error:
        raise LandscapeError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle may fail in any opcode
        raise LandscapeError(
            f"{path}: not a readable pickle, perhaps a truncated download ({first_line(error)})"
        ) from error
    if not isinstance(content, dict):
        raise LandscapeError(f"{path}: expected a pickled dictionary, got {type(content).__name__}")
    return {as_text(key): value for key, value in content.items() if isinstance(key, (bytes, str))}


def _require_true_places(packed: bytes) -> None:
    """Raise ValueError where an object is noted under a number beyond those before it: the memo would be that long."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(packed)):
        if "PUT" in opcode.name and isinstance(argument, int) and argument > 2 * count + 1000:
            raise ValueError(f"object {count} is noted as number {argument}, which would take memory for as many")


def as_text(value: Any) -> str:
    """Return bytes (as Python 2 pickled its text) or text as text."""
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
