"""What a risk may not do (touch the caller's things), what it must refuse, and what it must be able to take."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from risk_cases import COUNTS, GROUPS, dense_hessian, digits, draw, smooth_mlp
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from landscape.data import Split
from landscape.errors import LandscapeError
from landscape.models import build_model
from landscape.risk import AnalyticRisk, ModelRisk, precise_arithmetic, proof

POOLED = torch.tensor([[n / sum(COUNTS) for n in COUNTS]], dtype=torch.float64)


def snapshot(model: nn.Module) -> dict[str, object]:
    """Return everything that a call could disturb, as comparable values."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "identity": {name: id(t) for name, t in tensors.items()},
        "values": {name: t.detach().clone().numpy().tobytes() for name, t in tensors.items()},
        "versions": {name: t._version for name, t in tensors.items()},
        "grads": {name: None if p.grad is None else p.grad.numpy().tobytes() for name, p in model.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": {name: m.training for name, m in model.named_modules()},
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": np.random.get_state()[1].tobytes() + bytes(str(np.random.get_state()[2]), "ascii"),  # noqa: NPY002
        "python": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic),
    }


def caller_model() -> nn.Sequential:
    """Return a model in an unusual state: training, a frozen layer, a gradient left over from training."""
    model = smooth_mlp()
    model.train()
    model[4].eval()
    model[2].weight.requires_grad_(False)
    model[5].weight.grad = torch.ones_like(model[5].weight)
    return model


CALLS = {
    "construct": lambda model, data: ModelRisk(model, data, groups=GROUPS),
    "construct on the head": lambda model, data: ModelRisk(model, data, params="head", dtype=torch.float32),
    "losses": lambda model, data: (r := ModelRisk(model, data)).losses(r.theta + 1),
    "evaluate": lambda model, data: (r := ModelRisk(model, data)).evaluate(r.theta, [1]),
    "gradients": lambda model, data: (r := ModelRisk(model, data)).gradients(r.theta + 1, POOLED),
    "hvps": lambda model, data: (r := ModelRisk(model, data)).hvps(r.theta, POOLED, r.theta[None]),
    "in_float64": lambda model, data: ModelRisk(model, data, dtype=torch.float32).in_float64(),
    "recalibrate": lambda model, data: (r := ModelRisk(model, data).with_batchnorm("recalibrate")).losses(r.theta + 1),
}


@pytest.mark.parametrize("call", list(CALLS))
def test_nothing_of_the_callers_changes(call):
    model, data = caller_model(), digits()
    before, inputs = snapshot(model), (data[0].clone(), data[1].clone())
    CALLS[call](model, data)
    assert snapshot(model) == before
    assert torch.equal(data[0], inputs[0])
    assert torch.equal(data[1], inputs[1])


class Noisy:
    """A loss that draws from every global generator and fails at a given call."""

    def __init__(self, fails_at: int) -> None:
        self.calls, self.fails_at = 0, fails_at

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        torch.rand(3), np.random.random(3), random.random()  # noqa: NPY002
        if self.calls == self.fails_at:
            raise ZeroDivisionError(f"call {self.calls}")
        return functional.cross_entropy(logits, labels, reduction="none")


@pytest.mark.parametrize("fails_at", [1, 2, 3, 6])
def test_nothing_of_the_callers_changes_when_the_loss_fails(fails_at):
    model = caller_model()
    before = snapshot(model)
    with pytest.raises(LandscapeError, match=rf"cannot be studied \(ZeroDivisionError: call {fails_at}\)") as caught:
        ModelRisk(model, digits(), loss=Noisy(fails_at))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert snapshot(model) == before


def test_a_failure_inside_a_product_leaves_the_settings_and_the_next_call_alone():
    class Failing(nn.Module):
        is_failing = False

        def forward(self, logits, labels):
            if Failing.is_failing:
                raise ZeroDivisionError("now")
            return functional.cross_entropy(logits, labels, reduction="none")

    model = caller_model()
    risk = ModelRisk(model, digits(), loss=Failing(), memory_budget=0)
    expected = risk.hvps(risk.theta, POOLED, risk.theta[None])
    before = snapshot(model)
    Failing.is_failing = True
    for call in (risk.losses, lambda t: risk.gradients(t, POOLED), lambda t: risk.hvps(t, POOLED, t[None])):
        with pytest.raises(ZeroDivisionError, match="now"):
            call(risk.theta)
    Failing.is_failing = False
    assert snapshot(model) == before
    assert torch.equal(risk.hvps(risk.theta, POOLED, risk.theta[None]), expected)


