"""Small stored images at the side that a network wants: as training and as evaluation scale them up."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from landscape.data.decoding import Geometry


def scaled_for_training(images: Tensor, side: int) -> Tensor:
    """Return images (N, C, S, S), floating, at ``side`` x ``side``: bilinear without antialiasing.

    Notes
    -----
    Source: GNM-PT (NeurIPS 2024), released code: the last step before normalisation, after crop, flip and cutout at the
    stored size, on pixels that are not rounded.

    Examples
    --------
    >>> scaled_for_training(torch.tensor([[[[0.0, 4.0]]]]).expand(1, 1, 2, 2), 4)[0, 0, 0]
    tensor([0., 1., 3., 4.])
    """
    return functional.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)


def scaled_for_evaluation(images: Tensor, side: int, *, rounds: bool) -> Tensor:
    """Return the centre of images (N, C, S, S), floating, scaled to 8/7 of ``side``: (N, C, side, side).

    Parameters
    ----------
    images
        Stored pixels in a floating dtype.
    side
        Of the result; 224 means scaling to 256 and taking the central 224.
    rounds
        Whether each of the two passes (rows, columns) rounds to whole grey levels, as Pillow does on 8-bit images.

    Notes
    -----
    Source: GNM-PT, released code, where Pillow scales. Equal to it pixel for pixel where the factor is a power of two
    (32 to 256), within one grey level otherwise.
    """
    scaled = Geometry.of_side(side).short_side
    for size in ((images.shape[2], scaled), (scaled, scaled)):
        images = functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
        images = (images + 0.5).floor() if rounds else images
    edge = round((scaled - side) / 2)
    return images[:, :, edge : edge + side, edge : edge + side]
