"""The kernels for second derivatives give the numbers of plain autograd, for every order and every way of calling."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp
from torch.nn import functional

from landscape.risk import ModelRisk
from landscape.risk.arithmetic import load_forward_mode
from landscape.risk.kernels import TwiceDifferentiable

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm statistics and coefficients that are neither 0 nor 1."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            for tensor in (layer.running_mean, layer.running_var, layer.weight, layer.bias):
                if tensor is not None:
                    tensor.data.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return model.eval()


def small_networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Return networks that between them use every option of the replaced functions, and their input shapes."""
    torch.manual_seed(0)
    images = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2),
        nn.BatchNorm2d(4, affine=False),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(36, 3),
    )
    signals = nn.Sequential(
        nn.Conv1d(2, 3, 3, padding=1), nn.BatchNorm1d(3), nn.GELU(), nn.Flatten(), nn.Linear(15, 3), nn.BatchNorm1d(3)
    )
    by_name = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding="same"), nn.BatchNorm2d(2, eps=1e-2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)
    )
    volumes = nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))
    return {
        "images": (settled(images), (3, 6, 6)),
        "signals": (settled(signals), (2, 5)),
        "padding by name": (settled(by_name), (1, 4, 4)),
        "volumes": (settled(volumes), (1, 3, 3, 3)),
    }


class FlatLoss:
    """The mean cross-entropy of a network as a function of its flat parameters."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...], *, dtype: torch.dtype, device: str) -> None:
        generator = torch.Generator().manual_seed(1)
        self.model = model.to(device=device, dtype=dtype)
        self.inputs = torch.randn(5, *shape, generator=generator, dtype=torch.float64).to(device=device, dtype=dtype)
        self.labels = torch.tensor([0, 1, 2, 1, 0], device=device)
        self.theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def __call__(self, theta: Tensor, inputs: Tensor | None = None) -> Tensor:
        named, start = {}, 0
        for name, p in self.model.named_parameters():
            named[name] = theta[start : start + p.numel()].view(p.shape)
            start += p.numel()
        logits = functional_call(self.model, named, (self.inputs if inputs is None else inputs,))
        return functional.cross_entropy(logits, self.labels)


def derivatives(loss: FlatLoss, *, replaced: bool) -> list[Tensor]:
    """Return the value, gradient, dense Hessian, and a third derivative."""
    point = loss.theta.clone().requires_grad_()
    with TwiceDifferentiable() if replaced else nullcontext():
        value = loss(point)
    (gradient,) = torch.autograd.grad(value, point, create_graph=True)
    rows = [torch.autograd.grad(entry, point, retain_graph=True)[0] for entry in gradient]
    (along,) = torch.autograd.grad(gradient, point, torch.ones_like(point), create_graph=True)
    (third,) = torch.autograd.grad(along, point, torch.linspace(-1, 1, len(point)).to(point))
    return [value, gradient, torch.stack(rows), third]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", list(small_networks()))
def test_value_and_derivatives_agree_with_dense_autograd(name: str, dtype: torch.dtype, device: str) -> None:
    loss = FlatLoss(*small_networks()[name], dtype=dtype, device=device)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    for ours, plain in zip(derivatives(loss, replaced=True), derivatives(loss, replaced=False)):
        assert float((ours - plain).detach().abs().max()) <= tolerance * float(plain.detach().abs().max())


def test_derivatives_with_respect_to_the_inputs_agree_too() -> None:
    loss = FlatLoss(*small_networks()["images"], dtype=torch.float64, device="cpu")
    products = []
    for context in (TwiceDifferentiable(), nullcontext()):
        inputs = loss.inputs.clone().requires_grad_()
        with context:
            value = loss(loss.theta, inputs)
        (gradient,) = torch.autograd.grad(value, inputs, create_graph=True)
        products.append(torch.autograd.grad(gradient, inputs, torch.ones_like(inputs))[0])
    assert torch.allclose(products[0], products[1], rtol=0, atol=1e-12)


def test_graphs_of_the_replaced_functions_hold_no_batch_statistics_backward() -> None:
    """The whole point: no node differentiates the ordinary kernels' backward formulas."""
    loss = FlatLoss(*small_networks()["images"], dtype=torch.float64, device="cpu")
    names = []
    for context in (TwiceDifferentiable(), nullcontext()):
        point = loss.theta.clone().requires_grad_()
        with context:
            value = loss(point)
        (gradient,) = torch.autograd.grad(value, point, create_graph=True)
        found, queue = set(), [gradient.grad_fn]
        while queue:
            node = queue.pop()
            if node is not None and node not in found:
                found.add(node)
                queue += [parent for parent, _ in node.next_functions]
        names.append({node.name() for node in found})
    ordinary = {"NativeBatchNormBackwardBackward0", "ConvolutionBackwardBackward0"}
    assert not names[0] & ordinary
    assert ordinary <= names[1]


