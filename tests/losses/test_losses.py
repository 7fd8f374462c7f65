"""Losses against published constants, a NumPy transcription in float64, and the identities between them."""

import math

import numpy as np
import pytest
import torch

from landscape.errors import LandscapeError
from landscape.losses import COSINE_LOSSES, LOSSES, Reweighting, build_loss, class_balanced_weights
from landscape.randomness import stream

CIFAR10 = (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
CIFAR100 = tuple(int(500 * 0.01 ** (c / 99)) for c in range(100))


@pytest.fixture
def batch():
    """Logits (32, 10) in [-1, 1], so that they may be cosines, and labels (32,)."""
    generator = stream(0, "test/losses")
    logits = torch.rand(32, 10, generator=generator, dtype=torch.float64) * 2 - 1
    return logits, torch.randint(0, 10, (32,), generator=generator)


def assert_rounds_to(values, expected, digits=3):
    """Compare with numbers printed to so many digits."""
    np.testing.assert_allclose(np.asarray(values), np.asarray(expected), rtol=0, atol=0.5000001 * 10**-digits)


# --- published constants


def test_log_prior():
    expected = [-0.909, -1.421, -1.933, -2.444, -2.957, -3.468, -3.979, -4.491, -5.007, -5.514]
    assert_rounds_to(build_loss("logit-adjusted", CIFAR10).shifts, expected)


def test_ldam_margins():
    expected = [0.158, 0.180, 0.204, 0.232, 0.264, 0.300, 0.341, 0.387, 0.440, 0.500]
    assert_rounds_to(build_loss("ldam", CIFAR10).margins, expected)
    margins = build_loss("ldam", CIFAR100).margins
    assert_rounds_to(margins[[0, 50, 99]], [0.1581, 0.2841, 0.5], digits=4)
    assert float(build_loss("ldam", CIFAR10, max_margin=0.3).margins.max()) == pytest.approx(0.3)


def test_class_balanced_weights():
    expected = [0.051, 0.077, 0.121, 0.195, 0.319, 0.525, 0.868, 1.443, 2.409, 3.993]
    weights = class_balanced_weights(CIFAR10)
    assert weights.dtype == torch.float64
    assert_rounds_to(weights, expected)
    assert float(weights.sum()) == pytest.approx(10, rel=1e-14)
    assert_rounds_to(class_balanced_weights(CIFAR100)[[0, 50, 99]], [0.0449, 0.4571, 4.3783], digits=4)
    assert_rounds_to(class_balanced_weights(CIFAR100, 0.9998)[[0, 50, 99]], [0.0459, 0.4576, 4.3746], digits=4)
    assert class_balanced_weights(CIFAR10, 0.0).tolist() == [1.0] * 10


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [
        (0.15, [1, 1.080, 1.166, 1.259, 1.360, 1.468, 1.585, 1.712, 1.849, 1.995]),
        (0.05, [1, 1.026, 1.053, 1.080, 1.108, 1.136, 1.166, 1.196, 1.227, 1.259]),
        (0.3, [1, 1.166, 1.360, 1.585, 1.849, 2.155, 2.512, 2.929, 3.420, 3.981]),
        (0.2, [1, 1.108, 1.227, 1.359, 1.506, 1.668, 1.848, 2.047, 2.270, 2.512]),
    ],
)
def test_vs_temperatures(gamma, expected):
    assert_rounds_to(build_loss("vs", CIFAR10, gamma=gamma).temperatures, expected)


@pytest.mark.parametrize(
    ("tau", "expected"),
    [
        (1.25, [-1.136, -1.776, -2.416, -3.055, -3.696, -4.334, -4.974, -5.614, -6.259, -6.892]),
        (0.75, [-0.682, -1.065, -1.449, -1.833, -2.218, -2.601, -2.984, -3.369, -3.755, -4.135]),
    ],
)
def test_vs_shifts(tau, expected):
    assert_rounds_to(build_loss("vs", CIFAR10, tau=tau).shifts, expected)


def test_gcl_clouds():
    expected = [0, 0.111, 0.222, 0.333, 0.445, 0.556, 0.667, 0.778, 0.890, 1]
    assert_rounds_to(build_loss("gcl", CIFAR10).clouds, expected)


# --- an independent transcription


def numpy_cross_entropy(z, y):
    z = z - z.max(axis=1, keepdims=True)
    return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]


