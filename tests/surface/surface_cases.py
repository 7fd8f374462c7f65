"""What the tests of surfaces share: a function known everywhere, and a small network with every kind of layer."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from landscape.models import NormedLinear
from landscape.randomness import stream
from landscape.risk import AnalyticRisk, ModelRisk

E1, E2 = torch.eye(2, dtype=torch.float64)
X = np.array([-1.0, -0.25, 0.5, 2.0, 2.5])  # five columns, three rows, neither symmetric nor equidistant
Y = np.array([-0.5, 0.0, 3.0])


def asymmetric(a, b):
    """Told apart from itself under every exchange or reflection of the axes."""
    return a**2 + 10 * b + a * b + b**3


def toy(dtype=torch.float64, **options):
    def losses(t):
        return torch.stack([asymmetric(t[0], t[1]), torch.exp(t[0]) - 2 * t[1]])

    return AnalyticRisk(losses, torch.zeros(2, dtype=dtype), **options)


def exact(x=X, y=Y):
    """(beta, alpha, class)"""
    b, a = np.meshgrid(y, x, indexing="ij")
    return np.stack([asymmetric(a, b), np.exp(a) - 2 * b], -1)


def labels(num=40):
    return torch.arange(num) * 7 % 10 % 3  # classes of 16, 12 and 12 in mixed order


def images(num=40, channels=1):
    return torch.randn(num, channels, 4, 4, generator=stream(0, "surface/images")) + labels(num)[:, None, None, None]


class Net(nn.Module):
    """A convolution, BatchNorm, a smooth activation, a linear layer and a cosine head."""

    def __init__(self, seed=0):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.hidden = nn.Linear(16, 6)
        self.head = NormedLinear(6, 3)
        generator = stream(seed, "surface/net")
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator).mul_(
                torch.linspace(0.2, 1.8, parameter.shape[0]).view(-1, *[1] * (parameter.dim() - 1))
            )
        self.train()
        with torch.no_grad():
            for _ in range(40):
                self(images())
        self.eval()

    def forward(self, x):
        x = torch.tanh(self.norm(self.conv(x))).flatten(1)
        return 4 * self.head(torch.tanh(self.hidden(x)))


def risk_of(model=None, **options):
    return ModelRisk(model or Net(), (images(), labels()), **options)


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}
