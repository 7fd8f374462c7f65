"""Rounding is not refused, noise is, and the cause that was measured comes first."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, weight_norm

from landscape.errors import LandscapeError
from landscape.risk import AnalyticRisk, ModelRisk
from landscape.spectrum import SpectrumOptions, measure_spectrum

COUNTS = (6, 3, 1)
Y = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
X = torch.randn(len(Y), 6, generator=torch.Generator().manual_seed(0))
QUICK = SpectrumOptions(num_probes=1, num_steps=4, num_bootstrap=0, max_steps=9)


class Network(nn.Module):
    """Two layers; ``change`` is what forward does beside them."""

    def __init__(self, change=lambda model, hidden: hidden):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.out, self.change, self.calls = nn.Linear(6, 5), nn.Linear(5, 3), change, 0
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x):
        return self.out(self.change(self, torch.tanh(self.first(x))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Linear(6, 3),
        Network,
        lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)),
    ],
    ids=["linear", "tanh", "layernorm"],
)
def test_a_class_with_one_image_is_not_refused(build, dtype):
    torch.manual_seed(0)
    found = measure_spectrum(ModelRisk(build().to(dtype), (X.to(dtype), Y)), ["2", "all"], options=QUICK)
    assert np.isfinite(found.lambda_min).all()


def counted(model, hidden):
    model.calls += 1
    return hidden * (1 + 1e-6 * model.calls)


def averaged(model, hidden):
    model.mean.mul_(0.9).add_(0.1 * hidden.detach().mean(0))
    return hidden - model.mean


def in_turns(model, hidden):
    model.calls += 1
    return hidden.flip(1) if model.calls % 2 else hidden


NOISE = {
    "dropout": (lambda m, h: functional.dropout(h, 0.3, training=True), "random numbers of PyTorch"),
    "small": (lambda m, h: h * (1 + 1e-6 * torch.randn_like(h)), "random numbers of PyTorch"),
    "numpy": (lambda m, h: h * (1 + 1e-6 * np.random.rand()), "random numbers of NumPy"),  # noqa: NPY002
    "coin": (lambda m, h: h.flip(1) if random.random() < 0.5 else h, "random numbers of Python"),
    "counter": (counted, "a counter or other state"),
    "turns": (in_turns, "a counter or other state"),
    "running mean": (averaged, "the buffer 'mean' changes"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", list(NOISE))
def test_noise_is_refused_with_the_cause_that_was_measured(kind, dtype):
    change, cause = NOISE[kind]
    with pytest.raises(LandscapeError, match=rf"two evaluations .* differ.*: the logits of the same inputs .* {cause}"):
        ModelRisk(Network(change).to(dtype), (X.to(dtype), Y))


@pytest.mark.parametrize("norm", [weight_norm, parametrizations.weight_norm], ids=["hook", "parametrisation"])
@pytest.mark.parametrize("dim", [0, 1, -1, None])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norms_have_the_second_derivative_of_their_formula(norm, dim):
    torch.manual_seed(0)
    layer = nn.Linear(6, 3).double()
    direction = layer.weight.detach().clone()
    model = norm(layer, dim=dim)
    risk = ModelRisk(model, (X.double(), Y))
    sizes, names = risk.layout.sizes, risk.layout.names

    def loss(theta):
        parts = dict(zip(names, theta.split(list(sizes))))
        bias = parts["bias"]
        v = next(p for p in parts.values() if p.numel() == direction.numel()).view(3, 6)
        (g,) = (p for name, p in parts.items() if name != "bias" and p.numel() != direction.numel())
        size = v.norm() if dim in (-1, None) else v.norm(dim=1 - dim, keepdim=True)
        weight = v * (g.view(size.shape) / size)
        return functional.cross_entropy(X.double()[:6] @ weight.T + bias, Y[:6])

    dense = torch.autograd.functional.hessian(loss, risk.theta)
    eye = torch.eye(len(risk.theta), dtype=torch.float64)
    row = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    with risk.hessian(risk.theta, row) as product:
        torch.testing.assert_close(product(eye[None])[0], dense, rtol=1e-10, atol=1e-12)


def test_a_lower_precision_inside_the_model_is_named():
    def lowered(model, hidden):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return (hidden @ torch.eye(5)).float()

    with pytest.raises(LandscapeError, match=r"lane '0': .* check: the model computes in bfloat16, a lower precision"):
        measure_spectrum(ModelRisk(Network(lowered), (X, Y)), "0", options=QUICK)


def test_a_callers_autocast_does_not_reach_a_spectrum():
    risk = ModelRisk(Network(), (X, Y))
    plain = measure_spectrum(risk, "0", options=QUICK)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert measure_spectrum(risk, "0", options=QUICK).equals(plain)


class Stepped(torch.autograd.Function):
    """x^2 with a neighbour's slope: no function has this derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0].roll(1, 1)


def test_a_wrong_derivative_is_symmetric_in_neither_precision():
    with pytest.raises(LandscapeError, match="custom operation 'Stepped': its backward pass is not the derivative"):
        ModelRisk(Network(lambda m, h: Stepped.apply(h)), (X, Y))
    toy = AnalyticRisk(lambda x: Stepped.apply(torch.sin(x).view(1, -1)).sum().tanh()[None], torch.linspace(-1, 1, 7))
    with pytest.raises(
        LandscapeError, match=r"fails the symmetry check by .*, in float64 by .* backward pass is not the der"
    ):
        measure_spectrum(toy, "0", options=QUICK)


def test_what_float64_explains_is_the_noise_floor_and_no_refusal():
    """Cancelling logits: of 3e4 in float32 the last of seven digits is 2e-3, and the difference is of the order of one."""

    def cancelling(model, hidden):
        big = 3e4 * hidden
        return torch.exp(big - (3e4 - 1.0) * hidden) - hidden

    risk = ModelRisk(Network(cancelling), (X, Y))
    lane = measure_spectrum(risk, "0", options=QUICK).isel(lane=0)
    eps = torch.finfo(torch.float32).eps
    assert max(float(lane.linearity_error), float(lane.symmetry_error)) > 500 * eps
    assert float(lane.precision_gap) > 500 * eps * float(lane.lambda_max)
    assert "is rounding (as float64 and neighbouring weights show)" in str(lane.evidence.item())


def test_cancellation_in_float64_is_measured_and_not_refused():
    """logsumexp(z) - z_y at losses of 1e-5: p - 1 keeps eleven digits, and the checks allow thirteen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Softplus(), nn.Linear(16, 3)).double()
    x = X.double()
    with torch.no_grad():
        hidden = torch.cat([model[:2](x), torch.ones(len(x), 1)], 1)
        solution = torch.linalg.lstsq(hidden, 12 * functional.one_hot(Y, 3).double()).solution
        model[2].weight.copy_(solution[:-1].T)
        model[2].bias.copy_(solution[-1])
    loss = lambda z, t: torch.logsumexp(z, 1) - z.gather(1, t[:, None])[:, 0]  # noqa: E731
    lane = measure_spectrum(ModelRisk(model, (x, Y), loss=loss), "0", options=QUICK).isel(lane=0)
    assert 1e-6 < float(lane.loss) < 1e-3
    assert float(lane.linearity_error) > 500 * torch.finfo(torch.float64).eps
    assert "is rounding (as float64" in str(lane.evidence.item())