def numpy_focal(z, y, n, gamma=1.0):
    p = np.exp(z[np.arange(len(y)), y]) / np.exp(z).sum(axis=1)
    return -((1 - p) ** gamma) * np.log(p)


def numpy_ldam(z, y, n, max_margin=0.5, scale=30.0):
    m = 1 / np.sqrt(np.sqrt(n))
    m = m * (max_margin / m.max())
    z = z.copy()
    for i, c in enumerate(y):
        z[i, c] -= m[c]
    return numpy_cross_entropy(scale * z, y)


def numpy_vs(z, y, n, gamma=0.3, tau=1.0):
    delta = n**-gamma / (n**-gamma).min()
    return numpy_cross_entropy(z / delta + tau * np.log(n / n.sum()), y)


def numpy_gcl(z, y, n, scale=30.0, margin=0.0, noise_mul=0.5, noise=0.0):
    m = np.log(n.max()) - np.log(n)
    z = z - noise_mul * np.abs(noise) * m / m.max()
    return numpy_cross_entropy(scale * (z - margin * np.eye(len(n))[y]), y)


TRANSCRIPTIONS = {
    "ce": lambda z, y, n: numpy_cross_entropy(z, y),
    "focal": numpy_focal,
    "ldam": numpy_ldam,
    "balanced-softmax": lambda z, y, n: numpy_cross_entropy(z + np.log(n), y),
    "logit-adjusted": lambda z, y, n, tau=1.0: numpy_cross_entropy(z + tau * np.log(n / n.sum()), y),
    "vs": numpy_vs,
    "gcl": numpy_gcl,
}
OPTIONS = [
    *[(name, {}) for name in LOSSES],
    ("focal", {"gamma": 2.5}),
    ("ldam", {"max_margin": 0.3, "scale": 10.0}),
    ("logit-adjusted", {"tau": 0.75}),
    ("vs", {"gamma": 0.05, "tau": 0.75}),
    ("gcl", {"scale": 25.0, "margin": 0.1, "noise_mul": 1.0}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_values_and_gradients_match_the_transcription(batch, name, options):
    logits, labels = batch
    z, y, n = logits.numpy(), labels.numpy(), np.array(CIFAR10, float)
    loss = build_loss(name, CIFAR10, **options).eval()
    values = loss(logits.requires_grad_(), labels)
    assert (values.shape, values.dtype) == ((32,), torch.float64)
    np.testing.assert_allclose(values.detach().numpy(), TRANSCRIPTIONS[name](z, y, n, **options), rtol=1e-11)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    step = 1e-5  # central differences: error about step^2 * scale^3
    for c in (0, 9):
        shift = step * np.eye(10)[c]
        up, down = (TRANSCRIPTIONS[name](z + s * shift, y, n, **options) for s in (1, -1))
        np.testing.assert_allclose(gradient[:, c].numpy(), (up - down) / (2 * step), atol=1e-5)


def test_gcl_noise_matches_the_transcription(batch):
    logits, labels = batch
    loss = build_loss("gcl", CIFAR10, margin=0.1)
    loss.generator = stream(0, "noise")
    noise = torch.randn(32, 10, generator=stream(0, "noise"), dtype=torch.float64).numpy() / 3
    expected = numpy_gcl(logits.numpy(), labels.numpy(), np.array(CIFAR10, float), margin=0.1, noise=noise.clip(-1, 1))
    np.testing.assert_allclose(loss(logits, labels).numpy(), expected, rtol=1e-12)


def test_gcl_noise_has_the_published_spread():
    loss = build_loss("gcl", CIFAR10)
    loss.generator = stream(0, "spread")
    u = loss._noise(torch.zeros(100_000, 10, dtype=torch.float64))
    assert 0 <= float(u.min()) <= float(u.max()) == 1
    # u^2 of a Gaussian clipped at 3 sigma: std .3325 (a fourth moment of 3 bounds the sampling error)
    assert float((u**2).mean().sqrt()) == pytest.approx(0.3325, abs=5 * 0.3325 * math.sqrt(0.5 / 1e6))


# --- identities


@pytest.mark.parametrize(
    ("first", "first_options", "second", "second_options", "scale"),
    [
        ("balanced-softmax", {}, "logit-adjusted", {}, 1),
        ("logit-adjusted", {"tau": 0.0}, "ce", {}, 1),
        ("vs", {"gamma": 0.0, "tau": 0.75}, "logit-adjusted", {"tau": 0.75}, 1),
        ("vs", {"gamma": 0.0, "tau": 0.0}, "ce", {}, 1),
        ("ldam", {"max_margin": 0.0}, "ce", {}, 30),
        ("gcl", {"noise_mul": 0.0}, "ce", {}, 30),
        ("focal", {"gamma": 0.0}, "ce", {}, 1),
    ],
)
def test_special_cases(batch, first, first_options, second, second_options, scale):
    logits, labels = batch
    a = build_loss(first, CIFAR10, **first_options)(logits, labels)
    b = build_loss(second, CIFAR10, **second_options)(scale * logits, labels)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_vs_without_shift_is_class_dependent_temperatures(batch):
    logits, labels = batch
    loss = build_loss("vs", CIFAR10, tau=0.0)
    divided = logits / torch.tensor([(5000 / n) ** 0.3 for n in CIFAR10], dtype=torch.float64)
    torch.testing.assert_close(loss(logits, labels), build_loss("ce", CIFAR10)(divided, labels))


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("ce", "focal")])
def test_equal_counts_leave_only_a_scale(batch, name):
    logits, labels = batch
    loss = build_loss(name, [7] * 10, **({"max_margin": 0.0} if name == "ldam" else {})).eval()
    scale = 30 if name in COSINE_LOSSES else 1
    torch.testing.assert_close(loss(logits, labels), build_loss("ce", [7] * 10)(scale * logits, labels))


