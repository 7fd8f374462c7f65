"""Losses against published constants, a NumPy transcription in float64, and the identities between them."""

import numpy as np
import pytest
import torch
from loss_cases import CIFAR10, CIFAR100, TRANSCRIPTIONS, assert_rounds_to

from landscape.errors import LandscapeError
from landscape.losses import LOSSES, PUBLISHED_LOSSES, build_loss, wants_cosines
from landscape.randomness import stream

# --- published constants


# As methods.md and the released code state them, once more: a slip in the table would change every figure that uses it.
AS_PUBLISHED = {
    "focal": [(1.0, True, 0.9999)],
    "ldam": [(0.5, 30.0), (0.3, 30.0), (0.5, 30.0, True)],
    "vs": [(0.3, 1.0), (0.2, 1.2), (0.15, 1.25), (0.05, 0.75), (0.05, 0.75)],
    "logit-adjusted": [(0.75,)],
    "gcl": [(30.0, 0.0, 0.5, 0.0), (20.0, 0.1, 0.5, 1.0), (25.0, 0.1, 1.0, 0.0)],
    "gcl-angular": [(30.0, 0.5, 0.1)],
    "asymmetric-gcl": [(20.0, 0.1, 0.5, 0.0, 4.0, 0.1), (20.0, 0.1, 0.5, 0.5, 8.0, 0.1)],
    "label-aware": [
        (0.3, 0.0),
        (0.2, 0.0),
        (0.1, 0.0),
        (0.4, 0.1),
        (0.3, 0.0),
        (0.2, 0.0),
        (0.3, 0.0),
        (0.3, 0.0),
        (0.4, 0.1),
    ],
}


def test_published_options_are_those_of_the_sources():
    found: dict = {}
    for loss, options in PUBLISHED_LOSSES.values():
        found.setdefault(loss, []).append(tuple(options.values()))
    assert found == AS_PUBLISHED


def test_log_prior():
    expected = [-0.909, -1.421, -1.933, -2.444, -2.957, -3.468, -3.979, -4.491, -5.007, -5.514]
    assert_rounds_to(build_loss("logit-adjusted", CIFAR10).shifts, expected)


def test_ldam_margins():
    expected = [0.158, 0.180, 0.204, 0.232, 0.264, 0.300, 0.341, 0.387, 0.440, 0.500]
    assert_rounds_to(build_loss("ldam", CIFAR10).margins, expected)
    margins = build_loss("ldam", CIFAR100).margins
    assert_rounds_to(margins[[0, 50, 99]], [0.1581, 0.2841, 0.5], digits=4)
    assert float(build_loss("ldam", CIFAR10, max_margin=0.3).margins.max()) == pytest.approx(0.3)


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
    for name in ("vs", "cdt"):
        assert_rounds_to(build_loss(name, CIFAR10, gamma=gamma).temperatures, expected)


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
    for name in ("gcl", "gcl-angular", "asymmetric-gcl"):
        assert_rounds_to(build_loss(name, CIFAR10).clouds, expected)


def test_label_aware_smoothing():
    expected = [0.3000, 0.2414, 0.1578, 0.0960, 0.0563, 0.0320, 0.0173, 0.0085, 0.0031, 0]
    assert_rounds_to(build_loss("label-aware", CIFAR10).smoothing, expected, digits=4)


# --- an independent transcription


OPTIONS = [
    *[(name, {}) for name in LOSSES],
    *PUBLISHED_LOSSES.values(),
    ("focal", {"gamma": 2.5}),
    ("focal", {"gamma": 2.5, "weights_inside": True, "beta": 0.9998}),
    ("label-aware", {"smooth_head": 0.4, "smooth_tail": 0.1, "spread": "others"}),
    ("label-aware", {"smooth_head": 0.4, "smooth_tail": 0.1, "shape": "linear"}),
    ("label-aware", {"smooth_head": 0.4, "smooth_tail": 0.1, "shape": "convex", "spread": "others"}),
    ("label-aware", {"smooth_head": 0.4, "smooth_tail": 0.1, "shape": "exponential", "power": 2.5}),
    ("ldam", {"max_margin": 0.3, "scale": 10.0}),
    ("ldam", {"max_margin": 0.3, "scale": 10.0, "logits_scaled": True}),
    ("cdt", {"gamma": 0.15}),
    ("logit-adjusted", {"tau": 0.75}),
    ("vs", {"gamma": 0.05, "tau": 0.75}),
    ("gcl", {"margin": 0.1, "gamma": 2.5}),
    ("gcl-angular", {"epsilon": 0.5, "margin": 0.2, "easy_margin": True, "gamma": 1.5}),
    ("asymmetric-gcl", {"gamma_pos": 1.5, "gamma_neg": 1.0, "smoothing": 0.3}),
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
        ("gcl-angular", {"epsilon": 0.0, "margin": 0.0}, "ce", {}, 30),
        ("focal", {"gamma": 0.0}, "ce", {}, 1),
        ("label-aware", {"smooth_head": 0.0}, "ce", {}, 1),
        ("label-aware", {"smooth_head": 0.0, "spread": "others"}, "ce", {}, 1),
        ("cdt", {"gamma": 0.0}, "ce", {}, 1),
        ("cdt", {"gamma": 0.15}, "vs", {"gamma": 0.15, "tau": 0.0}, 1),
        ("ldam", {}, "ldam", {"logits_scaled": True}, 30),
        (
            "asymmetric-gcl",
            {"noise_mul": 0.0, "gamma_neg": 0.0, "margin": 0.0, "smoothing": 0.3},
            "label-aware",
            {"smooth_head": 0.3, "smooth_tail": 0.3},
            20,
        ),
        (
            "asymmetric-gcl",
            {"noise_mul": 0.0, "gamma_pos": 2.0, "margin": 0.0, "smoothing": 0.0},
            "focal",
            {"gamma": 2.0},
            20,
        ),
    ],
)
def test_special_cases(batch, first, first_options, second, second_options, scale):
    logits, labels = batch
    a = build_loss(first, CIFAR10, **first_options)(logits, labels)
    b = build_loss(second, CIFAR10, **second_options)(scale * logits, labels)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", ["concave", "linear", "convex"])
