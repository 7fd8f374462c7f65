"""Random colours and learned policies: AutoAugment, as the field's training scripts use it, and colour jitter."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from landscape.data import colours
from landscape.data.dispatch import Operation, apply_by_kind
from landscape.data.geometry import FRACTIONS, affine, rotation, shear, translation

NUM_LEVELS = 10  # of the strength of an operation, 0 to 9
NUM_PARAMETERS = 6
OUTSIDE = 128  # grey level where a map leaves the image

# Operation, its probability in tenths and its level; twice in each sub-policy, one after the other.
Policy = tuple[tuple[str, int, int, str, int, int], ...]

CIFAR10_POLICY: Policy = (
    ("invert", 1, 7, "contrast", 2, 6),
    ("rotate", 7, 2, "translate-x", 3, 9),
    ("sharpness", 8, 1, "sharpness", 9, 3),
    ("shear-y", 5, 8, "translate-y", 7, 9),
    ("autocontrast", 5, 8, "equalize", 9, 2),
    ("shear-y", 2, 7, "posterize", 3, 7),
    ("color", 4, 3, "brightness", 6, 7),
    ("sharpness", 3, 9, "brightness", 7, 9),
    ("equalize", 6, 5, "equalize", 5, 1),
    ("contrast", 6, 7, "sharpness", 6, 5),
    ("color", 7, 7, "translate-x", 5, 8),
    ("equalize", 3, 7, "autocontrast", 4, 8),
    ("translate-y", 4, 3, "sharpness", 2, 6),
    ("brightness", 9, 6, "color", 2, 8),
    ("solarize", 5, 2, "invert", 0, 3),
    ("equalize", 2, 0, "autocontrast", 6, 0),
    ("equalize", 2, 8, "equalize", 6, 4),
    ("color", 9, 9, "equalize", 6, 6),
    ("autocontrast", 8, 4, "solarize", 2, 8),
    ("brightness", 1, 3, "color", 7, 0),
    ("solarize", 4, 5, "autocontrast", 9, 3),
    ("translate-y", 9, 9, "translate-y", 7, 9),
    ("autocontrast", 9, 2, "solarize", 8, 3),
    ("equalize", 8, 8, "invert", 1, 3),
    ("translate-y", 7, 9, "autocontrast", 9, 1),
)
IMAGENET_POLICY: Policy = (
    ("posterize", 4, 8, "rotate", 6, 9),
    ("solarize", 6, 5, "autocontrast", 6, 5),
    ("equalize", 8, 8, "equalize", 6, 3),
    ("posterize", 6, 7, "posterize", 6, 6),
    ("equalize", 4, 7, "solarize", 2, 4),
    ("equalize", 4, 4, "rotate", 8, 8),
    ("solarize", 6, 3, "equalize", 6, 7),
    ("posterize", 8, 5, "equalize", 10, 2),
    ("rotate", 2, 3, "solarize", 6, 8),
    ("equalize", 6, 8, "posterize", 4, 6),
    ("rotate", 8, 8, "color", 4, 0),
    ("rotate", 4, 9, "equalize", 6, 2),
    ("equalize", 0, 7, "equalize", 8, 8),
    ("invert", 6, 4, "equalize", 10, 8),
    ("color", 6, 4, "contrast", 10, 8),
    ("rotate", 8, 8, "color", 10, 2),
    ("color", 8, 8, "solarize", 8, 7),
    ("sharpness", 4, 7, "invert", 6, 8),
    ("shear-x", 6, 5, "equalize", 10, 9),
    ("color", 4, 0, "equalize", 6, 3),
    ("equalize", 4, 7, "solarize", 2, 4),
    ("solarize", 6, 5, "autocontrast", 6, 5),
    ("invert", 6, 4, "equalize", 10, 8),
    ("color", 6, 4, "contrast", 10, 8),
    ("equalize", 8, 8, "equalize", 6, 3),
)
POLICIES: dict[str, Policy] = {"cifar10": CIFAR10_POLICY, "imagenet": IMAGENET_POLICY}

# What each operation does to images (n, C, H, W) with parameters (n, NUM_PARAMETERS); most have one, or none.
OPERATIONS: dict[str, Operation] = {
    "affine": lambda images, values: affine(images, values, OUTSIDE),
    "shear-x": lambda images, values: shear(images, values[:, 0], OUTSIDE),
    "shear-y": lambda images, values: shear(images.transpose(2, 3), values[:, 0], OUTSIDE).transpose(2, 3),
    "color": lambda images, values: colours.saturation(images, values[:, 0]),
    "contrast": lambda images, values: colours.contrast(images, values[:, 0]),
    "brightness": lambda images, values: colours.brightness(images, values[:, 0]),
    "sharpness": lambda images, values: colours.sharpness(images, values[:, 0]),
    "posterize": lambda images, values: colours.posterize(images, values[:, 0]),
    "solarize": lambda images, values: colours.solarize(images, values[:, 0]),
    "autocontrast": lambda images, _: colours.autocontrast(images),
    "equalize": lambda images, _: colours.equalize(images),
    "invert": lambda images, _: colours.invert(images),
}
KINDS = {name: kind for kind, name in enumerate(OPERATIONS)}


@dataclass(frozen=True)
class AutoAugment:
    """One of 25 learned pairs of operations for each image, each done with its own probability.

    Draws: the pair; a tenth for each operation, which is done where the tenth is below its probability; a sign for each.

    Parameters
    ----------
    policy
        A key of :data:`POLICIES`.
    rotation_sign
        ``"positive"``: counter-clockwise only, as in the widely copied release; ``"both"``, as in the paper.

    Notes
    -----
    Source: Cubuk et al., *AutoAugment: Learning Augmentation Strategies from Data*, CVPR 2019, with the operations of the
    PyTorch release that long-tailed training scripts copy (GNM-PT, PaCo, GLMC). Every operation is pixel for pixel
    Pillow's: nearest pixels for translations and rotations, bicubic for shears, grey 128 outside.

    That release, and so this, differs from the authors' CIFAR code in: 1. level k of 0 to 9 means k ninths of the range,
    there k tenths; 2. colour, contrast, brightness and sharpness go to 1 +- 0.1 k, there to 0.1 + 0.18 k; 3. translations
    are shares of the side (up to 150 / 331), there up to 10 pixels; 4. shears are bicubic, there nearest; 5. posterizing
    keeps 8 - 4 k / 9 bits, there 4 - 0.4 k; 6. grey outside, there the mean colour; 7. the 25 pairs of the paper, there
    all that the search found good.

    Examples
    --------
    >>> images = torch.full((2, 3, 8, 8), 200, dtype=torch.uint8)
    >>> draws = torch.tensor([[0, 0], [0, 1], [9, 9], [0, 0], [0, 0]])  # inverted with probability 1/10: 0 is below 1
    >>> AutoAugment("cifar10").apply(images, draws)[:, 0, 0, 0].tolist()
    [55, 200]
    """

    policy: str
    rotation_sign: Literal["positive", "both"] = "positive"
    num_draws = 5

    def draw(self, num_images: int, generator: torch.Generator) -> Tensor:
        """Return pair, two tenths and two signs, (5, N) int64."""
        pair = torch.randint(0, len(POLICIES[self.policy]), (1, num_images), generator=generator)
        tenths = torch.randint(0, 10, (2, num_images), generator=generator)
        signs = torch.randint(0, 2, (2, num_images), generator=generator)
        return torch.cat([pair, tenths, signs])

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return the images after both operations of their pairs."""
        colours.require_eight_bits(images, "AutoAugment")
        pair = draws[0]
        for stage in range(2):
            kinds, tenths, parameters = _stage(self, stage, images.shape[2], images.shape[3])
            done = draws[1 + stage] < tenths[pair]
            values = parameters[pair, draws[3 + stage]]
            images = apply_by_kind(images, torch.where(done, kinds[pair], -1), values, tuple(OPERATIONS.values()))
        return images