@pytest.mark.parametrize("name", LOSSES)
def test_evaluation_is_deterministic_and_draws_nothing(batch, name):
    loss = build_loss(name, CIFAR10).eval()
    before = torch.get_rng_state()
    first, second = loss(*batch), loss(*batch)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_gcl_is_noisy_in_training_only(batch):
    loss = build_loss("gcl", CIFAR10)
    with pytest.raises(LandscapeError, match=r"gcl draws noise in training mode: assign loss\.generator"):
        loss(*batch)
    loss.generator = stream(0, "noise")
    before = torch.get_rng_state()
    first, second = loss(*batch), loss(*batch)
    loss.generator = stream(0, "noise")
    assert torch.equal(loss(*batch), first)
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_result_follows_the_logits(batch, name, dtype):
    logits, labels = batch
    values = build_loss(name, CIFAR10).eval()(logits.to(dtype), labels)
    assert (values.dtype, values.shape) == (dtype, (32,))
    tolerance = 2e-4 if dtype == torch.float32 else 1e-12  # logits of up to 30 * 1.5 in single precision
    torch.testing.assert_close(
        values.double(), build_loss(name, CIFAR10).eval()(*batch), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_second_derivatives_stay_finite_at_saturation(name, gamma):
    logits = torch.tensor([[800.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = build_loss(name, [9, 3, 1], **({"gamma": gamma} if name == "focal" else {})).eval()
    hessian = torch.autograd.functional.hessian(lambda z: loss(z, torch.tensor([0, 1])).sum(), logits)
    assert hessian.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_hessian_is_that_of_the_transcription(name):
    generator = stream(0, "test/hessian")
    z = torch.rand(1, 10, generator=generator, dtype=torch.float64) * 0.2
    loss = build_loss(name, CIFAR10).eval()
    hessian = torch.autograd.functional.hessian(lambda x: loss(x, torch.tensor([4])).sum(), z)[0, :, 0]
    n, step = np.array(CIFAR10, float), 1e-4
    value = TRANSCRIPTIONS[name]
    for c in (0, 4, 9):
        shift = step * np.eye(10)[c]
        ends = [value(z.numpy() + s * shift, np.array([4]), n)[0] for s in (1, 0, -1)]
        difference = (ends[0] - 2 * ends[1] + ends[2]) / step**2
        # fourth derivative up to 30^4, so error up to 30^4 step^2 / 12; rounding 1e-15 * 30 / step^2
        assert float(hessian[c, c]) == pytest.approx(difference, abs=1e-3, rel=1e-4)


# --- re-weighting


@pytest.mark.parametrize(("kind", "epochs"), [("none", {}), ("cb", {0, 4, 5, 9}), ("drw", {5, 9})])
def test_reweighting_starts_where_it_should(kind, epochs):
    reweighting = Reweighting(kind, CIFAR10, start_epoch=5)
    for epoch in (0, 4, 5, 9):
        weights = reweighting.weights(epoch)
        assert (weights is None) == (epoch not in epochs)
        assert weights is None or torch.equal(weights, class_balanced_weights(CIFAR10))


def test_reweighting_defaults_are_the_published_ones():
    reweighting = Reweighting("drw", CIFAR10)
    assert reweighting.weights(159) is None
    assert reweighting.weights(160) is reweighting.class_weights
    weights = Reweighting("cb", CIFAR10, beta=0.9998).weights(0)
    assert torch.equal(weights, class_balanced_weights(CIFAR10, 0.9998))


def test_reweighted_mean_is_the_weighted_mean(batch):
    logits, labels = batch
    reweighting = Reweighting("cb", CIFAR10)
    losses = reweighting(build_loss("ce", CIFAR10)(logits, labels), labels, 0)
    expected = torch.nn.functional.cross_entropy(logits, labels, weight=class_balanced_weights(CIFAR10))
    torch.testing.assert_close(losses.mean(), expected, rtol=1e-13, atol=0)
    plain = torch.rand(32)
    assert Reweighting("none", CIFAR10)(plain, labels, 3) is plain
    assert reweighting(plain, labels, 0).dtype == torch.float32


def test_weights_cancel_in_a_batch_of_one_class(batch):
    logits, _ = batch
    labels = torch.full((32,), 9)
    losses = build_loss("ce", CIFAR10)(logits, labels)
    torch.testing.assert_close(Reweighting("cb", CIFAR10)(losses, labels, 0), losses, rtol=1e-14, atol=0)


# --- bad input


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ldm", {}, "unknown loss 'ldm': did you mean 'ldam'"),
        ("vs", {"gama": 1}, "unknown option of loss 'vs' 'gama': did you mean 'gamma'"),
        ("ce", {"tau": 1}, r"unknown option of loss 'ce' 'tau'.*\(none\)"),
        ("ldam", {"scale": 0}, "scale must be a finite number above 0, got 0"),
        ("ldam", {"max_margin": -0.5}, "max_margin must be a finite number of at least 0, got -0.5"),
        ("focal", {"gamma": -1}, "gamma must be a finite number of at least 0, got -1"),
        ("logit-adjusted", {"tau": float("nan")}, "tau must be a finite number, got nan"),
        ("vs", {"tau": "one"}, "tau must be a finite number, got one"),
        ("gcl", {"noise_mul": -1}, "noise_mul must be a finite number of at least 0, got -1"),
    ],
)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(LandscapeError, match=message):
        build_loss(name, CIFAR10, **options)


@pytest.mark.parametrize("name", LOSSES)
def test_bad_counts_are_refused(name):
    with pytest.raises(LandscapeError, match=r"class_counts must be at least \d, got -1 for class 1"):
        build_loss(name, [3, -1, 2])
    with pytest.raises(LandscapeError, match=r"one number per class, got shape \(1, 2\)"):
        build_loss(name, torch.ones(1, 2))
    if name in ("ce", "focal"):
        build_loss(name, [3, 0])
    else:
        with pytest.raises(LandscapeError, match="class_counts must be at least 1, got 0 for class 1"):
            build_loss(name, [3, 0])


@pytest.mark.parametrize("name", LOSSES)
def test_logits_of_another_width_are_refused(name):
    loss = build_loss(name, CIFAR10).eval()
    with pytest.raises(LandscapeError, match=r"for 10 classes: expected logits \(B, 10\), got \(4, 10, 1\)"):
        loss(torch.zeros(4, 10, 1), torch.zeros(4, dtype=torch.int64))
    # one column would broadcast against the class constants
    with pytest.raises(LandscapeError, match=r"got \(4, 1\)"):
        loss(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))


def test_bad_reweighting_is_refused():
    with pytest.raises(LandscapeError, match="unknown re-weighting 'dwr': did you mean 'drw'"):
        Reweighting("dwr", CIFAR10)
    with pytest.raises(LandscapeError, match="start_epoch must be at least 0, got -1"):
        Reweighting("drw", CIFAR10, start_epoch=-1)
    for beta in (1.0, -0.1):
        with pytest.raises(LandscapeError, match=f"beta must be at least 0 and below 1, got {beta}"):
            class_balanced_weights(CIFAR10, beta)


@pytest.mark.parametrize("name", LOSSES)
def test_constants_are_buffers_that_move_with_the_module(name):
    loss = build_loss(name, CIFAR10)
    assert not list(loss.parameters())
    assert all(buffer.dtype == torch.float64 for buffer in loss.buffers())
    assert all(buffer.device.type == "meta" for buffer in loss.to("meta").buffers())
