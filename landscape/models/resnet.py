"""The CIFAR ResNets of the long-tailed literature, with parameter names that load their released checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from landscape.models.initialisation import draw_default


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a parameter-free shortcut.

    Where the shape changes the shortcut takes every second pixel and pads the new channels with zeros, half on each
    side ("option A" of He et al., 2016).
    """

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride = stride
        self.new_planes = planes - in_planes

    def forward(self, x: Tensor) -> Tensor:  # (B, in_planes, H, W) -> (B, planes, H / stride, W / stride)
        """Return ``relu(residual(x) + shortcut(x))``."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride != 1 or self.new_planes:
            side = self.new_planes // 2
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, side, self.new_planes - side))
        return functional.relu(out + x)


class ResNet(nn.Module):
    """A CIFAR ResNet of ``6 * num_blocks + 2`` layers: three stages of 16, 32 and 64 channels.

    Parameters
    ----------
    head
        The classifier, from 64 features; stored as ``linear``.
    num_blocks
        Blocks per stage.
    in_channels
        Channels of the images.

    Notes
    -----
    Source: He et al., *Deep Residual Learning*, CVPR 2016, section 4.2, with option A shortcuts. The state dict has
    the names of the implementation that LDAM, MiSLAS, GCL and Saddle-LongTail share.
    """

    num_features = 64

    def __init__(self, head: nn.Module, *, num_blocks: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, num_blocks, stride=1)
        self.layer2 = _stage(16, 32, num_blocks, stride=2)
        self.layer3 = _stage(32, 64, num_blocks, stride=2)
        self.linear = head

    def forward(self, images: Tensor) -> Tensor:  # (B, in_channels, H, W) -> (B, num_classes)
        """Return the logits."""
        out = functional.relu(self.bn1(self.conv1(images)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean(dim=(2, 3)))


class BBNResNet(nn.Module):
    """The ResNet-32 of BBN as CC-SAM trains it: 30 layers deep, and two blocks that nothing reads.

    Parameters
    ----------
    head
        The classifier, from 64 features; stored as ``classifier.fc``.
    in_channels
        Channels of the images.
    unused_blocks
        Whether the blocks ``cb_block`` and ``rb_block`` exist. BBN puts one of them behind the last stage of four blocks;
        CC-SAM's release builds both and calls neither. No loss depends on their 147,968 parameters: they get no
        gradient, stay as drawn, and give a Hessian of all parameters as many zero eigenvalues. Without them a released
        checkpoint does not load.

    Notes
    -----
    Sources: Zhou et al., *BBN*, CVPR 2020; Zhou et al., *Class-Conditional Sharpness-Aware Minimization*, CVPR 2023,
    released code (``models/ResNet32Feature.py``): He-normal convolutions, torch's default for the classifier. The
    release returns features beside the logits; here only the logits come back.
    """

    num_features = 64

    def __init__(self, head: nn.Module, *, in_channels: int, unused_blocks: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 5, stride=1)
        self.layer2 = _stage(16, 32, 5, stride=2)
        self.layer3 = _stage(32, 64, 4, stride=2)
        if unused_blocks:
            self.cb_block = BasicBlock(64, 64, 1)
            self.rb_block = BasicBlock(64, 64, 1)
        self.classifier = nn.ModuleDict({"fc": head})

    def forward(self, images: Tensor) -> Tensor:  # (B, in_channels, H, W) -> (B, num_classes)
        """Return the logits."""
        out = functional.relu(self.bn1(self.conv1(images)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.classifier["fc"](out.mean(dim=(2, 3)))

    def draw_weights(self, generator: torch.Generator) -> None:
        """Draw the weights as the release does."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, generator=generator)
        draw_default(self.classifier["fc"], generator)


def _stage(in_planes: int, planes: int, num_blocks: int, stride: int) -> nn.Sequential:
    """Return a stage; its first block changes the shape."""
    first = BasicBlock(in_planes, planes, stride)
    return nn.Sequential(first, *(BasicBlock(planes, planes, 1) for _ in range(num_blocks - 1)))
