"""Small image files for the tests of image data sets."""

from __future__ import annotations

import numpy as np
from PIL import Image


def pixels(seed, width, height):
    """Return smooth random pixels (height, width, 3), which survive JPEG better than noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def write_image(path, seed=0, width=40, height=30):
    """Write an image; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, width, height)).save(path)
    return path


def write_folders(root, counts, *, suffix=".jpg", start=0):
    """Write ``root/CLASS/N.jpg``, images of several sizes; ``counts`` maps class names to numbers of images."""
    for name, count in counts.items():
        for k in range(count):
            start += 1
            write_image(root / name / f"{k:02d}{suffix}", start, 24 + 5 * (start % 4), 24 + 3 * (start % 5))
    return root


def listing(root, counts, below="", suffix=".jpg"):
    """Return the lines 'CLASS/N.jpg label' of what :func:`write_folders` wrote."""
    return [f"{below}{name}/{k:02d}{suffix} {c}" for c, (name, n) in enumerate(counts.items()) for k in range(n)]