@dataclass(frozen=True)
class ColorJitter:
    r"""Brightness, contrast and saturation by factors from :math:`U(1 - s, 1 + s)`, in random order.

    Draws: one of the six orders, three factors. The 0.4 of ImageNet-LT and Places-LT training; hue, whose published
    strength is 0, is left alone. Pixel for pixel torchvision's ``ColorJitter`` on Pillow images.
    """

    strength: float = 0.4
    num_draws = 4

    def draw(self, num_images: int, generator: torch.Generator) -> Tensor:
        """Return the order's number and the three factors as fractions, (4, N) int64."""
        order = torch.randint(0, len(_ORDERS), (1, num_images), generator=generator)
        return torch.cat([order, torch.randint(0, FRACTIONS, (3, num_images), generator=generator)])

    def factors(self, draws: Tensor) -> Tensor:
        """Return the factors of brightness, contrast and saturation, (3, N) float64."""
        return 1 - self.strength + 2 * self.strength * draws[1:].double() / FRACTIONS

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return the images in other colours."""
        colours.require_eight_bits(images, "colour jitter")
        factors = self.factors(draws)
        for kinds in _ORDERS[draws[0]].T:
            images = apply_by_kind(images, kinds, factors.gather(0, kinds[None]).T, _JITTERS)
        return images


_JITTERS: tuple[Operation, ...] = (OPERATIONS["brightness"], OPERATIONS["contrast"], OPERATIONS["color"])
_ORDERS = torch.tensor(list(itertools.permutations(range(len(_JITTERS)))))  # (6, 3)


@lru_cache(maxsize=64)
def _stage(policy: AutoAugment, stage: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return kind (25,), probability in tenths (25,), parameters by sign (25, 2, NUM_PARAMETERS) of one operation."""
    pairs = POLICIES[policy.policy]
    entries = [(a, b, c) if stage == 0 else (d, e, f) for a, b, c, d, e, f in pairs]
    kinds = torch.tensor([KINDS["affine" if name in _MAPS else name] for name, _, _ in entries])
    tenths = torch.tensor([tenth for _, tenth, _ in entries])
    parameters = torch.zeros(len(entries), 2, NUM_PARAMETERS, dtype=torch.float64)
    for row, (name, _, level) in enumerate(entries):
        signs = (1, 1) if name == "rotate" and policy.rotation_sign == "positive" else (-1, 1)
        for column, sign in enumerate(signs):
            values = _parameters(name, level, sign, height, width)
            parameters[row, column, : len(values)] = torch.tensor(values, dtype=torch.float64)
    return kinds, tenths, parameters