def test_later_changes_of_the_callers_model_do_not_reach_the_risk():
    model = smooth_mlp()
    risk = ModelRisk(model, digits())
    expected = risk.losses(risk.theta)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    assert torch.equal(risk.losses(risk.theta), expected)


def test_training_mode_is_handled():
    evaluated, trained = smooth_mlp().eval(), smooth_mlp().train()
    dropped = nn.Sequential(smooth_mlp().train(), nn.Dropout(0.9))
    expected = ModelRisk(evaluated, digits())
    for model in (trained, dropped):
        risk = ModelRisk(model, digits())
        assert torch.equal(risk.losses(risk.theta), expected.losses(expected.theta))


class Compiled(nn.Module):
    """What torch.compile returns, as far as anybody can see: a module around ``_orig_mod``."""

    def __init__(self, model):
        super().__init__()
        self._orig_mod = model

    def forward(self, x):
        raise AssertionError("a compiled forward has no second derivative")


@pytest.mark.parametrize(
    "wrap", [Compiled, nn.DataParallel, lambda m: nn.DataParallel(Compiled(m)), lambda m: Compiled(nn.DataParallel(m))]
)
def test_wrappers_are_taken_off(wrap):
    plain = ModelRisk(smooth_mlp(), digits())
    wrapped = ModelRisk(wrap(smooth_mlp()), digits())
    assert wrapped.layout.names == plain.layout.names
    assert torch.equal(wrapped.losses(wrapped.theta), plain.losses(plain.theta))


# ---- the caller's settings do not matter -------------------------------------------------------------------------


def reference() -> tuple[Tensor, Tensor, Tensor]:
    risk = ModelRisk(smooth_mlp(torch.float32), digits(dtype=torch.float32))
    vector = draw(1, len(risk.theta), name="v", dtype=torch.float32)
    return risk.losses(risk.theta), risk.gradients(risk.theta, POOLED), risk.hvps(risk.theta, POOLED, vector)


@pytest.mark.parametrize(
    "setting",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_gradient_and_autocast_modes_do_not_matter(setting):
    expected = reference()
    with setting():
        got = reference()
        analytic = AnalyticRisk(lambda x: (x @ x)[None], torch.ones(3))
        assert analytic.hvps(analytic.theta, torch.ones(1, 1), torch.ones(1, 3)).tolist() == [[2.0, 2.0, 2.0]]
        assert analytic.gradients(analytic.theta, torch.ones(1, 1)).tolist() == [[2.0, 2.0, 2.0]]
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


def precision_settings() -> list[object]:
    settings: list[object] = [
        switch.fp32_precision
        for switch in (
            torch.backends.cuda.matmul,
            torch.backends.cudnn.conv,
            torch.backends.cudnn.rnn,
            torch.backends.mkldnn.matmul,
            torch.backends.mkldnn.conv,
        )
    ]
    for read in (torch.get_float32_matmul_precision, lambda: torch.backends.cudnn.allow_tf32):
        try:
            settings.append(read())
        except RuntimeError:
            settings.append("mixed")
    return [*settings, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic]


def set_matmul_precision(value):
    torch.set_float32_matmul_precision(value)


SETTINGS = {
    "matmul precision medium": lambda: set_matmul_precision("medium"),
    "matmul precision high": lambda: set_matmul_precision("high"),
    "old TF32 switch": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "new TF32 switch": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "cudnn without TF32": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "cudnn benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
}


@pytest.fixture
def restored_precision():
    matmul = torch.get_float32_matmul_precision()
    yield
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = False
    torch.set_float32_matmul_precision(matmul)


@pytest.mark.usefixtures("restored_precision")
@pytest.mark.parametrize("name", list(SETTINGS))
def test_lowered_precision_is_overruled_and_put_back(name):
    expected = reference()
    SETTINGS[name]()
    before = precision_settings()
    got = reference()
    with precise_arithmetic():
        assert set(precision_settings()[:5]) == {"ieee"}
    assert precision_settings() == before
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


# ---- refusals ----------------------------------------------------------------------------------------------------

X, Y = digits()


class FunctionalDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = smooth_mlp()

    def forward(self, x):
        return functional.dropout(self.inner(x), 0.5, training=True)


class NoisyLoss(nn.Module):
    def forward(self, logits, labels):
        return functional.cross_entropy(logits + 0.1 * torch.randn_like(logits), labels, reduction="none")


def batch_statistics() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten())
    return nn.Sequential(*model, nn.Linear(72, 4)).double()


