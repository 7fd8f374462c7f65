"""Classes of one image, at any alignment of the operands: rounding is no fault, and noise of 1e-6 is."""

import numpy as np
import pytest
import torch
from alignment import ShiftedAllocations
from torch import nn

from landscape import ModelRisk, measure_spectrum
from landscape.errors import LandscapeError
from landscape.spectrum import SpectrumOptions

COUNTS = (20, 6, 3, 1, 1)
LABELS = torch.tensor([c for c, count in enumerate(COUNTS) for _ in range(count)])


class Pooled(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class Attended(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.attend, self.head = (
            nn.Linear(8, 8),
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.Linear(8, 5),
        )

    def forward(self, x):
        tokens = self.embed(x.flatten(2).reshape(len(x), 16, 8))
        return self.head(self.attend(tokens, tokens, tokens, need_weights=False)[0].mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell, self.head = kind(32, 4, batch_first=True), nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.cell(x.reshape(len(x), 4, 32))[0][:, -1])


class Residual(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))

    def forward(self, x):
        return torch.relu(x + self.inner(x))


def conv(*layers):
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *layers, Pooled(), nn.Linear(4, 5))


def mlp(*layers, width=16):
    return nn.Sequential(nn.Flatten(), nn.Linear(128, width), *layers, nn.Linear(width, 5))


ARCHITECTURES = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 5)),
    "mlp tanh": lambda: mlp(nn.Tanh()),
    "mlp relu": lambda: mlp(nn.ReLU(), nn.Linear(16, 16), nn.ReLU()),
    "mlp gelu": lambda: mlp(nn.GELU()),
    "mlp silu": lambda: mlp(nn.SiLU()),
    "mlp softplus": lambda: mlp(nn.Softplus()),
    "mlp layer norm": lambda: mlp(nn.LayerNorm(16), nn.GELU()),
    "mlp batch norm": lambda: mlp(nn.BatchNorm1d(16), nn.ReLU()),
    "mlp dropout": lambda: mlp(nn.ReLU(), nn.Dropout(0.5)),
    "mlp odd width": lambda: mlp(nn.ReLU(), width=13),
    "conv relu": lambda: conv(nn.ReLU()),
    "conv batch norm": lambda: conv(nn.BatchNorm2d(4), nn.ReLU()),
    "conv group norm": lambda: conv(nn.GroupNorm(2, 4), nn.ReLU()),
    "conv depthwise": lambda: conv(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.ReLU(), nn.Conv2d(4, 4, 1)),
    "conv strided": lambda: conv(nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.Hardswish()),
    "conv pooled": lambda: conv(nn.ReLU(), nn.MaxPool2d(2)),
    "residual": lambda: conv(Residual(nn.BatchNorm2d(4))),
    "attention": Attended,
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
}


def inputs(dtype):
    return torch.randn(len(LABELS), 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def built(name, dtype):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ARCHITECTURES[name]().to(dtype)


KINDS = ("mlp relu", "mlp layer norm", "conv depthwise", "residual", "attention", "lstm")  # in float64 too


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in ARCHITECTURES), *((name, torch.float64) for name in KINDS)],
)
def test_a_class_of_one_image_is_measured_at_any_alignment(name, dtype):
    steps = {0: 9, 1: 14, 2: 30}[list(ARCHITECTURES).index(name) % 3]
    options = SpectrumOptions(num_probes=1, num_steps=2, max_steps=steps, certify="own", context=False, num_bootstrap=0)
    with ShiftedAllocations("turns"):
        risk = ModelRisk(built(name, dtype), (inputs(dtype), LABELS))
        result = measure_spectrum(risk, [0, 3, 4, "all"], options=options)
    assert np.isfinite(result.lambda_max).all()


@pytest.mark.parametrize("shift", [16, 32])
def test_shifted_allocations_move_the_last_bits_only(shift):
    options = SpectrumOptions(num_probes=1, num_steps=2, max_steps=30, context=False, num_bootstrap=0)
    data = (inputs(torch.float32), LABELS)
    plain = measure_spectrum(ModelRisk(built("mlp tanh", torch.float32), data), [3], options=options)
    with ShiftedAllocations(shift):
        moved = measure_spectrum(ModelRisk(built("mlp tanh", torch.float32), data), [3], options=options)
    for end in ("lambda_min", "lambda_max"):
        np.testing.assert_allclose(moved[end], plain[end], rtol=1e-5, atol=1e-6)


class Noisy(nn.Module):
    def __init__(self, layer, size):
        super().__init__()
        self.layer, self.size = layer, size

    def forward(self, x):
        out = self.layer(x)
        return out * (1 + self.size * torch.randn_like(out))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x * (1 + 1e-6 * self.calls)


class Dropped(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.1, training=True)


class Cropped(nn.Module):
    def forward(self, x):
        shift = int(torch.randint(1, 4, ()))
        return x.roll(shift, -1)


NOISY = {
    "dropout": (lambda: mlp(nn.Tanh(), Dropped()), r"differ by .* first in layer '3': every call draws"),
    "crop": (lambda: nn.Sequential(Cropped(), mlp(nn.Tanh())), r"differ by .* first in layer '0': every call draws"),
    "noise of 1e-6": (lambda: mlp(Noisy(nn.Tanh(), 1e-6)), r"differ by .* first in layer '2': every call draws"),
    "noise of 1e-6 on the logits": (
        lambda: Noisy(mlp(nn.Tanh()), 1e-6),
        r"the logits of the same inputs differ by .* every call draws",
    ),
    "a counter": (lambda: mlp(Counting(), nn.Tanh()), r"first in layer '2': the buffer '2.calls' changes"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NOISY)
def test_what_draws_is_refused_and_named(name, dtype):
    make, words = NOISY[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().to(dtype)
        with pytest.raises(LandscapeError, match=words):
            measure_spectrum(ModelRisk(model, (inputs(dtype), LABELS)), [0, 4])