_MAPS = ("rotate", "translate-x", "translate-y")
_POSTERIZE_BITS = np.round(np.linspace(8, 4, NUM_LEVELS))
_SOLARIZE_THRESHOLDS = np.linspace(256, 0, NUM_LEVELS)
_TRANSLATIONS = np.linspace(0, 150 / 331, NUM_LEVELS)  # shares of the side
_ROTATIONS = np.linspace(0, 30, NUM_LEVELS)  # degrees
_SHEARS = np.linspace(0, 0.3, NUM_LEVELS)
_ENHANCEMENTS = np.linspace(0, 0.9, NUM_LEVELS)


def _parameters(name: str, level: int, sign: int, height: int, width: int) -> tuple[float, ...]:
    """Return what an operation of a level and a sign takes on images of a size."""
    if name in ("invert", "autocontrast", "equalize"):
        return ()
    if name == "posterize":
        return (float(_POSTERIZE_BITS[level]),)
    if name == "solarize":
        return (float(_SOLARIZE_THRESHOLDS[level]),)
    if name == "rotate":
        return rotation(sign * float(_ROTATIONS[level]), height, width)
    if name == "translate-x":
        return translation(sign * float(_TRANSLATIONS[level]) * width, 0)
    if name == "translate-y":
        return translation(0, sign * float(_TRANSLATIONS[level]) * height)
    if name in ("shear-x", "shear-y"):
        return (sign * float(_SHEARS[level]),)
    return (1 + sign * float(_ENHANCEMENTS[level]),)
