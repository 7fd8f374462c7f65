"""The noise of the clouded losses, the angles at their borders, and the focal factor of the second stage."""

import math

import numpy as np
import pytest
import torch
from loss_cases import CIFAR10, TRANSCRIPTIONS

from landscape.errors import LandscapeError
from landscape.losses import PUBLISHED_LOSSES, build_loss
from landscape.randomness import stream

NOISY = {name: options for name, (_, options) in PUBLISHED_LOSSES.items() if name.startswith(("gcl", "asymmetric"))}


@pytest.mark.parametrize("setting", NOISY)
def test_noise_matches_the_transcription(batch, setting):
    logits, labels = batch
    name, options = PUBLISHED_LOSSES[setting]
    loss = build_loss(name, CIFAR10, **options)
    loss.generator = stream(0, "noise")
    noise = torch.randn(32, 10, generator=stream(0, "noise"), dtype=torch.float64).numpy() / 3
    expected = TRANSCRIPTIONS[name](
        logits.numpy(), labels.numpy(), np.array(CIFAR10, float), noise=noise.clip(-1, 1), **options
    )
    np.testing.assert_allclose(loss(logits, labels).numpy(), expected, rtol=1e-11)
    assert not np.allclose(loss.eval()(logits, labels).numpy(), expected, rtol=1e-3)


def test_noise_has_the_published_spread():
    loss = build_loss("gcl", [100, 1])
    loss.generator = stream(0, "spread")
    u = loss.draw_clouds(torch.zeros(1_000_000, 2, dtype=torch.float64))[:, 1]  # the rarest class: of full size
    assert 0 <= float(u.min()) <= float(u.max()) == 1
    # u^2 of a Gaussian clipped at 3 sigma: std .3325 (a fourth moment of 3 bounds the sampling error)
    assert float((u**2).mean().sqrt()) == pytest.approx(0.3325, abs=5 * 0.3325 * math.sqrt(0.5 / 1e6))


@pytest.mark.parametrize("name", ["gcl", "gcl-angular", "asymmetric-gcl"])
def test_losses_are_noisy_in_training_only(batch, name):
    loss = build_loss(name, CIFAR10)
    with pytest.raises(LandscapeError, match=rf"{name} draws noise in training mode: assign loss\.generator"):
        loss(*batch)
    loss.generator = stream(0, "noise")
    before = torch.get_rng_state()
    first, second = loss(*batch), loss(*batch)
    loss.generator = stream(0, "noise")
    assert torch.equal(loss(*batch), first)
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["gcl", "gcl-angular", "asymmetric-gcl"])
def test_the_most_frequent_class_has_no_noise(batch, name):
    loss = build_loss(name, [10, 10])
    loss.generator = stream(0, "noise")
    logits, labels = batch[0][:, :2], batch[1] % 2
    assert torch.equal(loss(logits, labels), loss.eval()(logits, labels))


# --- the focal factor of the second stage


def test_training_takes_the_focal_factor_as_a_constant(batch):
    """Its gradient is (1 - p) grad CE, that of CE - (1 - p), and not that of the value (1 - p) CE."""
    logits, labels = batch[0].requires_grad_(), batch[1]
    loss = build_loss("gcl", CIFAR10, scale=20, margin=0.1, noise_mul=0.0, gamma=1)
    ce = build_loss("gcl", CIFAR10, scale=20, margin=0.1, noise_mul=0.0)(logits, labels)
    value = loss(logits, labels)
    torch.testing.assert_close(value, (1 - torch.exp(-ce)) * ce, rtol=1e-12, atol=1e-14)
    (constant,) = torch.autograd.grad(value.sum(), logits)
    (primitive,) = torch.autograd.grad((ce + torch.exp(-ce)).sum(), logits)
    torch.testing.assert_close(constant, primitive, rtol=1e-11, atol=1e-13)
    evaluated = loss.eval()(logits, labels)
    torch.testing.assert_close(evaluated, value, rtol=0, atol=0)
    (own,) = torch.autograd.grad(evaluated.sum(), logits)
    assert float((own - constant).abs().max()) > 0.1
    differentiated = build_loss("gcl", CIFAR10, scale=20, margin=0.1, noise_mul=0.0, gamma=1, detach=False)
    torch.testing.assert_close(torch.autograd.grad(differentiated(logits, labels).sum(), logits)[0], own)


# --- angles


@pytest.mark.parametrize("easy_margin", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_derivatives_are_finite_where_the_angle_is_zero_or_straight(easy_margin, dtype):
    """Rounding takes cosines past 1; the sine has an infinite derivative there."""
    loss = build_loss("gcl-angular", [9, 3, 1], easy_margin=easy_margin)
    above = 1 + torch.finfo(dtype).eps
    logits = torch.tensor([[1.0, -1.0, 0.0], [above, -above, 1.0]], dtype=dtype, requires_grad=True)
    for train in (False, True):

        def total(z, train=train):
            loss.generator = stream(0, "noise")
            return loss.train(train)(z, torch.tensor([0, 1])).sum()

        (gradient,) = torch.autograd.grad(total(logits), logits)
        assert gradient.isfinite().all()
        assert torch.autograd.functional.hessian(total, logits).isfinite().all()


def test_a_margin_turns_the_label_by_its_angle():
    angle = 0.7
    z = torch.tensor([[0.0, math.cos(angle)]], dtype=torch.float64)
    got = build_loss("gcl-angular", [9, 1], margin=0.5).eval()(z, torch.tensor([1]))
    assert float(got) == pytest.approx(math.log1p(math.exp(-30 * math.cos(angle + 0.5))), rel=1e-12)


# --- closed forms of the asymmetric loss


def test_asymmetric_loss_at_equal_probabilities():
    """p = 1/C everywhere: log C ((1 - eta + eta/C) (1 - 1/C)^g+ + (C - 1) eta/C C^-g-)."""
    loss = build_loss("asymmetric-gcl", [7] * 5, margin=0.0, gamma_pos=0.5, gamma_neg=2.0, smoothing=0.1).eval()
    expected = math.log(5) * ((0.9 + 0.02) * 0.8**0.5 + 4 * 0.02 * 5**-2.0)
    assert float(loss(torch.zeros(1, 5, dtype=torch.float64), torch.tensor([3]))) == pytest.approx(expected, rel=1e-13)
