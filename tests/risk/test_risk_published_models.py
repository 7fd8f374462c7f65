"""The published networks, small, through the analyses: folding, derivatives, parameter subsets, spectra and surfaces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.models import build_model
from landscape.models.imagenet import ImageNetResNet
from landscape.randomness import stream
from landscape.risk import ModelRisk
from landscape.risk.evaluator import PointEvaluator
from landscape.risk.filters import filter_dims_of
from landscape.spectrum import SpectrumOptions, measure_spectrum
from landscape.surface import measure_surface, random_directions

VIT = {"patch_size": 4, "width": 8, "depth": 2, "num_heads": 2}
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 2])
RESIDUAL = {
    "resnext": {"block": "bottleneck", "groups": 4, "group_width": 16, "width": 4},
    "resnet50": {"block": "bottleneck", "width": 4},
    "resnet34-cifar": {"block": "basic", "width": 4, "stem": "cifar"},
}


def images(size=8):
    return torch.randn(len(LABELS), 1, size, size, generator=stream(0, "published/images"), dtype=torch.float64)


def vit(name, head="cosine"):
    """With prompts of different lengths, and a classifier that says something."""
    model = build_model(name, num_classes=3, in_channels=1, image_size=8, head=head, **VIT).double()
    generator = stream(0, "published/vit")
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.normal_(generator=generator).mul_(torch.rand(parameter.shape, generator=generator) + 0.2)
    return model


def residual(kind):
    options = {"groups": 1, "group_width": 64, "stem": "imagenet"} | RESIDUAL[kind]
    head = nn.Linear(ImageNetResNet.num_features(options["block"], options["width"]), 3)
    model = ImageNetResNet(head, num_blocks=(1, 1, 1, 1), in_channels=1, **options).double()
    model.draw_weights(stream(0, "published/residual"))
    for _ in range(3):
        model(images(16))  # running statistics that are not the initial ones
    return model.eval()


def risk_of(model, size=8, **options):
    return ModelRisk(model, (images(size), LABELS), **options)


@pytest.mark.parametrize("kind", RESIDUAL)
def test_batch_norms_fold_into_plain_and_grouped_convolutions(kind):
    model = residual(kind)
    risk = risk_of(model, size=16)
    evaluator = PointEvaluator(risk)
    assert len(evaluator._pairs) == sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    assert evaluator.folding_error < 1e-12
    theta = risk.theta + 0.02 * torch.randn(
        risk.theta.shape, generator=stream(0, "published/step"), dtype=torch.float64
    )
    with torch.no_grad():
        logits = torch.func.functional_call(model, risk.layout.named(theta), images(16))
    expected = functional.cross_entropy(logits, LABELS, reduction="none")
    torch.testing.assert_close(evaluator(theta)["loss"], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "head"), [("vit-b16-gnm", "cosine"), ("vit-b16-vpt", "linear")])
def test_prompts_and_head_have_the_hessian_of_dense_differentiation(name, head):
    model = vit(name, head)
    risk = risk_of(model, params="prompts+head")
    assert risk.layout.names == tuple(n for n, p in model.named_parameters() if p.requires_grad)
    model.eval()

    def mean_loss(theta):
        logits = torch.func.functional_call(model, risk.layout.named(theta), images()[:4])
        return functional.cross_entropy(logits, LABELS[:4])

    vector = torch.randn(risk.theta.shape, generator=stream(0, "published/vector"), dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no second derivative
        _, expected = torch.autograd.functional.hvp(mean_loss, risk.theta, vector)
    weights = torch.eye(3, dtype=torch.float64)
    for strategy in ("auto", "retained", "fresh"):  # torch's forward-mode softmax has no derivative of its own
        with risk.hessian(risk.theta, weights, strategy=strategy) as product:
            found = product(vector.expand(3, 1, -1))[0, 0]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    gradient = torch.autograd.functional.jacobian(mean_loss, risk.theta)
    torch.testing.assert_close(risk.gradients(risk.theta, weights)[0], gradient, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(
        PointEvaluator(risk)(risk.theta)["loss"][:4].mean(), mean_loss(risk.theta), rtol=1e-11, atol=0
    )


@pytest.mark.parametrize("name", ["vit-b16-gnm", "vit-b16-vpt"])
def test_every_prompt_is_a_filter_of_its_own(name):
    model = vit(name)
    dims = filter_dims_of(model)
    assert (dims["prompts"], dims["head.weight"], dims["pos_embed"]) == ((0, 1), 1, (0, 1))
    risk = risk_of(model, params="prompts+head")
    direction = risk.layout.named(random_directions(risk, num=1, seed=3, pair=0)[0])
    norms = {name: torch.linalg.vector_norm(t, dim=-1) for name, t in direction.items() if name == "prompts"}
    torch.testing.assert_close(norms["prompts"], torch.linalg.vector_norm(model.prompts.detach(), dim=-1))
    torch.testing.assert_close(
        torch.linalg.vector_norm(direction["head.weight"], dim=0),
        torch.linalg.vector_norm(model.head.weight.detach(), dim=0),
    )


def published():
    return {
        "vit-b16-gnm": lambda: risk_of(vit("vit-b16-gnm"), params="prompts+head"),
        "resnext": lambda: risk_of(residual("resnext"), size=16),
    }


@pytest.mark.parametrize("kind", published())
def test_the_analyses_run(kind):
    risk = published()[kind]()
    options = SpectrumOptions(num_probes=1, num_steps=2, max_steps=4, certify="own", context=False)
    spectrum = measure_spectrum(risk, lanes=["0", "2"], options=options)
    assert bool(np.isfinite(spectrum.lambda_max).all())
    assert float(spectrum.lambda_max.max()) > 0
    surface = measure_surface(risk, kind="line", x=[-0.5, 0.0, 0.5])
    at_weights = risk.losses(risk.theta).numpy()
    np.testing.assert_allclose(surface.loss.isel(pair=0).sel(alpha=0.0)[:3], at_weights, rtol=1e-9)
    assert bool((surface.loss.isel(pair=0).sel(alpha=0.5) != surface.loss.isel(pair=0).sel(alpha=0.0)).all())
