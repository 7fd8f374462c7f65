"""The exact trace of a network and its negative energy, which must say the same."""

import pytest
import torch
from torch import nn

from landscape.randomness import stream
from landscape.risk import ModelRisk
from landscape.spectrum import SpectrumOptions, measure_spectrum


def drawn(*shape):
    return torch.randn(*shape, generator=stream(0, f"test/{shape}"), dtype=torch.float64)


def risk_of(scale):
    """A linear network of two layers; at zero weights its Hessian has zero diagonal blocks and nothing else cancels."""
    model = nn.Sequential(nn.Linear(12, 8, bias=False), nn.Linear(8, 3, bias=False)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * drawn(*p.shape))
    return ModelRisk(model, (drawn(15, 12), torch.arange(15) % 3))


@pytest.mark.parametrize("options", [SpectrumOptions(num_probes=2, num_steps=4, max_steps=6), SpectrumOptions()])
def test_a_linear_network_at_zero_has_half_of_its_energy_below_zero(options):
    found = measure_spectrum(risk_of(0.0), lanes=["0", "all"], options=options)
    assert found.trace.values.tolist() == [0.0, 0.0]
    assert (found.trace_high - found.trace_low).values.tolist() == [0.0, 0.0]
    for name in ("negative_energy", "negative_energy_low", "negative_energy_high"):
        assert found[name].values.tolist() == pytest.approx([0.5, 0.5], abs=1e-12)


def test_they_agree_with_the_dense_hessian_and_with_each_other():
    risk = risk_of(0.3)
    row = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    dense = risk.hvps(risk.theta, row.expand(len(risk.theta), -1), torch.eye(len(risk.theta), dtype=torch.float64))
    values = torch.linalg.eigvalsh(dense)
    options = SpectrumOptions(num_probes=2, num_steps=10, max_steps=8)
    found = measure_spectrum(risk, lanes=["0"], options=options).isel(lane=0)
    truth = float(-values[values < 0].sum() / values.abs().sum())
    assert float(found.trace) == pytest.approx(float(values.sum()), rel=1e-9)
    assert float(found.negative_energy_low) <= truth <= float(found.negative_energy_high)
    assert float(found.negative_energy_high - found.negative_energy_low) < 0.3
