"""Data sets that need no archive: the digits of scikit-learn, and the user's own arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from landscape.data.dataset import Split
from landscape.data.pickles import as_text
from landscape.data.profiles import held_out_share, hold_out
from landscape.errors import LandscapeError
from landscape.files import one_line, read_npz

DIGITS_PIXEL_MAX = 16
# Mean and standard deviation of all 1797 images, pixels scaled to [0, 1].
DIGITS_MEAN, DIGITS_STD = (0.3053,), (0.3760,)
DIGITS_TEST_PER_CLASS = 40
# Names that results use for lanes beside the classes.
RESERVED_NAMES = frozenset({"head", "medium", "tail", "all"})
_CHANNELS = (1, 3)
# What a file of arrays may hold; other arrays in it are not read.
KEYS = ("images", "labels", "test_images", "test_labels", "class_names")


def read_digits() -> tuple[Split, Split, tuple[str, ...]]:
    """Return the 1797 digits of scikit-learn, 8 x 8 pixels from 0 to 16: training split, test split, class names.

    The test split has 40 images of each class, evenly spaced in file order; between 134 and 143 remain.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    split = _split(digits.images.astype(np.uint8)[:, None], digits.target.astype(np.int64))
    kept, held = hold_out(split.labels.numpy(), 10, DIGITS_TEST_PER_CLASS)
    return split.take(torch.from_numpy(kept)), split.take(torch.from_numpy(held)), tuple("0123456789")


def read_arrays(data_dir: str | Path | None) -> tuple[Split, Split, tuple[str, ...]]:
    """Read an ``.npz`` file of images and labels.

    Parameters
    ----------
    data_dir
        The file, with ``images`` (uint8; N, H, W or N, H, W, C or N, C, H, W with C of 1 or 3) and ``labels``
        (whole numbers from 0), and optionally ``test_images``, ``test_labels``, ``class_names``.

    Returns
    -------
    The training and the test split in file order, and the class names (the class numbers by default). Without test
    arrays the same number of each class is held out, evenly spaced: a fifth of the smallest class, at least one.

    Raises
    ------
    LandscapeError
        If the file cannot be read without unpickling, or an array is missing or of the wrong type, shape or range.
    """
    if data_dir is None:
        raise LandscapeError("arrays needs data_dir, a .npz file with 'images' (uint8) and 'labels'")
    path = Path(data_dir).expanduser()
    content = _read_npz(path)
    for key in ("images", "labels"):
        if key not in content:
            raise LandscapeError(f"{path}: array '{key}' is missing, the file has {sorted(content)}")
    if ("test_images" in content) != ("test_labels" in content):
        raise LandscapeError(f"{path}: 'test_images' and 'test_labels' go together, the file has {sorted(content)}")

    train = _checked_split(path, content, "images", "labels")
    test = _checked_split(path, content, "test_images", "test_labels") if "test_images" in content else None
    largest = max(int(s.labels.max()) for s in (train, test) if s is not None)
    if largest >= len(train):
        raise LandscapeError(f"{path}: label {largest} is out of range for {len(train)} training images")
    names = _checked_names(path, content.get("class_names"), largest)
    counts = train.counts(len(names))
    if min(counts) == 0:
        raise LandscapeError(f"{path}: class {counts.index(0)} has no training example, every class needs one")
    if test is None:
        train, test = held_out_share(train, names, str(path), "'test_images' and 'test_labels'")
    elif train.images.shape[1:] != test.images.shape[1:]:
        raise LandscapeError(
            f"{path}: training images are {tuple(train.images.shape[1:])} (channels, height, width), "
            f"test images {tuple(test.images.shape[1:])}: they must agree"
        )
    return train, test, names


def pixel_statistics(split: Split, pixel_max: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of pixels scaled to [0, 1]; 1 for a constant channel's std."""
    mean, std = [], []
    images = split.pixels()
    for c in range(images.shape[1]):
        histogram = torch.bincount(images[:, c].flatten().to(torch.int32), minlength=256).double()
        values = torch.arange(len(histogram), dtype=torch.float64) / pixel_max
        share = histogram / histogram.sum()
        centre = float(share @ values)
        mean.append(centre)
        std.append(float(share @ (values - centre) ** 2) ** 0.5 or 1.0)
    return tuple(mean), tuple(std)


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an .npz file, refusing pickled objects."""
    if not path.is_file():
        raise LandscapeError(f"data_dir {path} is not a file: arrays reads one .npz file")
    with one_line(f"{path}: not a readable .npz file of plain arrays"):
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                raise ValueError("it holds a single array")
        return read_npz(path, KEYS)


def _checked_split(path: Path, content: dict[str, NDArray[Any]], images_key: str, labels_key: str) -> Split:
    """Return the two arrays as a split, after checking them."""
    images, labels = content[images_key], content[labels_key]
    if images.ndim == 0 or 0 in images.shape[1:]:
        raise LandscapeError(f"{path}: '{images_key}' of shape {images.shape} has no pixels")
    if images.dtype != np.uint8:
        raise LandscapeError(f"{path}: '{images_key}' must be uint8 pixels from 0 to 255, got {images.dtype}")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise LandscapeError(
            f"{path}: '{labels_key}' must be whole numbers of shape (N,), got {labels.dtype} {labels.shape}"
        )
    if len(images) != len(labels) or len(labels) == 0:
        raise LandscapeError(f"{path}: '{images_key}' has {len(images)} images, '{labels_key}' {len(labels)} labels")
    classes = labels.astype(np.int64)
    if classes.min() < 0:
        raise LandscapeError(f"{path}: '{labels_key}' has label {classes.min()}, out of range: labels count from 0")
    return _split(_channels_first(path, images_key, images), classes)


def _channels_first(path: Path, key: str, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images as (N, C, H, W)."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[1] in _CHANNELS and images.shape[3] not in _CHANNELS:
        return images
    if images.ndim == 4 and images.shape[3] in _CHANNELS and images.shape[1] not in _CHANNELS:
        return images.transpose(0, 3, 1, 2)
    raise LandscapeError(
        f"{path}: '{key}' of shape {images.shape} is not (N, H, W), (N, H, W, C) or (N, C, H, W) with exactly one of "
        f"the two places for C in {_CHANNELS}"
    )


def _checked_names(path: Path, listed: NDArray[Any] | None, largest_label: int) -> tuple[str, ...]:
    """Return the class names, or the class numbers where none are listed."""
    if listed is None:
        return tuple(map(str, range(largest_label + 1)))
    if listed.ndim > 1 or listed.dtype.kind not in "USiu":
        raise LandscapeError(f"{path}: 'class_names' must be a list of texts, got {listed.dtype} {listed.shape}")
    names = tuple(as_text(name) for name in np.atleast_1d(listed))
    if largest_label >= len(names):
        raise LandscapeError(f"{path}: label {largest_label} is out of range for {len(names)} class names")
    if len(set(names)) != len(names) or RESERVED_NAMES & set(names):
        raise LandscapeError(
            f"{path}: class names must differ from each other and from {sorted(RESERVED_NAMES)}, got {list(names)}"
        )
    return names


def _split(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Split:
    """Wrap arrays without copying more than needed."""
    return Split(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels))
