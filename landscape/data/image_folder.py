"""Images in one folder per class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from landscape.data.disk_images import ImageFiles
from landscape.errors import LandscapeError

# Those that torchvision's ImageFolder takes.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
TEST_FOLDERS = ("test", "val")


def read_image_folder(root: Path) -> tuple[list[tuple[ImageFiles, NDArray[np.int64]]], tuple[str, ...]]:
    """Find the images below a folder, and their classes.

    Parameters
    ----------
    root
        With ``train/CLASS/...`` and ``test/CLASS/...`` (or ``val``; where both are present ``test`` is taken), or with
        ``CLASS/...`` alone. Images may lie in folders below their class's. Names that start with a dot are left out.

    Returns
    -------
    Files and labels (N,) of the training images and, where there are any, of the test images; and the class names. The
    classes are the folders in the order of their names, as in torchvision's ``ImageFolder``; images are in that of theirs.

    Raises
    ------
    LandscapeError
        If a class has no image, or the test has a class that the training has not.
    """
    if not root.is_dir():
        raise LandscapeError(f"data_dir {root} is not a folder: expected one with a folder of images for each class")
    train = root / "train" if (root / "train").is_dir() else root
    names = _folders(train)
    if len(names) < 2:
        raise LandscapeError(f"{train}: expected a folder of images for each of at least 2 classes, got {names}")
    splits = [_images(train, names)]
    tests = [root / name for name in TEST_FOLDERS if (root / name).is_dir()] if train != root else []
    if tests:
        unknown = sorted(set(_folders(tests[0])) - set(names))
        if unknown:
            raise LandscapeError(f"{tests[0]}: class '{unknown[0]}' is not among the {len(names)} classes of {train}")
        splits.append(_images(tests[0], names, may_lack=True))
    return splits, tuple(names)


def _folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))


def _images(root: Path, classes: list[str], *, may_lack: bool = False) -> tuple[ImageFiles, NDArray[np.int64]]:
    names, labels = [], []
    for label, name in enumerate(classes):
        found = []
        for folder, below, files in os.walk(root / name, followlinks=True):
            below[:] = sorted(entry for entry in below if not entry.startswith("."))
            inside = os.path.relpath(folder, root)
            found += [
                os.path.join(inside, file)
                for file in sorted(files)
                if file.lower().endswith(IMAGE_SUFFIXES) and not file.startswith(".")
            ]
        if not (found or may_lack):
            raise LandscapeError(f"{root / name}: class '{name}' has no image ({', '.join(IMAGE_SUFFIXES)})")
        names += found
        labels += [label] * len(found)
    return ImageFiles(root, tuple(names)), np.array(labels, np.int64)
