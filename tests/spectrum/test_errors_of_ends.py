"""The stated error of an end, against dense Hessians of the loss with its constants in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape.losses import LOSSES, build_loss
from landscape.randomness import stream
from landscape.risk import ModelRisk
from landscape.spectrum import SpectrumOptions, measure_spectrum

COUNTS = (501, 97, 31, 7)  # no constant of theirs is a float32 number
LABELS = torch.arange(12) % 4


def drawn(*shape):
    return torch.randn(*shape, generator=stream(0, f"test/ends/{shape}"), dtype=torch.float32)


@pytest.mark.parametrize("name", LOSSES)
def test_ends_of_a_float32_run_lie_within_their_error(name):
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.4 * drawn(*p.shape))
    images = drawn(12, 5)
    risk = ModelRisk(model, (images, LABELS), loss=build_loss(name, COUNTS))
    found = measure_spectrum(risk, lanes="all", options=SpectrumOptions(num_probes=0)).isel(lane=0)
    exact = ModelRisk(model.double(), (images.double(), LABELS), loss=build_loss(name, COUNTS))
    row, size = torch.full((1, 4), 0.25, dtype=torch.float64), len(exact.theta)

    def dense(one):
        return one.hvps(one.theta, row.expand(size, -1), torch.eye(size, dtype=torch.float64))

    hessian = dense(exact)
    # What certifies has this Hessian, not that of constants that went through float32 (off by 1e-8 and more).
    torch.testing.assert_close(dense(risk.in_float64()), hessian, rtol=0, atol=1e-13 * float(hessian.abs().max()))
    values = np.linalg.eigvalsh(hessian.numpy())
    # Beside it the dense solver's own rounding.
    slack = 20 * np.finfo(float).eps * np.abs(values).max()
    for end, value in (("min", values[0]), ("max", values[-1])):
        error = float(found[f"lambda_{end}_error"])
        assert abs(float(found[f"lambda_{end}"]) - value) <= error + slack, end
