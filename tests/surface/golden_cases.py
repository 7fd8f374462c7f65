"""What the golden tests share: a network whose filters differ a hundredfold, toys, and the refusal of planted defects.

A golden test is a check that passes on ours, and the same check on a variant that repeats a mistake which was seen in
another tool (the row of our survey is in the test's name): planted in our own code where one function decides it, else
in the data. The check must refuse the variant, so that a check that cannot fail is noticed.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from landscape.randomness import stream
from landscape.risk import AnalyticRisk, ModelRisk
from landscape.surface import measure_surface

E1, E2 = torch.eye(2, dtype=torch.float64)
# Four columns and three rows, asymmetric, not equidistant, with the centre off the middle.
X, Y = np.array([-1.0, 0.0, 0.5, 1.5]), np.array([-0.5, 0.0, 2.0])
POLICIES = ("frozen", "recalibrate")


def check_fails(check, *args):
    """The check must refuse the defective variant."""
    with pytest.raises(AssertionError):
        check(*args)


def slanted(a, b):
    """Told apart from itself under every exchange, reflection and shift of the axes."""
    return a**3 + 10 * b + a * b


def toy(function):
    return AnalyticRisk(lambda t: function(t[0], t[1])[None], torch.zeros(2, dtype=torch.float64))


def plane(function=slanted, x=X, y=Y):
    return measure_surface(toy(function), "all", kind="plane", directions=[E1, E2], x=x, y=y)


class Fuse(nn.Module):
    """Passes its input on; once ``left`` calls are used up, raises. All copies share the count."""

    left: float = float("inf")
    calls = 0

    def forward(self, x):
        Fuse.calls += 1
        Fuse.left -= 1
        if Fuse.left < 0:
            raise RuntimeError("out of memory")
        return x


def network(*more):
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), *more, nn.Linear(16, 3))
    for number, parameter in enumerate(model.parameters()):
        parameter.data.normal_(generator=stream(number, "defects/weights"))
        parameter.data.mul_(torch.logspace(-1, 1, len(parameter)).view(-1, *[1] * (parameter.dim() - 1)))
    return model.eval()


def images(num=12):
    return torch.randn(num, 1, 4, 4, generator=stream(0, "defects/images")), torch.arange(num) % 3


def network_risk(model=None, **options):
    return ModelRisk(model or network(), images(), **options)


def evaluating(monkeypatch, change):
    """Plant a defect where our toys are evaluated: ``change(evaluate, theta)`` takes the place of ``evaluate(theta)``."""
    original = AnalyticRisk.losses

    def losses(self, theta, classes=None):
        return change(lambda point: original(self, point, classes), theta)

    monkeypatch.setattr(AnalyticRisk, "losses", losses)