def spoilt(value: float) -> nn.Module:
    model = smooth_mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = value
        model[2].weight[1, 3] = value
    return model


def spoilt_buffer() -> nn.Module:
    model = smooth_mlp()
    model[3].running_var[1] = torch.inf
    return model


REFUSALS = {
    "dropout": (lambda: ModelRisk(FunctionalDropout(), (X, Y)), r"two evaluations of the loss .* differ by \d"),
    "noisy loss": (lambda: ModelRisk(smooth_mlp(), (X, Y), loss=NoisyLoss()), r"two evaluations .* a noisy loss"),
    "batch statistics": (lambda: ModelRisk(batch_statistics(), (X, Y)), r"depends on how .* batched \(by \d"),
    "scalar loss": (
        lambda: ModelRisk(smooth_mlp(), (X, Y), loss=nn.CrossEntropyLoss()),
        r"'CrossEntropyLoss': expected one value per example \(2,\), got \(\); use reduction='none'",
    ),
    "labels too large": (
        lambda: ModelRisk(smooth_mlp(), (X, Y + 1)),
        "labels run from 1 to 4, the model has 4 outputs",
    ),
    "negative label": (lambda: ModelRisk(smooth_mlp(), (X, Y - 1)), "labels are -1, as for ignored"),
    "float labels": (lambda: ModelRisk(smooth_mlp(), (X, Y.double())), r"labels \(44,\) torch.float64"),
    "label matrix": (lambda: ModelRisk(smooth_mlp(), (X, Y[:, None].expand(-1, 2))), r"labels \(44, 2\) torch.int64"),
    "too few labels": (lambda: ModelRisk(smooth_mlp(), (X, Y[:40])), r"labels \(40,\) .* inputs \(44, 1, 8, 8\)"),
    "no examples": (
        lambda: ModelRisk(smooth_mlp(), (X[:0], Y[:0])),
        "the data are empty: expected at least one example",
    ),
    "no batches": (lambda: ModelRisk(smooth_mlp(), iter(())), "the data are empty: expected at least one batch"),
    "not data": (lambda: ModelRisk(smooth_mlp(), 7), "iterable of batches, got int"),
    "NaN weights": (lambda: ModelRisk(spoilt(torch.nan), (X, Y)), "'2.weight' holds 2 NaN or infinite entries of 80"),
    "infinite weights": (lambda: ModelRisk(spoilt(-torch.inf), (X, Y)), "'2.weight' holds 2 NaN or infinite entries"),
    "infinite statistics": (lambda: ModelRisk(spoilt_buffer(), (X, Y)), "'3.running_var' holds 1 NaN or infinite"),
    "NaN inputs": (lambda: ModelRisk(smooth_mlp(), (X * torch.nan, Y)), "the loss 'ce' is not finite"),
    "one NaN image": (
        lambda: ModelRisk(smooth_mlp(), (torch.cat([X, X[:1] * torch.nan]), torch.cat([Y * 0, Y[:1] * 0 + 1]))),
        "the loss 'ce' is not finite",
    ),
    "wrong images": (lambda: ModelRisk(smooth_mlp(), (X[..., :6], Y)), r"inputs of shape \(1, 1, 8, 6\)"),
    "no logits": (
        lambda: ModelRisk(nn.Conv2d(1, 2, 3).double(), (X, Y)),
        r"logits \(batch, classes\) .* \(1, 2, 6, 6\)",
    ),
    "no parameters": (lambda: ModelRisk(nn.Flatten(), (X, Y)), "the model has no parameters"),
    "class names": (
        lambda: ModelRisk(smooth_mlp(), (X, Y), class_names=["a", "b"]),
        "the model has 4 outputs, the data set 2 classes",
    ),
    "groups": (
        lambda: ModelRisk(smooth_mlp(), (X, Y), groups={"tail": (2, 4)}),
        "group 'tail': class 4 does not exist",
    ),
    "loss name": (lambda: ModelRisk(smooth_mlp(), (X, Y), loss="focl"), "'focl': did you mean 'focal'"),
    "half precision": (lambda: ModelRisk(smooth_mlp().bfloat16(), (X, Y)), r"torch.bfloat16.*pass dtype=torch.float32"),
    "batchnorm policy": (
        lambda: ModelRisk(smooth_mlp(), (X, Y)).with_batchnorm("recalibrated"),
        "'recalibrated': did you mean 'recalibrate'",
    ),
    "parameters": (lambda: ModelRisk(smooth_mlp(), (X, Y), params="conv"), "'conv' matches none of the 6 parameters"),
}


