"""The stated error of an end, against dense Hessians of the loss with its constants in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape.losses import LOSSES, build_loss
from landscape.randomness import stream
from landscape.risk import AnalyticRisk, ModelRisk
from landscape.spectrum import SpectrumOptions, measure_spectrum
from landscape.spectrum.extremes import is_done
from landscape.spectrum.lanczos import RitzPairs
from landscape.spectrum.options import FEWEST_STEPS

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


@pytest.mark.parametrize("seed", [3, 5])
def test_a_lower_end_that_decides_nothing_is_near_to_what_is_printed(seed):
    """The edge of a bulk at -0.3 % of lambda_max, which the bound clears of the threshold before its residual is small."""
    edge = 0.003 * (2 * np.random.default_rng(seed).beta(1.5, 1.5, 3000) - 1)
    values = torch.tensor(np.concatenate([edge, [1.0, 0.7, 0.4]])).float()
    risk = AnalyticRisk(lambda x: (values.to(x) * x * x).sum()[None] / 2, torch.zeros(len(values)))
    options = SpectrumOptions(num_bootstrap=0, context=False)
    found = measure_spectrum(risk, "all", options=options, seed=seed).isel(lane=0)
    assert float(found.lambda_min_low) > -options.threshold
    assert float(found.lambda_min) == pytest.approx(float(values.min()), rel=1e-3)


@pytest.mark.parametrize("low", [-0.1, -0.002])
def test_without_a_bound_a_run_ends_at_the_residuals(low):
    """Of an operator that changes with every product nothing more can be asked."""
    count = max(FEWEST_STEPS, 2 * SpectrumOptions().num_extremes)
    ritz = RitzPairs(
        values=np.concatenate([[low], np.linspace(0.1, 1.0, count)]),
        weights=np.full(count + 1, 1 / (count + 1)),
        coordinates=np.eye(count + 1),
        residuals=np.full(count + 1, 2e-5),
        is_exhausted=False,
    )
    assert is_done(ritz, ritz, torch.float32, SpectrumOptions(), None)
