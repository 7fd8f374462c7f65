"""Read the pickled CIFAR files without running code from them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from landscape.errors import LandscapeError


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for ``_codecs.encode``, by which Python 3 pickles bytes in protocol 2; ``str`` has text codecs only."""
    return text.encode(encoding)


# NumPy has moved these functions between modules; the objects are taken from where they live now.
_RECONSTRUCT = np.zeros(0, np.uint8).__reduce__()[0]
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): bytes,
    ("builtins", "bytes"): bytes,
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
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="bytes").load()
    except LandscapeError as error:
        raise LandscapeError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle may fail in any opcode
        raise LandscapeError(f"{path}: not a readable pickle, perhaps a truncated download ({error})") from error
    if not isinstance(content, dict):
        raise LandscapeError(f"{path}: expected a pickled dictionary, got {type(content).__name__}")
    return {as_text(key): value for key, value in content.items()}


def as_text(value: Any) -> str:
    """Return bytes (as Python 2 pickled its text) or text as text."""
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
