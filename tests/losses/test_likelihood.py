"""Cross-entropies in float32 with all their digits: of fitted examples, of hopeless ones, and where logits are equal."""

import pytest
import torch
from torch.nn import functional

from landscape.losses import cross_entropy, surprises
from landscape.randomness import stream
from landscape.risk.arithmetic import load_forward_mode

# Losses from e^-20 (2e-9) to 1e2, logits equal but for the label's.
MARGINS = (-100.0, -20.0, -10.0, -1.0, 0.0, 1.0, 10.0, 20.0)


def drawn(num_classes, margin, spread=1.0, num=8):
    """Logits in float32, labels and vectors; the label's logit lies about ``margin`` above the others'."""
    generator = stream(0, f"test/likelihood/{num_classes}")
    logits = spread * torch.randn(num, num_classes, generator=generator)
    labels = torch.randint(0, num_classes, (num,), generator=generator)
    logits[torch.arange(num), labels] += margin
    return logits, labels, torch.randn(num, num_classes, generator=generator)


def usual(logits, labels):
    return functional.cross_entropy(logits, labels, reduction="none")


def derivatives(loss, logits, labels, vectors):
    """Values (B,), gradients (B, C) and Hessian-vector products (B, C) in float64."""
    z = logits.clone().requires_grad_()
    values = loss(z, labels)
    (gradients,) = torch.autograd.grad(values.sum(), z, create_graph=True)
    (products,) = torch.autograd.grad(gradients, z, vectors, materialize_grads=True)
    return [found.detach().double() for found in (values, gradients, products)]


def relative_errors(found, expected):
    sizes = expected.view(len(found), -1).norm(dim=1).clamp_min(1e-30)  # of 1e-44 float32 has two digits at most
    return ((found - expected).view(len(found), -1).norm(dim=1) / sizes).max()


@pytest.mark.parametrize("num_classes", [2, 3, 10, 1000])
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_float32_keeps_value_gradient_and_curvature(num_classes, margin, spread):
    """To the rounding of differences of logits: up to 100 times eps in all, as a logit of 100 is off by eps / 2 of it."""
    logits, labels, vectors = drawn(num_classes, margin, spread)
    exact = derivatives(cross_entropy, logits.double(), labels, vectors.double())
    for found, expected in zip(derivatives(cross_entropy, logits, labels, vectors), exact):
        assert float(relative_errors(found, expected)) < 100 * torch.finfo(torch.float32).eps
    for found, expected in zip(exact, derivatives(usual, logits.double(), labels, vectors.double())):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)  # which loses digits in float64, too


def test_the_usual_form_loses_what_this_one_keeps():
    logits, labels = torch.tensor([[16.0, 0.5, 0.0]]), torch.tensor([0])
    expected = float(cross_entropy(logits.double(), labels))
    assert float(cross_entropy(logits, labels)) == pytest.approx(expected, rel=1e-6)
    assert float(usual(logits, labels)) != pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_class_equal_logits_and_margins_without_end(dtype):
    vectors = torch.ones(1, 1, dtype=dtype)
    one = derivatives(cross_entropy, torch.full((1, 1), 3.0, dtype=dtype), torch.tensor([0]), vectors)
    assert [float(found) for found in one] == [0.0, 0.0, 0.0]
    logits = torch.tensor([[0.0, 0.0], [200.0, 0.0], [0.0, 1e30], [1.0, -torch.inf]], dtype=dtype)
    found = derivatives(cross_entropy, logits, torch.tensor([0, 0, 0, 0]), logits.clamp(-1, 1))
    assert all(bool(part.isfinite().all()) for part in found)
    assert found[0].tolist() == pytest.approx(
        [0.6931471805599453, float(torch.tensor(-200.0, dtype=dtype).exp()), 1e30, 0.0], rel=1e-6
    )
    torch.testing.assert_close(found[1][0], torch.tensor([-0.5, 0.5]).double())
    assert found[2][0].tolist() == [0.0, 0.0]  # of a vector (0, 0)


def test_all_surprises_sum_to_one_and_half_precision_is_widened():
    logits, _, _ = drawn(10, 0.0)
    assert torch.allclose((-surprises(logits)).exp().sum(1), torch.ones(8))
    torch.testing.assert_close(surprises(logits.T, 0).T, surprises(logits))
    for narrow in (torch.float16, torch.bfloat16):
        assert surprises(logits.to(narrow)).dtype == torch.float32


def test_forward_mode_and_vmap_agree():
    load_forward_mode()
    logits, labels, vectors = (part.double() if part.is_floating_point() else part for part in drawn(4, 3.0))
    _, gradients, products = derivatives(cross_entropy, logits, labels, vectors)

    def along(z):
        return torch.func.jvp(lambda p: cross_entropy(p, labels), (z,), (vectors,))[1]

    slopes, curvatures = torch.func.jvp(along, (logits,), (vectors,))
    torch.testing.assert_close(slopes, (gradients * vectors).sum(1))
    torch.testing.assert_close(curvatures, (products * vectors).sum(1))
    mapped = torch.func.vmap(lambda z, y: cross_entropy(z[None], y[None])[0])(logits, labels)
    torch.testing.assert_close(mapped, cross_entropy(logits, labels))
