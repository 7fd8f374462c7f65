"""CIFAR-10 and CIFAR-100 from the official files, binary or pickled."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from landscape.data.dataset import Split
from landscape.data.pickles import as_text, read_pickle
from landscape.errors import LandscapeError

logger = logging.getLogger(__name__)

IMAGE_BYTES = 3 * 32 * 32
# The constants of the long-tailed literature, used there for CIFAR-10 and CIFAR-100 alike.
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True)
class Layout:
    """The files of one official archive."""

    folder: str
    train_files: tuple[str, ...]
    test_file: str
    meta_file: str
    label_bytes: int  # in front of each binary record, the class index last; 0 for a pickled layout
    label_key: str = ""  # pickled layouts only
    names_key: str = ""


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_CIFAR10 = (
    Layout("cifar-10-batches-bin", tuple(f"{b}.bin" for b in _BATCHES), "test_batch.bin", "batches.meta.txt", 1),
    Layout("cifar-10-batches-py", _BATCHES, "test_batch", "batches.meta", 0, "labels", "label_names"),
)
_CIFAR100 = (
    Layout("cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", 2),
    Layout("cifar-100-python", ("train",), "test", "meta", 0, "fine_labels", "fine_label_names"),
)
_CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def read_cifar(num_classes: int, data_dir: str | Path | None) -> tuple[Split, Split, tuple[str, ...]]:
    """Read an official CIFAR archive.

    Parameters
    ----------
    num_classes
        10 or 100 (the fine labels).
    data_dir
        The unpacked folder (``cifar-10-batches-bin``, ``cifar-10-batches-py``, ``cifar-100-binary``,
        ``cifar-100-python``) or the folder that contains it. Where both layouts are present the binary one is read.

    Returns
    -------
    The training and the test split in file order, and the class names: from the archive's list of names where it is
    present, else the official ones for CIFAR-10 and the class numbers for CIFAR-100.

    Raises
    ------
    LandscapeError
        If a file is missing, truncated, of another record size, or has labels out of range.
    """
    if data_dir is None:
        raise LandscapeError(
            f"cifar{num_classes} needs data_dir, the folder of the unpacked official archive (binary or python version)"
        )
    layouts = _CIFAR10 if num_classes == 10 else _CIFAR100
    folder, layout = _find_layout(Path(data_dir).expanduser(), layouts)
    train = _read_files(folder, layout.train_files, layout, num_classes)
    test = _read_files(folder, (layout.test_file,), layout, num_classes)
    if len(train) != 50_000 or len(test) != 10_000:
        logger.warning(
            "%s: %d training and %d test images, the official archive has 50000 and 10000",
            folder, len(train), len(test),
        )  # fmt: skip
    return train, test, _class_names(folder, layout, num_classes)


def has_cifar(num_classes: int, data_dir: Path) -> bool:
    """Return whether a folder holds files of an unpacked archive."""
    return _located(data_dir, _CIFAR10 if num_classes == 10 else _CIFAR100) is not None


def _located(data_dir: Path, layouts: Sequence[Layout]) -> tuple[Path, Layout] | None:
    """Return the folder that holds at least one file of a layout, and the layout."""
    for layout in layouts:
        for folder in (data_dir, data_dir / layout.folder):
            if any((folder / name).is_file() for name in (*layout.train_files, layout.test_file)):
                return folder, layout
    return None


def _find_layout(data_dir: Path, layouts: Sequence[Layout]) -> tuple[Path, Layout]:
    """Return where a layout is; LandscapeError where none is."""
    located = _located(data_dir, layouts)
    if located is not None:
        return located
    wanted = " or ".join(f"{layout.folder}/{layout.train_files[0]}" for layout in layouts)
    problem = "has no" if data_dir.is_dir() else "is not a folder; expected a folder with"
    raise LandscapeError(f"data_dir {data_dir} {problem} {wanted}: unpack the official archive there")


def _read_files(folder: Path, names: Sequence[str], layout: Layout, num_classes: int) -> Split:
    """Read and join data files of one layout."""
    images, labels = [], []
    for name in names:
        path = folder / name
        if not path.is_file():
            raise LandscapeError(f"{path} is missing: unpack the whole official archive")
        pixels, classes = _read_binary(path, layout) if layout.label_bytes else _read_pickled(path, layout)
        if classes.size and not (classes.min() >= 0 and classes.max() < num_classes):
            bad = classes[(classes < 0) | (classes >= num_classes)][0]
            raise LandscapeError(
                f"{path}: label {bad} is out of range 0..{num_classes - 1}: is this the archive of another data set?"
            )
        images.append(pixels)
        labels.append(classes)
    return Split(torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels)))


def _read_binary(path: Path, layout: Layout) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read records of label bytes followed by the red, green and blue planes."""
    record = layout.label_bytes + IMAGE_BYTES
    size = path.stat().st_size
    if size == 0 or size % record:
        raise LandscapeError(
            f"{path}: {size} bytes are not a whole number of {record}-byte records: truncated or foreign"
        )
    records = np.fromfile(path, np.uint8).reshape(-1, record)
    pixels = records[:, layout.label_bytes :].reshape(-1, 3, 32, 32)
    return pixels, records[:, layout.label_bytes - 1].astype(np.int64)


def _read_pickled(path: Path, layout: Layout) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read the dictionary with the rows of pixels and the list of labels."""
    content = read_pickle(path)
    data, labels = content.get("data"), content.get(layout.label_key)
    if not isinstance(data, np.ndarray) or not isinstance(labels, list):
        raise LandscapeError(
            f"{path}: expected an array 'data' and a list '{layout.label_key}', got {str(sorted(content))[:200]}"
        )
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != IMAGE_BYTES or len(data) == 0:
        raise LandscapeError(f"{path}: expected uint8 rows of {IMAGE_BYTES} pixels, got {data.dtype} {data.shape}")
    if len(labels) != len(data) or not all(type(label) is int for label in labels):
        raise LandscapeError(f"{path}: expected {len(data)} whole-number labels, got {len(labels)} entries")
    limit = np.iinfo(np.int64)
    return data.reshape(-1, 3, 32, 32), np.array([min(max(n, limit.min), limit.max) for n in labels], np.int64)


def _class_names(folder: Path, layout: Layout, num_classes: int) -> tuple[str, ...]:
    """Return the names from the archive's meta file, or the default ones."""
    path = folder / layout.meta_file
    if not path.is_file():
        return tuple(_CIFAR10_NAMES) if num_classes == 10 else tuple(map(str, range(num_classes)))
    if layout.label_bytes:
        names = path.read_text(encoding="utf-8", errors="replace").split()
    else:
        listed = read_pickle(path).get(layout.names_key)
        names = [as_text(name) for name in listed if isinstance(name, (bytes, str))] if isinstance(listed, list) else []
    if len(names) != num_classes or len(set(names)) != num_classes:
        raise LandscapeError(
            f"{path}: expected {num_classes} different class names, got {len(names)}: {str(names[:3])[:100]}..."
        )
    return tuple(names)