def test_equal_smoothing_is_the_label_smoothing_of_torch(batch, shape):
    logits, labels = batch
    loss = build_loss("label-aware", CIFAR10, smooth_head=0.3, smooth_tail=0.3, shape=shape)
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.3, reduction="none")
    torch.testing.assert_close(loss(logits, labels), expected)


def test_smoothing_runs_from_the_tail_to_the_head_and_its_shapes_are_ordered():
    shapes = [{"shape": "convex"}, {"shape": "linear"}, {"shape": "concave"}]
    curves = [build_loss("label-aware", CIFAR10, smooth_head=0.4, smooth_tail=0.1, **s).smoothing for s in shapes]
    for curve in curves:
        torch.testing.assert_close(curve[[0, 9]], torch.tensor([0.4, 0.1], dtype=torch.float64))
        assert (curve.diff() < 0).all()
    assert (curves[0][1:-1] < curves[1][1:-1]).all()
    assert (curves[1][1:-1] < curves[2][1:-1]).all()
    linear = build_loss("label-aware", CIFAR10, smooth_head=0.4, smooth_tail=0.1, shape="exponential", power=1.0)
    torch.testing.assert_close(linear.smoothing, curves[1])
    balanced = build_loss("label-aware", [7, 7], smooth_head=0.4, smooth_tail=0.1)
    assert balanced.smoothing.tolist() == pytest.approx([0.4, 0.4], rel=1e-15)


def test_class_dependent_temperatures(batch):
    logits, labels = batch
    loss = build_loss("cdt", CIFAR10)
    divided = logits / torch.tensor([(5000 / n) ** 0.3 for n in CIFAR10], dtype=torch.float64)
    torch.testing.assert_close(loss(logits, labels), build_loss("ce", CIFAR10)(divided, labels))


# What is left of a loss without class differences, margins, smoothing and focus: cross-entropy at this scale.
PLAIN = {
    "focal": {"gamma": 0.0},
    "label-aware": {"smooth_head": 0.0},
    "ldam": {"max_margin": 0.0},
    "gcl-angular": {"margin": 0.0},
    "asymmetric-gcl": {"margin": 0.0, "smoothing": 0.0},
}


@pytest.mark.parametrize("name", LOSSES)
def test_equal_counts_leave_only_a_scale(batch, name):
    logits, labels = batch
    loss = build_loss(name, [7] * 10, **PLAIN.get(name, {})).eval()
    scale = getattr(loss, "scale", 1)
    torch.testing.assert_close(loss(logits, labels), build_loss("ce", [7] * 10)(scale * logits, labels))


def test_only_scaled_losses_want_cosines():
    for name in LOSSES:
        loss = build_loss(name, CIFAR10)
        assert wants_cosines(name) is hasattr(loss, "scale")
    assert not wants_cosines("ldam", logits_scaled=True)


@pytest.mark.parametrize("name", LOSSES)
def test_evaluation_is_deterministic_and_draws_nothing(batch, name):
    loss = build_loss(name, CIFAR10).eval()
    before = torch.get_rng_state()
    first, second = loss(*batch), loss(*batch)
    assert torch.equal(first, second)
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
        ("focal", {"gamma": True}, "gamma must be a finite number of at least 0, got True"),
        ("logit-adjusted", {"tau": float("nan")}, "tau must be a finite number, got nan"),
        ("vs", {"tau": "one"}, "tau must be a finite number, got one"),
        ("gcl", {"noise_mul": -1}, "noise_mul must be a finite number of at least 0, got -1"),
        ("gcl", {"detach": "false"}, "detach must be true or false, got 'false'"),
        ("ldam", {"logits_scaled": 1}, "logits_scaled must be true or false, got 1"),
        (
            "label-aware",
            {"smooth_head": 1.5},
            "smooth_head must be a finite number of at least 0 and at most 1, got 1.5",
        ),
        ("label-aware", {"shape": "concav"}, "unknown shape of the smoothing 'concav': did you mean 'concave'"),
        ("label-aware", {"spread": "other"}, "unknown spread of the smoothing 'other': did you mean 'others'"),
        ("label-aware", {"shape": "exponential"}, "needed there, got None for 'exponential'"),
        ("label-aware", {"power": 2.0}, "power belongs to shape 'exponential'.*got 2.0 for 'concave'"),
        (
            "asymmetric-gcl",
            {"smoothing": -0.1},
            "smoothing must be a finite number of at least 0 and at most 1, got -0.1",
        ),
        ("gcl-angular", {"epsilon": -1}, "epsilon must be a finite number of at least 0, got -1"),
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


@pytest.mark.parametrize("name", LOSSES)
def test_constants_are_buffers_that_move_with_the_module(name):
    loss = build_loss(name, CIFAR10)
    assert not list(loss.parameters())
    assert all(buffer.dtype == torch.float64 for buffer in loss.buffers())
    assert all(buffer.device.type == "meta" for buffer in loss.to("meta").buffers())
