"""Rounding is not called a broken model, and what is broken is named: float64 decides, and causes are measured."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from landscape import ModelRisk, diagnose, measure_perturbation, measure_spectrum, measure_surface
from landscape.errors import LandscapeError
from landscape.spectrum import SpectrumOptions

QUICK = SpectrumOptions(num_probes=1, num_steps=4, num_bootstrap=0, context=False)
LABELS = torch.arange(3).repeat_interleave(4)


def inputs(dtype=torch.float64):
    return torch.randn(12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def dense(model, row):
    """The Hessian of the mean loss of some rows in plain autograd, the weights as the model's parameters."""
    named = dict(model.named_parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in named.values()])

    def loss(theta):
        parts, start = {}, 0
        for name, p in named.items():
            parts[name] = theta[start : start + p.numel()].view(p.shape)
            start += p.numel()
        logits = torch.func.functional_call(model, parts, (inputs()[row],))
        return nn.functional.cross_entropy(logits, LABELS[row])

    return torch.autograd.functional.hessian(loss, flat)


class WrittenOut(nn.Module):
    """Weight normalisation as its formula, in plain operations."""

    def __init__(self, layer):
        super().__init__()
        self.bias, self.g, self.v = (
            nn.Parameter(layer.bias.detach().clone()),
            nn.Parameter(layer.parametrizations.weight.original0.detach().clone()),
            nn.Parameter(layer.parametrizations.weight.original1.detach().clone()),
        )

    def forward(self, x):
        return x @ (self.v * self.g / self.v.norm(dim=1, keepdim=True)).T + self.bias


def normalised_network():
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3)).double()


def test_weight_norm_has_the_second_derivative_of_its_formula():
    model = seeded(normalised_network)
    plain = nn.Sequential(WrittenOut(model[0]), model[1], model[2])
    result = measure_spectrum(ModelRisk(model, (inputs(), LABELS)), [0, 1], options=QUICK)
    for c in (0, 1):
        values = torch.linalg.eigvalsh(dense(plain, c == LABELS))
        assert float(result.lambda_min[c]) == pytest.approx(float(values[0]), rel=1e-9)
        assert float(result.lambda_max[c]) == pytest.approx(float(values[-1]), rel=1e-9)


def test_the_older_weight_norm_is_the_same_function():
    new = seeded(normalised_network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 5).double()), nn.Tanh(), nn.Linear(5, 3).double())
        state = new.state_dict()
        state["0.weight_g"] = state.pop("0.parametrizations.weight.original0")
        state["0.weight_v"] = state.pop("0.parametrizations.weight.original1")
        old.load_state_dict(state)
        found = [measure_spectrum(ModelRisk(m, (inputs(), LABELS)), [1], options=QUICK) for m in (old, new)]
    np.testing.assert_allclose(found[0].lambda_min, found[1].lambda_min, rtol=1e-9)


def conditioned(scale, dtype):
    """A network whose float32 products are far from symmetric: hidden units nearly cancel, at large scale."""

    class Cancelling(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            hidden = torch.tanh(self.inner(x))
            return self.head((hidden + scale) - scale)

    return seeded(Cancelling).to(dtype)


def test_a_badly_conditioned_network_is_measured_in_float32_with_its_own_noise():
    scale = 3e3
    rough = measure_spectrum(
        ModelRisk(conditioned(scale, torch.float32), (inputs(torch.float32), LABELS)), "all", options=QUICK
    )
    exact = measure_spectrum(ModelRisk(conditioned(scale, torch.float64), (inputs(), LABELS)), "all", options=QUICK)
    assert float(rough.precision_gap[0]) > 0
    for end in ("lambda_min", "lambda_max"):
        assert float(rough[f"{end}_low"][0]) <= float(exact[end][0]) <= float(rough[f"{end}_high"][0])


def test_a_loss_that_cancels_is_no_broken_model():
    """logsumexp - z_y at losses of 1e-4 loses four digits in float64, in the gradient and in the product alike."""

    def own(logits, labels):
        return torch.logsumexp(logits, 1) - logits[torch.arange(len(labels)), labels]

    model = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 3)).double())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        own(model(inputs()), LABELS).mean().backward()
        optimizer.step()
    for dtype in (torch.float32, torch.float64):
        result = measure_spectrum(
            ModelRisk(model.to(dtype), (inputs(dtype), LABELS), loss=own), "classes", options=QUICK
        )
        assert float(result.loss.max()) < 1e-2
        assert np.isfinite(result.lambda_max).all()


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (1 - torch.tanh(2 * x) ** 2)


class Custom(nn.Module):
    def forward(self, x):
        return StraightThrough.apply(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wrong_derivative_is_refused_by_its_name(dtype):
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 5), Custom(), nn.Linear(5, 3), nn.Tanh()).to(dtype))
    with pytest.raises(LandscapeError, match="StraightThrough"):
        measure_spectrum(ModelRisk(model, (inputs(dtype), LABELS)), "all", options=QUICK)


class Cast(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(x).float()


def test_autocast_inside_the_model_is_named():
    model = seeded(lambda: nn.Sequential(Cast(), nn.Tanh(), nn.Linear(6, 3)))
    with pytest.raises(LandscapeError, match=r"computes in bfloat16, a lower precision inside its forward pass"):
        measure_spectrum(ModelRisk(model, (inputs(torch.float32), LABELS)), "all", options=QUICK)


def test_measurements_inside_the_callers_autocast_are_those_without():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)))
    risk = ModelRisk(model, (inputs(torch.float32), LABELS))
    plain = measure_spectrum(risk, [0], options=SpectrumOptions(num_probes=1, num_steps=4))
    line = measure_surface(risk, kind="line", x=[-0.5, 0.0, 0.5], lanes=[0])
    table = diagnose(risk, lanes=[0])
    moved = measure_perturbation(risk, [0], seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ModelRisk(model, (inputs(torch.float32), LABELS))
        again = measure_spectrum(inside, [0], options=SpectrumOptions(num_probes=1, num_steps=4))
        np.testing.assert_allclose(again.lambda_min, plain.lambda_min, rtol=1e-5)
        np.testing.assert_allclose(
            measure_surface(inside, kind="line", x=[-0.5, 0.0, 0.5], lanes=[0]).loss, line.loss, rtol=1e-6
        )
        np.testing.assert_allclose(diagnose(inside, lanes=[0]).lambda_max, table.lambda_max, rtol=1e-5)
        np.testing.assert_allclose(
            measure_perturbation(inside, [0], seed=0).loss_increase, moved.loss_increase, rtol=1e-4, atol=1e-6
        )