@pytest.mark.parametrize("case", list(REFUSALS))
def test_refusals_name_the_offence(case):
    call, message = REFUSALS[case]
    with pytest.raises(LandscapeError, match=message):
        call()


def test_noise_smaller_than_the_loss_by_far_is_still_noise():
    """Frozen noise of relative size 1e-12 is refused, because on a CPU the bits must agree."""

    def loss(logits, labels):
        return functional.cross_entropy(logits, labels, reduction="none") + 1e-12 * torch.rand(len(labels))

    with pytest.raises(LandscapeError, match="two evaluations"):
        ModelRisk(smooth_mlp(), (X, Y), loss=loss)


# ---- what must work ----------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(8, 4, batch_first=True)
        self.out = nn.Linear(4, 4)

    def forward(self, x):
        return self.out(self.cell(x[:, 0])[0][:, -1])


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        rows = x[:, 0]
        return self.out(self.attention(rows, rows, rows, need_weights=False)[0].mean(1))


class DotProduct(nn.Module):
    def __init__(self):
        super().__init__()
        self.keys = nn.Linear(8, 6)
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        k = self.keys(x[:, 0])
        return self.out(functional.scaled_dot_product_attention(k, k, x[:, 0]).mean(1))


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, dropout=0.5, activation="gelu")
    return nn.Sequential(nn.Flatten(0, 1), layer, nn.Flatten(), nn.Linear(64, 4))


@pytest.mark.parametrize("build", [Recurrent, SelfAttention, DotProduct, transformer])
def test_recurrent_and_attention_networks(build):
    """Their fused kernels have no second derivative, or silently lack one; differences of gradients decide."""
    torch.manual_seed(0)
    model = build().double()
    risk = ModelRisk(model, (X, Y))
    logits = copy.deepcopy(model).eval()(X)
    losses = functional.cross_entropy(logits, Y, reduction="none").detach()
    assert float(POOLED[0] @ risk.losses(risk.theta)) == pytest.approx(float(losses.mean()), rel=1e-12)
    v = draw(1, len(risk.theta), name="v")
    v = v / v.norm()
    difference = (
        risk.gradients(risk.theta + 1e-5 * v[0], POOLED) - risk.gradients(risk.theta - 1e-5 * v[0], POOLED)
    ) / 2e-5
    product = risk.hvps(risk.theta, POOLED, v)
    assert (product - difference).norm() <= 1e-7 * max(float(product.norm()), 1.0)  # h^2 and eps / h
    assert (risk.gradients(risk.theta, POOLED) != 0).double().mean() > 0.9


def test_tied_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(64, 64, bias=False)
            self.b = nn.Linear(64, 64, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(torch.tanh(self.a(x.flatten(1))))[:, :4]

    torch.manual_seed(0)
    model = Tied().double()
    risk = ModelRisk(model, (X, Y))
    assert risk.layout.names == ("a.weight",)
    v = draw(1, 4096, name="v")
    v = v / v.norm()
    difference = (
        risk.gradients(risk.theta + 1e-5 * v[0], POOLED) - risk.gradients(risk.theta - 1e-5 * v[0], POOLED)
    ) / 2e-5
    assert (risk.hvps(risk.theta, POOLED, v) - difference).norm() <= 1e-7


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("name", ["mlp", "convnet", "resnet20"])
def test_our_networks(name, head):
    model = build_model(name, num_classes=4, in_channels=1, image_size=8, head=head)
    risk = ModelRisk(model, (X[::4].float(), Y[::4]))
    assert risk.layout.num_parameters == sum(p.numel() for p in model.parameters())
    dims = dict(zip(risk.layout.names, risk.layout.filter_dims))
    assert dims["linear.weight"] == (1 if head == "cosine" else 0)
    head_only = ModelRisk(model, (X[::4].float(), Y[::4]), params="head")
    assert all(name.startswith("linear.") for name in head_only.layout.names)


# ---- forms of data -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: [X, Y],
        lambda: (X.numpy(), Y.numpy()),
        lambda: (X, Y.int()),
        lambda: DataLoader(TensorDataset(X, Y), batch_size=7),
        lambda: ((X[i : i + 5], Y[i : i + 5]) for i in range(0, 44, 5)),
        lambda: [(X[:30], Y[:30]), (X[30:], Y[30:])],
        lambda: [(X[:30].numpy(), Y[:30].tolist()), (X[30:].numpy(), Y[30:].tolist())],
        lambda: Split(X, Y),
    ],
    ids=["list", "numpy", "int32", "loader", "generator", "two batches", "numpy batches", "split"],
)
def test_every_form_of_data_gives_the_same_numbers(make):
    expected = ModelRisk(smooth_mlp(), (X, Y))
    risk = ModelRisk(smooth_mlp(), make())
    assert torch.equal(risk.losses(risk.theta), expected.losses(expected.theta))
    vector = draw(1, len(risk.theta), name="v")
    assert torch.equal(risk.hvps(risk.theta, POOLED, vector), expected.hvps(expected.theta, POOLED, vector))


