"""The residual networks of ImageNet-LT, Places-LT and iNaturalist, with parameter names that load torchvision's weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from landscape.errors import LandscapeError, unknown_name
from landscape.models.initialisation import draw_default

Block = Literal["basic", "bottleneck"]
Stem = Literal["imagenet", "cifar"]

# Channels of a block's result over its planes.
EXPANSION = {"basic": 1, "bottleneck": 4}


class ProjectedBlock(nn.Module):
    """Two 3 x 3 convolutions, and a 1 x 1 convolution as shortcut where the shape changes ("option B")."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _projection(in_planes, planes, stride)

    def forward(self, x: Tensor) -> Tensor:  # (B, in_planes, H, W) -> (B, planes, H / stride, W / stride)
        """Return ``relu(residual(x) + shortcut(x))``."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return functional.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (strided, in groups) and 1 x 1 convolutions; four times ``planes`` channels come out.

    The stride stands at the 3 x 3 convolution, as in torchvision; He et al. put it at the first.
    """

    def __init__(self, in_planes: int, planes: int, stride: int, *, groups: int, group_width: int) -> None:
        super().__init__()
        width, out_planes = planes * group_width // 64 * groups, EXPANSION["bottleneck"] * planes
        self.conv1 = nn.Conv2d(in_planes, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_planes)
        self.downsample = _projection(in_planes, out_planes, stride)

    def forward(self, x: Tensor) -> Tensor:  # (B, in_planes, H, W) -> (B, 4 planes, H / stride, W / stride)
        """Return ``relu(residual(x) + shortcut(x))``."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = functional.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return functional.relu(out + (x if self.downsample is None else self.downsample(x)))


class ImageNetResNet(nn.Module):
    """A residual network of four stages, as torchvision builds them.

    Parameters
    ----------
    head
        The classifier, from ``num_features(...)`` features; stored as ``fc``.
    block
        ``"basic"`` (ResNet-18, 34) or ``"bottleneck"`` (ResNet-50 and deeper, ResNeXt).
    num_blocks
        Blocks of the four stages.
    in_channels
        Channels of the images.
    groups, group_width
        Groups of the 3 x 3 convolution of a bottleneck, and channels of each in the first stage at ``width=64``: 32 and 4
        make a ResNeXt 32x4d.
    width
        Planes of the first stage, doubled by each further one; 64 as published.
    stem
        ``"imagenet"``: a 7 x 7 convolution and a pooling, which make images four times smaller. ``"cifar"``: a 3 x 3
        convolution, which keeps their size.

    Notes
    -----
    Sources: He et al., *Deep Residual Learning*, CVPR 2016, with the stride of a bottleneck at its 3 x 3 convolution; Xie et
    al., *Aggregated Residual Transformations*, CVPR 2017. Names, sizes and initial weights (He-normal by fan-out, torch's
    default for the classifier and the small stem) are torchvision's.
    """

    def __init__(
        self,
        head: nn.Module,
        *,
        block: Block,
        num_blocks: Sequence[int],
        in_channels: int,
        groups: int = 1,
        group_width: int = 64,
        width: int = 64,
        stem: Stem = "imagenet",
    ) -> None:
        super().__init__()
        if stem not in ("imagenet", "cifar"):
            raise unknown_name("stem", stem, ("imagenet", "cifar"))
        if block == "bottleneck" and width * group_width % 64:
            raise LandscapeError(
                f"width: expected a multiple of {64 // group_width} for groups of {group_width} channels, got {width}"
            )
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.stem = stem
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        planes = width
        stages = []
        for stage, count in enumerate(num_blocks):
            layers: list[nn.Module] = []
            for number in range(count):
                strides = 2 if stage > 0 and number == 0 else 1
                if block == "basic":
                    layers.append(ProjectedBlock(planes, width << stage, strides))
                else:
                    layers.append(Bottleneck(planes, width << stage, strides, groups=groups, group_width=group_width))
                planes = EXPANSION[block] * (width << stage)
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = head

    @staticmethod
    def num_features(block: Block, width: int = 64) -> int:
        """Return how many features enter the classifier."""
        return EXPANSION[block] * 8 * width

    def forward(self, images: Tensor) -> Tensor:  # (B, in_channels, H, W) -> (B, num_classes)
        """Return the logits."""
        out = functional.relu(self.bn1(self.conv1(images)))
        if self.stem == "imagenet":
            out = functional.max_pool2d(out, 3, stride=2, padding=1)
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.fc(out.mean(dim=(2, 3)))

    def draw_weights(self, generator: torch.Generator) -> None:
        """Draw the weights as torchvision does; the small stem and the classifier, which are put in later, as torch does."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                if layer is self.conv1 and self.stem == "cifar":
                    draw_default(layer, generator)
                else:
                    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        draw_default(self.fc, generator)


def _projection(in_planes: int, out_planes: int, stride: int) -> nn.Sequential | None:
    """Return the shortcut that changes the shape, or None where it stays."""
    if stride == 1 and in_planes == out_planes:
        return None
    return nn.Sequential(nn.Conv2d(in_planes, out_planes, 1, stride=stride, bias=False), nn.BatchNorm2d(out_planes))
