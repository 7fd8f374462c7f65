r"""Pairs of training images in one: mixup and CutMix.

The loss of a mixed image is :math:`\lambda\, \ell(z, y) + (1 - \lambda)\, \ell(z, y')` with the share :math:`\lambda` of the
image itself and the label :math:`y'` of its partner.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from landscape.data.dispatch import moved
from landscape.errors import LandscapeError, unknown_name

Box = Literal["released", "glmc"]


class Mixed(NamedTuple):
    """A batch of mixed images.

    Attributes
    ----------
    images
        (B, C, H, W), in the type of the images given.
    labels
        Of the images themselves, (B,) int64.
    partner_labels
        Of what was mixed in, (B,) int64.
    shares
        How much of each is the image itself, (B,) float32 in [0, 1].
    """

    images: Tensor
    labels: Tensor
    partner_labels: Tensor
    shares: Tensor


def draw_shares(alpha: float, num: int, generator: torch.Generator) -> Tensor:
    r"""Draw :math:`\lambda \sim \text{Beta}(\alpha, \alpha)`, (num,) float64 on the CPU; 1 where alpha is 0.

    Parameters
    ----------
    alpha
        At least 0; 1 is uniform, small values leave most images nearly unmixed.
    num
        How many.
    generator
        A CPU generator. It gives the seed of a NumPy generator, which draws: torch has no Beta variate with a generator of
        the caller's.

    Raises
    ------
    LandscapeError
        If alpha is negative or not finite, or the generator is not on the CPU.
    """
    if not (math.isfinite(alpha) and alpha >= 0):
        raise LandscapeError(f"alpha must be a finite number of at least 0, got {alpha}")
    if generator.device.type != "cpu":
        raise LandscapeError(f"mixing draws on the CPU, got a generator on {generator.device}: use a CPU generator")
    if alpha == 0:
        return torch.ones(num, dtype=torch.float64)
    seed = int(torch.randint(0, 2**62, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, num))


def mixup(
    images: Tensor, labels: Tensor, alpha: float, generator: torch.Generator, *, per_example: bool = False
) -> Mixed:
    r"""Mix every image of a batch with another of it, :math:`\lambda x + (1 - \lambda) x'`.

    Parameters
    ----------
    images
        (B, C, H, W), normalised, on any device.
    labels
        (B,) int64.
    alpha
        Of Beta(alpha, alpha): 1 on CIFAR (MiSLAS, GCL, CC-SAM), 0.2 on ImageNet-LT and iNaturalist (MiSLAS).
    generator
        A CPU generator; it draws the shares first, then the permutation.
    per_example
        A share for each image; by default one for the batch, as in all released code.

    Notes
    -----
    Source: Zhang et al., *mixup: Beyond Empirical Risk Minimization*, ICLR 2018, and its released code. An image may be its
    own partner, as there.

    Examples
    --------
    >>> images, labels = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([0, 1])
    >>> mixed = mixup(images, labels, 1.0, torch.Generator().manual_seed(1))
    >>> whole = mixed.shares * mixed.labels + (1 - mixed.shares) * mixed.partner_labels
    >>> torch.allclose(mixed.images.flatten(), whole)
    True
    """
    shares = _shares(alpha, len(images), generator, per_example=per_example)
    partners = moved(torch.randperm(len(images), generator=generator), images.device)
    return blend(images, labels, partners=images[partners], partner_labels=labels[partners], shares=shares)


def cutmix(
    images: Tensor,
    labels: Tensor,
    alpha: float,
    generator: torch.Generator,
    *,
    per_example: bool = False,
    box: Box = "released",
) -> Mixed:
    r"""Replace a rectangle of every image by that of another image of the batch.

    The sides are :math:`\sqrt{1 - \lambda}` of the image's, the centre is any pixel, and what sticks out is cut off.

    Parameters
    ----------
    images, labels, generator, per_example
        As for :func:`mixup`; after shares and permutation the centres are drawn.
    alpha
        Of Beta(alpha, alpha): 1 as released.
    box
        ``"released"``: sides rounded down, and the share is what is left of the image. ``"glmc"``: sides rounded up before
        they are halved, and the share stays :math:`\lambda`.

    Notes
    -----
    Source: Yun et al., *CutMix*, ICCV 2019, and its released code; Du et al., *Global and Local Mixture Consistency
    Cumulative Learning*, CVPR 2023, released code.
    """
    shares = _shares(alpha, len(images), generator, per_example=per_example)
    partners = moved(torch.randperm(len(images), generator=generator), images.device)
    centres = _centres(len(images), images, generator, per_example=per_example)
    mixed_in = {"partners": images[partners], "partner_labels": labels[partners]}
    return paste(images, labels, **mixed_in, shares=shares, centres=centres, box=box)


def blend(images: Tensor, labels: Tensor, *, partners: Tensor, partner_labels: Tensor, shares: Tensor) -> Mixed:
    """Mix images with given partners, (B, C, H, W), at given shares, (B,) on the CPU; GLMC's partners are re-sampled."""
    own = moved(shares.float(), images.device)
    weights = own.to(images.dtype)[:, None, None, None]
    return Mixed(weights * images + (1 - weights) * partners, labels, partner_labels, own)


def paste(
    images: Tensor,
    labels: Tensor,
    *,
    partners: Tensor,
    partner_labels: Tensor,
    shares: Tensor,
    centres: Tensor,
    box: Box = "released",
) -> Mixed:
    """Put rectangles of given partners into images.

    Parameters
    ----------
    images, partners
        (B, C, H, W).
    labels, partner_labels
        (B,) int64.
    shares
        The nominal share of each image, (B,) float64 on the CPU.
    centres
        Row and column of each rectangle's centre in pixels, (2, B) int64 on the CPU.
    box
        See :func:`cutmix`.

    Raises
    ------
    LandscapeError
        For an unknown ``box``.
    """
    if box not in ("released", "glmc"):
        raise unknown_name("CutMix box", box, ("released", "glmc"))
    covered = []
    kept = torch.ones_like(shares)
    for axis, length in enumerate(images.shape[2:]):
        side = length * torch.sqrt(1 - shares)
        half = (side.ceil() if box == "glmc" else side.floor()).long() // 2
        start, stop = (centres[axis] - half).clamp(0, length), (centres[axis] + half).clamp(0, length)
        kept = kept * (stop - start) / length
        edges = moved(torch.stack([start, stop]), images.device)[:, :, None]
        places = torch.arange(length, device=images.device)
        covered.append((places >= edges[0]) & (places < edges[1]))  # (B, length)
    mask = (covered[0][:, :, None] & covered[1][:, None, :])[:, None]
    own = moved((shares if box == "glmc" else 1 - kept).float(), images.device)
    return Mixed(torch.where(mask, partners, images), labels, partner_labels, own)


def _shares(alpha: float, num: int, generator: torch.Generator, *, per_example: bool) -> Tensor:
    """Draw a share for each image, or one for all, (num,)."""
    return draw_shares(alpha, num if per_example else 1, generator).expand(num)


def _centres(num: int, images: Tensor, generator: torch.Generator, *, per_example: bool) -> Tensor:
    """Draw a pixel for each image, or one for all, (2, num)."""
    drawn = [torch.randint(0, n, (num if per_example else 1,), generator=generator) for n in images.shape[2:]]
    return torch.stack(drawn).expand(2, num)