def test_a_transform_is_applied_chunk_by_chunk_in_the_dtype_of_the_analysis():
    stored = ((X + 1) * 8).round().to(torch.uint8)
    seen = []

    def transform(images, dtype):
        seen.append((len(images), dtype))
        return images.to(dtype) / 8 - 1

    risk = ModelRisk(smooth_mlp(), (stored, Y), transform=transform, chunk_size=10)
    plain = ModelRisk(smooth_mlp(), (X, Y), chunk_size=10)
    seen.clear()
    assert torch.equal(risk.losses(risk.theta), plain.losses(plain.theta))
    assert len(seen) == 5  # 44 examples in chunks of at most 10
    assert all(count <= 10 and dtype == torch.float64 for count, dtype in seen)


def test_token_numbers_stay_integers():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, 4)
            self.norm = nn.BatchNorm1d(4)
            self.out = nn.Linear(4, 3)

        def forward(self, x):
            return self.out(self.norm(self.table(x).mean(1)))

    words = torch.randint(0, 9, (12, 5), generator=torch.Generator().manual_seed(0))
    risk = ModelRisk(Words().double(), (words, torch.arange(12) % 3))
    assert risk.in_float64().losses(risk.theta).isfinite().all()
    assert risk.with_batchnorm("recalibrate").losses(risk.theta).isfinite().all()


def test_one_example_and_missing_classes():
    risk = ModelRisk(smooth_mlp(), (X[:1], Y[:1]))
    c = int(Y[0])
    assert risk.class_counts.tolist() == [int(k == c) for k in range(4)]
    assert risk.losses(risk.theta).isnan().sum() == 3
    lane = [float(k == c) for k in range(4)]
    vector = draw(1, len(risk.theta), name="v")
    exact = _hessian_of_one(c) @ vector[0]
    assert (risk.hvps(risk.theta, torch.tensor([lane]), vector)[0] - exact).norm() <= 1e-12 * exact.norm()
    # A weight on a class without examples adds nothing, not NaN.
    assert torch.equal(
        risk.hvps(risk.theta, torch.ones(1, 4), vector), risk.hvps(risk.theta, torch.tensor([lane]), vector)
    )


def _hessian_of_one(c: int) -> Tensor:
    images, labels = torch.cat([X[:1]] * 4), torch.arange(4)  # every class present, so that no count is zero
    return dense_hessian(smooth_mlp(), images, labels, [float(k == c) for k in range(4)])


def test_attributes_record_what_was_measured():
    risk = ModelRisk(smooth_mlp(), (X, Y), params="head", attributes={"dataset": "digits"})
    expected = {
        "objective": "ce",
        "dtype": "float64",
        "device": "cpu",
        "parameters": "head",
        "num_parameters": 24,
        "batchnorm": "frozen",
        "dataset": "digits",
    }
    assert risk.attributes == expected


def test_a_gradient_that_jumps_by_rounding_is_not_taken_for_mixing(monkeypatch):
    """In float32 rounding may switch a ReLU, so that another chunking moves the gradient; float64 decides."""
    honest = proof._evaluate

    def jumpy(few, weights, *, chunk_size=None):
        loss, gradient = honest(few, weights, chunk_size=chunk_size)
        return loss, gradient * 1.01 if chunk_size == 1 and few.dtype == torch.float32 else gradient

    monkeypatch.setattr(proof, "_evaluate", jumpy)
    model = torch.nn.Linear(3, 2)
    data = (torch.arange(12.0).reshape(4, 3), torch.tensor([0, 1, 0, 1]))
    ModelRisk(model, data, dtype=torch.float32)

    monkeypatch.setattr(
        proof,
        "_evaluate",
        lambda few, weights, *, chunk_size=None: (
            jumpy(few, weights)
            if chunk_size is None
            else tuple(1.01 * value for value in honest(few, weights, chunk_size=1))
        ),
    )
    with pytest.raises(LandscapeError, match="depends on how the examples are batched"):
        ModelRisk(model, data, dtype=torch.float32)
