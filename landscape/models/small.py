"""Two small networks for small images, where a full Hessian can still be formed."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class MLP(nn.Module):
    """Flatten, two hidden layers of 32 ReLU units, classifier."""

    num_features = 32

    def __init__(self, head: nn.Module, *, num_inputs: int) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(num_inputs, self.num_features)
        self.hidden2 = nn.Linear(self.num_features, self.num_features)
        self.linear = head

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, W) -> (B, num_classes)
        """Return the logits."""
        out = functional.relu(self.hidden1(images.flatten(1)))
        return self.linear(functional.relu(self.hidden2(out)))


class ConvNet(nn.Module):
    """Three 3 x 3 convolutions of 8, 16 and 32 channels, each with BatchNorm and ReLU; global average; classifier.

    The second and third halve the image, so 8 x 8 pixels end as 2 x 2; about 6,300 parameters with ten classes.
    """

    num_features = 32

    def __init__(self, head: nn.Module, *, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.conv3 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(32)
        self.linear = head

    def forward(self, images: Tensor) -> Tensor:  # (B, in_channels, H, W) -> (B, num_classes)
        """Return the logits."""
        out = functional.relu(self.bn1(self.conv1(images)))
        out = functional.relu(self.bn2(self.conv2(out)))
        out = functional.relu(self.bn3(self.conv3(out)))
        return self.linear(out.mean(dim=(2, 3)))