def test_vmap_and_forward_mode_pass_through() -> None:
    load_forward_mode()
    loss = FlatLoss(*small_networks()["images"], dtype=torch.float64, device="cpu")
    tangent = torch.linspace(-1, 1, len(loss.theta), dtype=torch.float64)
    dense = derivatives(loss, replaced=False)[2]
    with TwiceDifferentiable():
        forward_over_reverse = jvp(torch.func.grad(loss), (loss.theta,), (tangent,))[1]
        point = loss.theta.clone().requires_grad_()
        reverse_over_forward = torch.autograd.grad(jvp(loss, (point,), (tangent,))[1], point)[0]
        by_vmap = jacrev(torch.func.grad(loss))(loss.theta)
    assert torch.allclose(forward_over_reverse, dense @ tangent, rtol=0, atol=1e-12)
    assert torch.allclose(reverse_over_forward, dense @ tangent, rtol=0, atol=1e-12)
    assert torch.allclose(by_vmap, dense, rtol=0, atol=1e-12)


def test_training_mode_and_missing_statistics_stay_ordinary() -> None:
    inputs = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(2), requires_grad=True)
    for layer in (nn.BatchNorm2d(3).train(), nn.BatchNorm2d(3, track_running_stats=False).eval()):
        plain = layer(inputs)
        with TwiceDifferentiable():
            assert torch.equal(layer(inputs), plain)


def test_a_risk_builds_its_graphs_with_them_and_leaves_the_model_alone() -> None:
    model, shape = small_networks()["images"]
    model = model.double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = torch.randn(6, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    risk = ModelRisk(model, (inputs, labels))
    vectors = torch.randn(1, 2, len(risk.theta), generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def mean(theta: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(model, risk.layout.named(theta), (inputs,)), labels)

    dense = jacrev(torch.func.grad(mean))(risk.theta)
    with risk.hessian(risk.theta, torch.full((1, 3), 1 / 3, dtype=torch.float64)) as product:
        assert torch.allclose(product(vectors), vectors @ dense, rtol=0, atol=1e-12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


NORMS = {
    "BatchNorm1d": (lambda: nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4)), (6,)),
    "BatchNorm2d": (lambda: nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4)), (4, 4)),
    "BatchNorm3d": (lambda: nn.Sequential(nn.Conv3d(3, 4, 2), nn.BatchNorm3d(4)), (3, 4, 3)),
    "InstanceNorm1d": (lambda: nn.Sequential(nn.Conv1d(3, 4, 2), nn.InstanceNorm1d(4, affine=True)), (6,)),
    "InstanceNorm2d": (lambda: nn.Sequential(nn.Conv2d(3, 4, 2), nn.InstanceNorm2d(4)), (4, 4)),
    "tracked": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 2), nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
        (4, 4),
    ),
    "GroupNorm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 2), nn.GroupNorm(2, 4)), (4, 4)),
    "LocalResponseNorm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 2), nn.LocalResponseNorm(3, 1.0)), (4, 4)),
}


class Tokens(nn.Module):
    def __init__(self, stem: nn.Module):
        super().__init__()
        self.stem, self.head = stem, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.stem(x).flatten(2).transpose(1, 2).contiguous()).square().mean(1))


@pytest.mark.parametrize("name", NORMS)
def test_tokens_of_one_image_behind_a_norm_have_the_gradient_of_differences(name):
    """The gradient arrives transposed there; PyTorch's batch norm takes its entries for others in a batch of one."""
    build, spatial = NORMS[name]
    torch.manual_seed(0)
    model = settled(Tokens(build())).double()
    ordinary = model(images := torch.randn(2, 3, *spatial).double())
    risk = ModelRisk(model, (images, torch.tensor([0, 1])))
    with TwiceDifferentiable():
        torch.testing.assert_close(risk.logits(risk.theta, slice(0, 2)), ordinary, rtol=1e-12, atol=1e-14)
    weights, step = torch.eye(2, dtype=torch.float64), 1e-5
    direction = torch.randn(len(risk.theta), dtype=torch.float64)
    direction /= direction.norm()
    ways = [risk.theta + sign * step * direction for sign in (1, -1)]
    up, down = (risk.lane_losses(theta, weights) for theta in ways)
    slopes = risk.gradients(risk.theta, weights) @ direction
    torch.testing.assert_close(slopes, (up - down) / (2 * step), rtol=1e-6, atol=1e-8)
    with risk.hessian(risk.theta, weights) as product:
        curved = product(direction.expand(2, 1, -1))[:, 0]
    ahead, behind = (risk.gradients(theta, weights) for theta in ways)
    torch.testing.assert_close(curved, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-7)
