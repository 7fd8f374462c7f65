"""Every kind of network that people have: its Hessian against dense automatic differentiation, or a refusal that says why."""

from __future__ import annotations

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from risk_cases import COUNTS, digits, draw, example_weights, smooth_mlp
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from landscape.errors import LandscapeError
from landscape.risk import ModelRisk
from landscape.risk.arithmetic import differentiation, plain_recurrence

X, Y = digits(counts=(7, 4, 3, 2))
TOKENS = (X[:, 0, ::3, ::2].flatten(1) * 8 + 8).long()  # (16, 12), numbers 0 to 16
LANES = torch.tensor([[7 / 16, 4 / 16, 3 / 16, 2 / 16], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)


def dense_hessians(model: nn.Module, inputs, *, moved: float = 0.0) -> list[Tensor]:
    """Return the Hessian of each lane over the flat parameters, by plain double backward through the model itself.

    The parameters are written into the model, so nothing here is shared with the risk, which swaps them in.
    """
    model = model.eval().requires_grad_()
    if isinstance(model, Checkpointed):
        model.use_reentrant = None
    parameters = list(model.parameters())
    with torch.no_grad():
        for p in parameters:
            p.add_(moved)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
        losses = functional.cross_entropy(getattr(output, "logits", output), Y, reduction="none")
        return [_dense(losses @ example_weights(Y, row.tolist()), parameters) for row in LANES]


def _dense(loss: Tensor, parameters: list[Tensor]) -> Tensor:
    first = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    flat = torch.cat([g.reshape(-1) for g in first])
    rows = []
    for entry in flat:
        if entry.requires_grad:
            second = torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True)
        else:
            second = [torch.zeros_like(p) for p in parameters]
        rows.append(torch.cat([g.reshape(-1) for g in second]))
    return torch.stack(rows)


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell = cell(8, 3, batch_first=True)
        self.out = nn.Linear(3, 4)

    def forward(self, x):
        return self.out(self.cell(x[:, 0])[0][:, -1])


class DotProduct(nn.Module):
    def __init__(self):
        super().__init__()
        self.keys, self.out = nn.Linear(8, 3), nn.Linear(8, 4)

    def forward(self, x):
        k = self.keys(x[:, 0])
        return self.out(functional.scaled_dot_product_attention(k, k, x[:, 0]).mean(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 4)

    def forward(self, x):
        return self.out(self.attention(x[:, 0], x[:, 0], x[:, 0], need_weights=False)[0].mean(1))


class Encoder(nn.Module):
    """Its fast path would be taken without gradients, and zeroes what the mask hides."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True, dropout=0.5, activation="gelu")
        self.encoder, self.out = nn.TransformerEncoder(layer, 1), nn.Linear(4, 4)

    def forward(self, x):
        hidden = torch.zeros(len(x), 8, dtype=torch.bool)
        hidden[:, 6:] = True
        return self.out(self.encoder(x[:, 0, :, ::2], src_key_padding_mask=hidden).sum(1))


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant: bool | None) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(16, 3), nn.Linear(3, 4)
        self.block = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
        self.use_reentrant = use_reentrant

    def forward(self, x):
        hidden = self.first(functional.avg_pool2d(x, 2).flatten(1)).tanh()
        if self.use_reentrant is None:
            return self.out(self.block(hidden))
        return self.out(checkpoint(self.block, hidden, use_reentrant=self.use_reentrant))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.used, self.after = nn.Linear(2, 2), nn.Linear(16, 4), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.used(functional.avg_pool2d(x, 2).flatten(1)) ** 2


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.out(torch.tanh(self.decoder(torch.tanh(self.encoder(functional.avg_pool2d(x, 4).flatten(1))))))


class Language(nn.Module):
    """Takes keywords and returns an object with logits, as language models do."""

    def __init__(self, wrap=lambda logits: SimpleNamespace(logits=logits, hidden=None)) -> None:
        super().__init__()
        self.words, self.out, self.wrap = nn.Embedding(17, 3), nn.Linear(3, 4), wrap

    def forward(self, input_ids, attention_mask=None):
        mask = (torch.ones_like(input_ids) if attention_mask is None else attention_mask)[..., None]
        return self.wrap(self.out(torch.tanh((self.words(input_ids) * mask).sum(1))))


class Sampled(nn.Module):
    def __init__(self):
        super().__init__()
        self.where, self.out = nn.Linear(4, 6), nn.Linear(16, 4)

    def forward(self, x):
        grid = functional.affine_grid(0.1 * self.where(x[:, 0, 3, 2:6]).view(-1, 2, 3), [len(x), 1, 4, 4], False)
        return self.out(functional.grid_sample(x, grid, align_corners=False).flatten(1))


def on_pixels(*layers: nn.Module, features: int) -> nn.Sequential:
    """An image network of 8 x 8 digits, pooled to 4 x 4, around some layers."""
    return nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(1, 2, 3), *layers, nn.Flatten(), nn.Linear(features, 4))


def written_weight_norm(v, g, dim):
    assert dim == 0
    return g * v / v.square().flatten(1).sum(1).sqrt().view(g.shape)


def old_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.utils.weight_norm(nn.Linear(16, 3)), nn.Linear(3, 4))


def frozen_backbone() -> nn.Module:
    model = on_pixels(nn.Tanh(), features=8)
    model[1].requires_grad_(False)
    return model


MODELS = {
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "elman": lambda: Recurrent(nn.RNN),
    "dot-product attention": DotProduct,
    "multi-head attention": Attention,
    "transformer encoder with a mask": Encoder,
    "checkpoint": lambda: Checkpointed(False),
    "re-entrant checkpoint": lambda: Checkpointed(True),
    "unused parameters": Unused,
    "tied parameters": Tied,
    "frozen parameters": frozen_backbone,
    "BatchNorm": lambda: on_pixels(nn.BatchNorm2d(2), nn.Tanh(), features=8),
    "GroupNorm": lambda: on_pixels(nn.GroupNorm(2, 2), nn.GELU(), features=8),
    "LayerNorm": lambda: on_pixels(nn.LayerNorm([2, 2, 2]), nn.SiLU(), features=8),
    "InstanceNorm": lambda: on_pixels(nn.InstanceNorm2d(2, affine=True), nn.Tanh(), features=8),
    "dropout": lambda: on_pixels(nn.Dropout2d(0.5), nn.Tanh(), nn.Dropout(0.5), features=8),
    "max-pool": lambda: on_pixels(nn.Tanh(), nn.MaxPool2d(2), features=2),
    "in-place relu": lambda: on_pixels(nn.ReLU(inplace=True), features=8),
    "bilinear upsampling": lambda: on_pixels(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Tanh(), features=32),
    "bicubic upsampling": lambda: on_pixels(nn.Upsample(scale_factor=2, mode="bicubic"), nn.Tanh(), features=32),
    "grid sampling": Sampled,
    "weight norm": lambda: on_pixels(parametrizations.weight_norm(nn.Conv2d(2, 2, 1)), nn.Tanh(), features=8),
    "spectral norm": lambda: on_pixels(parametrizations.spectral_norm(nn.Conv2d(2, 2, 1)), nn.Tanh(), features=8),
    "orthogonal": lambda: on_pixels(parametrizations.orthogonal(nn.Conv2d(2, 2, 1)), nn.Tanh(), features=8),
    "older weight norm": old_weight_norm,
    "complex weights of a spectrum": lambda: Spectrum(),
}


class Spectrum(nn.Module):
    """Works on complex numbers inside, as Fourier layers do."""

    def __init__(self):
        super().__init__()
        self.filter, self.out = nn.Parameter(torch.ones(4, 3)), nn.Linear(16, 4)

    def forward(self, x):
        spectrum = torch.fft.rfft2(functional.avg_pool2d(x[:, 0], 2)) * self.filter
        return self.out(torch.tanh(torch.fft.irfft2(spectrum, s=(4, 4))).flatten(1))


def built(make) -> nn.Module:
    torch.manual_seed(0)
    return make().double()


def require_dense_products(risk: ModelRisk, hessians: list[Tensor], *, moved: float = 0.0) -> None:
    theta = risk.theta + moved
    vectors = draw(len(LANES), 2, len(theta), name="v")
    expected = torch.stack([v @ h for v, h in zip(vectors, hessians)])
    for budget in (None, 0):
        risk._memory_budget = budget
        with risk.hessian(theta, LANES) as product:
            for _ in range(2):
                got = product(vectors)
                assert (got - expected).norm() <= 1e-11 * expected.norm()


@pytest.mark.parametrize("name", list(MODELS))
def test_products_against_the_dense_hessian(name, monkeypatch):
    """Equal to rounding, away from the weights that the model itself holds; with and without kept graphs.

    Weight norms are written out for the dense Hessian: the second derivative of PyTorch's fused one is wrong.
    """
    risk = ModelRisk(built(MODELS[name]), (X, Y), chunk_size=5)
    for module in (torch, sys.modules["torch.nn.utils.weight_norm"]):
        monkeypatch.setattr(module, "_weight_norm", written_weight_norm)
    try:
        hessians = dense_hessians(built(MODELS[name]), X, moved=0.1)
    except RuntimeError:  # PyTorch 2.11 has no second derivative of grid sampling, and we say so
        if name != "grid sampling":
            raise
        with (
            pytest.raises(LandscapeError, match="has no second derivative in PyTorch"),
            risk.hessian(risk.theta, LANES) as product,
        ):
            product(torch.ones(len(LANES), 1, len(risk.theta), dtype=risk.dtype))
        return
    monkeypatch.undo()
    assert all(h.norm() > 1e-3 for h in hessians)
    require_dense_products(risk, hessians, moved=0.1)


def test_losses_without_gradients_are_those_that_are_differentiated():
    """The encoder's fast path gives other numbers behind a mask, and is taken without gradients only."""
    risk = ModelRisk(built(Encoder), (X, Y))
    with differentiation():
        losses = risk.per_example(risk.theta, slice(0, len(Y))).detach()
    assert float(risk.lane_losses(risk.theta, LANES)[0]) == pytest.approx(float(losses.mean()), rel=1e-13)
    assert torch.backends.mha.get_fastpath_enabled()


def test_unused_parameters_have_zero_rows():
    risk = ModelRisk(built(Unused), (X, Y))
    product = risk.hvps(risk.theta, LANES, draw(2, len(risk.theta), name="v"))
    unused = [name.startswith(("before", "after")) for name in risk.layout.names]
    for part, is_unused in zip(product.split(risk.layout.sizes, dim=1), unused):
        assert bool((part == 0).all()) == is_unused


def test_recurrent_kernels_are_plain_while_a_network_needs_it():
    """cuDNN and oneDNN are off in the forward pass of a network with a recurrent layer, and back on after a failure."""
    seen = []

    class Watching(Recurrent):
        def forward(self, x):
            seen.append((torch.backends.cudnn.enabled, torch.backends.mkldnn.enabled))
            return super().forward(x)

    before = torch.backends.cudnn.enabled, torch.backends.mkldnn.enabled
    risk = ModelRisk(built(lambda: Watching(nn.LSTM)), (X, Y))
    seen.clear()
    risk.hvps(risk.theta, LANES, draw(2, len(risk.theta), name="v"))
    assert set(seen) == {(False, False)}
    assert before == (torch.backends.cudnn.enabled, torch.backends.mkldnn.enabled)
    with pytest.raises(ZeroDivisionError), plain_recurrence():
        raise ZeroDivisionError
    assert before == (torch.backends.cudnn.enabled, torch.backends.mkldnn.enabled)


def test_checkpointing_is_back_after_a_failure():
    own = torch.utils.checkpoint.CheckpointFunction

    class Failing(Checkpointed):
        def forward(self, x):
            assert torch.utils.checkpoint.CheckpointFunction is not own
            raise ZeroDivisionError("now")

    with pytest.raises(LandscapeError, match=r"does not accept inputs .*\(ZeroDivisionError: now\)"):
        ModelRisk(built(lambda: Failing(True)), (X, Y))
    assert torch.utils.checkpoint.CheckpointFunction is own


# ---- parameters ------------------------------------------------------------------------------------------------------


def test_frozen_parameters_belong_to_all_but_not_to_trainable():
    model = built(frozen_backbone)
    everything, trained = ModelRisk(model, (X, Y)), ModelRisk(model, (X, Y), params="trainable")
    assert trained.layout.names == ("4.weight", "4.bias")
    start = everything.layout.num_parameters - trained.layout.num_parameters
    vector = draw(2, len(trained.theta), name="v")
    padded = torch.cat([torch.zeros(2, start, dtype=torch.float64), vector], 1)
    block = everything.hvps(everything.theta, LANES, padded)[:, start:]
    torch.testing.assert_close(trained.hvps(trained.theta, LANES, vector), block, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(trained.in_float64().theta, trained.theta, rtol=0, atol=0)
    with pytest.raises(LandscapeError, match="trainable: every parameter of the model is frozen"):
        ModelRisk(model.requires_grad_(False), (X, Y), params="trainable")


# ---- named inputs ----------------------------------------------------------------------------------------------------

MASK = (torch.arange(12) < 12 - torch.arange(16)[:, None] % 5).long()
NAMED = {"input_ids": TOKENS, "attention_mask": MASK}
OUTPUTS = {
    "object": lambda logits: SimpleNamespace(logits=logits, hidden=None),
    "dictionary": lambda logits: {"loss": None, "logits": logits},
    "first entry of a dictionary": lambda logits: {"scores": logits, "hidden": logits[:0]},
    "tuple": lambda logits: (logits, None),
    "tensor": lambda logits: logits,
}


@pytest.mark.parametrize("output", list(OUTPUTS))
def test_named_inputs_and_wrapped_logits(output):
    model = built(Language)
    hessians = dense_hessians(model, NAMED)
    risk = ModelRisk(built(lambda: Language(OUTPUTS[output])), (NAMED, Y), chunk_size=3)
    require_dense_products(risk, hessians)
    assert risk.inputs_per_example == 24
    assert torch.isfinite(risk.restricted(torch.arange(8)).losses(risk.theta)[0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: {**NAMED, "labels": Y},
        lambda: {**{name: t.tolist() for name, t in NAMED.items()}, "label": Y.numpy()},
        lambda: [
            {"input_ids": TOKENS[a:b], "attention_mask": MASK[a:b], "labels": Y[a:b]} for a, b in ((0, 9), (9, 16))
        ],
        lambda: [({"input_ids": TOKENS[a:b], "attention_mask": MASK[a:b]}, Y[a:b]) for a, b in ((0, 9), (9, 16))],
    ],
    ids=["labels inside", "lists", "batches with labels inside", "batches"],
)
def test_every_form_of_named_data_gives_the_same_numbers(make):
    model = built(Language)
    expected, risk = ModelRisk(model, (NAMED, Y)), ModelRisk(model, make())
    assert torch.equal(risk.losses(risk.theta), expected.losses(expected.theta))


def test_integer_inputs_without_names():
    model = built(Language)
    hessians = dense_hessians(model, TOKENS)
    require_dense_products(ModelRisk(model, (TOKENS, Y), chunk_size=3), hessians)


def test_a_transform_and_a_calibration_set_may_be_named_too():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = smooth_mlp()

        def forward(self, pixels):
            return self.net(pixels)

    plain = ModelRisk(smooth_mlp(), (X, Y), calibration=X[:8])
    stored = {"pixels": ((X + 1) * 8).round().to(torch.uint8)}
    named = ModelRisk(
        Named(),
        (stored, Y),
        transform=lambda given, dtype: {"pixels": given["pixels"].to(dtype) / 8 - 1},
        calibration={"pixels": stored["pixels"][:8]},
    )
    assert torch.equal(named.losses(named.theta), plain.losses(plain.theta))
    a, b = named.with_batchnorm("recalibrate"), plain.with_batchnorm("recalibrate")
    assert torch.equal(a.losses(a.theta), b.losses(b.theta))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"input_ids": TOKENS}, "labels beside named inputs, got only input_ids: .* add the entry 'labels'"),
        (({"input_ids": TOKENS, "attention_mask": MASK[:9]}, Y), r"same number .* attention_mask \(9, 12\)"),
        (({"input_ids": ["some", "words"]}, Y), "input 'input_ids': expected a tensor .* got list"),
        (({}, Y), "inputs are an empty mapping"),
        (({"input_ids": TOKENS[:9]}, Y), r"labels \(16,\) .* input_ids \(9, 12\)"),
        (({"tokens": TOKENS}, Y), r"does not accept inputs of shape tokens \(1, 12\)"),
    ],
)
def test_bad_named_data_name_the_offence(data, message):
    with pytest.raises(LandscapeError, match=message):
        ModelRisk(built(Language), data)


# ---- losses ----------------------------------------------------------------------------------------------------------


def mean_loss(logits, labels):
    return functional.cross_entropy(logits, labels)


def averaged_loss(logits, labels):
    """One number per example, yet each divided by the size of the batch."""
    return functional.cross_entropy(logits, labels, reduction="none") / len(labels)


def test_callable_losses_per_example():
    def margin(logits, labels):
        return functional.cross_entropy(logits - 0.5 * functional.one_hot(labels, 4), labels, reduction="none")

    model = smooth_mlp()
    own = ModelRisk(model, (X, Y), loss=margin)
    shifted = copy.deepcopy(model)
    v = draw(2, len(own.theta), name="v")

    def dense(row):
        losses = margin(shifted.eval()(X), Y)
        return _dense(losses @ example_weights(Y, row.tolist()), list(shifted.parameters()))

    expected = torch.stack([vector @ dense(row) for vector, row in zip(v, LANES)])
    assert (own.hvps(own.theta, LANES, v) - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (mean_loss, r"loss 'mean_loss': expected one value per example \(2,\), got \(\); use reduction='none'"),
        (nn.NLLLoss(), r"loss 'NLLLoss': expected one value per example \(2,\), got \(\)"),
        (averaged_loss, r"depends on how the examples are batched \(by \d.*a loss per example"),
    ],
)
def test_losses_that_are_not_per_example_are_refused(loss, message):
    with pytest.raises(LandscapeError, match=message):
        ModelRisk(smooth_mlp(), (X, Y), loss=loss)


# ---- no second derivative --------------------------------------------------------------------------------------------


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


class Cubed(nn.Module):
    def __init__(self, call=Once.apply) -> None:
        super().__init__()
        self.first, self.out, self.call = nn.Linear(64, 3), nn.Linear(3, 4), call

    def forward(self, x):
        return self.out(self.call(self.first(x.flatten(1))))


class Bags(nn.Module):
    """The mean vector of an image's dark and light pixels."""

    def __init__(self):
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(2, 4))

    def forward(self, x):
        return functional.embedding_bag((x.flatten(1) > 0).long(), self.vectors)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Cubed, "the custom operation 'Once' is marked once_differentiable, .*Hessian products need it"),
        (Bags, "the operation 'embedding_bag' has no second derivative in PyTorch"),
    ],
)
@pytest.mark.parametrize("memory_budget", [None, 0])
def test_an_operation_without_second_derivative_is_named(make, message, memory_budget):
    """Losses and gradients work; the first product, not a traceback of PyTorch, says what is missing."""
    risk = ModelRisk(built(make), (X, Y), memory_budget=memory_budget)
    assert torch.isfinite(risk.losses(risk.theta)).all()
    assert torch.isfinite(risk.gradients(risk.theta, LANES)).all()
    with pytest.raises(LandscapeError, match=message):
        risk.hvps(risk.theta, LANES, draw(2, len(risk.theta), name="v"))


def test_behind_the_operation_there_is_a_second_derivative():
    model = built(Cubed)
    risk = ModelRisk(model, (X, Y), params="out")
    smooth = ModelRisk(built(lambda: Cubed(lambda x: x**3)), (X, Y), params="out")
    v = draw(2, len(risk.theta), name="v")
    torch.testing.assert_close(risk.hvps(risk.theta, LANES, v), smooth.hvps(smooth.theta, LANES, v), rtol=1e-12, atol=0)


def test_errors_of_others_inside_a_product_stay_what_they_are():
    risk = ModelRisk(smooth_mlp(), (X, Y))
    with pytest.raises(RuntimeError, match="mine"), risk.hessian(risk.theta, LANES):
        raise RuntimeError("mine")


# ---- statistics of the batch -----------------------------------------------------------------------------------------


def batch_hessian(model: nn.Module, row: Tensor) -> tuple[Tensor, Tensor]:
    """Return loss and Hessian of a lane in training mode, its examples as the batch."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        layer.training = isinstance(layer, nn.modules.batchnorm._BatchNorm)
    chosen = row[Y] != 0
    losses = functional.cross_entropy(model(X[chosen]), Y[chosen], reduction="none")
    loss = losses @ example_weights(Y, row.tolist())[chosen]
    return loss.detach(), _dense(loss, list(model.parameters()))


BATCH_LANES = torch.tensor(
    [[7 / 16, 4 / 16, 3 / 16, 2 / 16], [0, 0, 0, 1.0], [0.7, 0, 0.3, 0], [0, 0.5, 0, 0.5]]
).double()
BATCH_MODELS = {
    "smooth": smooth_mlp,
    "tracked": lambda: on_pixels(nn.BatchNorm2d(2), nn.Tanh(), nn.Dropout(0.5), features=8),
    "track-free": lambda: on_pixels(nn.BatchNorm2d(2, track_running_stats=False), nn.Tanh(), features=8),
}


@pytest.mark.parametrize("name", list(BATCH_MODELS))
def test_batch_statistics_against_a_dense_hessian_in_training_mode(name):
    model = built(BATCH_MODELS[name])
    risk = ModelRisk(model, (X, Y), batchnorm="batch")
    buffers = {key: t.clone() for key, t in risk._network.buffers.items()}
    vectors = draw(4, 2, len(risk.theta), name="v")
    dense = [batch_hessian(model, row) for row in BATCH_LANES]
    expected = torch.stack([v @ h for v, (_, h) in zip(vectors, dense)])
    with risk.hessian(risk.theta, BATCH_LANES) as product:
        assert (product(vectors) - expected).norm() <= 1e-12 * expected.norm()
        assert torch.equal(product(vectors), product(vectors))
    losses = risk.lane_losses(risk.theta, BATCH_LANES)
    torch.testing.assert_close(losses, torch.stack([loss for loss, _ in dense]), rtol=1e-13, atol=0)
    assert float(risk.losses(risk.theta)[3]) == pytest.approx(float(losses[1]), rel=1e-13)
    step = 1e-5 * vectors[:, 0] / vectors[:, 0].norm(dim=1, keepdim=True)
    for b in range(4):
        lane = BATCH_LANES[b : b + 1]
        up, down = (risk.lane_losses(risk.theta + s * step[b], lane) for s in (1, -1))
        slope = risk.gradients(risk.theta, BATCH_LANES)[b] @ step[b]
        assert float((up - down) / 2) == pytest.approx(float(slope), rel=1e-6, abs=1e-13)
    assert all(torch.equal(t, buffers[key]) for key, t in risk._network.buffers.items())
    assert not risk.is_additive
    assert risk.attributes["batchnorm"] == "statistics of each lane's own examples"


def test_batch_statistics_are_no_weighted_sum_of_the_classes():
    risk = ModelRisk(smooth_mlp(), (X, Y), batchnorm="batch")
    frozen = risk.with_batchnorm("frozen")
    assert frozen.is_additive
    for each, is_sum in ((risk, False), (frozen, True)):
        parts = BATCH_LANES[0] @ each.losses(each.theta)
        whole = each.lane_losses(each.theta, BATCH_LANES)[0]
        assert (abs(float(parts - whole)) < 1e-13) == is_sum


def test_a_policy_can_be_changed_and_survives_a_change_of_precision():
    risk = ModelRisk(smooth_mlp(), (X, Y))
    direct, derived = ModelRisk(smooth_mlp(), (X, Y), batchnorm="batch"), risk.with_batchnorm("batch")
    assert torch.equal(direct.losses(direct.theta), derived.losses(derived.theta))
    back = derived.with_batchnorm("frozen")
    assert torch.equal(back.losses(back.theta), risk.losses(risk.theta))
    single = ModelRisk(smooth_mlp().float(), (X.float(), Y), batchnorm="batch")
    assert not single.in_float64().is_additive
    torch.testing.assert_close(
        single.in_float64().losses(single.theta.double()), single.losses(single.theta), rtol=1e-5, atol=0
    )


def track_free() -> nn.Module:
    return built(BATCH_MODELS["track-free"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ModelRisk(track_free(), (X, Y)),
            "batched .* BatchNorm '2' keeps no running statistics; batchnorm='batch' takes",
        ),
        (
            lambda: ModelRisk(track_free(), (X, Y), batchnorm="batch").with_batchnorm("frozen"),
            "BatchNorm '2' keeps no running statistics",
        ),
        (
            lambda: ModelRisk(built(lambda: Recurrent(nn.GRU)), (X, Y), batchnorm="batch"),
            "'batch': the model has no BatchNorm layer; use 'frozen'",
        ),
        (lambda: ModelRisk(smooth_mlp(), (X, Y), batchnorm="train"), "unknown BatchNorm policy 'train'"),
        (lambda: ModelRisk(smooth_mlp(), (X[:1], Y[:1]), batchnorm="batch"), "a single example, which has no variance"),
        (
            lambda: (r := ModelRisk(smooth_mlp(), (X, Y), batchnorm="batch", chunk_size=9)).gradients(r.theta, LANES),
            r"a lane of 16 examples \(class 0, 1, 2, ...\) does not fit one pass of 9; take fewer",
        ),
        (
            lambda: (r := ModelRisk(smooth_mlp(), (X, Y), batchnorm="batch", chunk_size=6)).losses(r.theta),
            r"a lane of 7 examples \(class 0\) does not fit one pass of 6",
        ),
    ],
)
def test_batches_without_statistics_are_refused(call, message):
    with pytest.raises(LandscapeError, match=message):
        call()


def test_a_class_of_one_example_has_no_statistics_but_a_lane_with_it_has():
    rows = torch.cat([torch.nonzero(Y == 0)[:, 0], torch.nonzero(Y == 3)[:1, 0]])
    risk = ModelRisk(smooth_mlp(), (X[rows], Y[rows]), batchnorm="batch")
    assert torch.isfinite(risk.gradients(risk.theta, torch.tensor([[0.5, 0, 0, 0.5]]))).all()
    assert torch.isfinite(risk.losses(risk.theta, [0])[0])
    with pytest.raises(LandscapeError, match=r"\(class 3\) has a single example"):
        risk.losses(risk.theta)
    with pytest.raises(LandscapeError, match=r"\(class 3\) has a single example"):
        risk.hvps(risk.theta, torch.tensor([[0.0, 0, 0, 1]]), risk.theta[None])


@pytest.mark.parametrize("how", ["checkpoint", "batch"])
def test_nothing_of_the_callers_changes(how):
    torch.manual_seed(0)
    model = (Checkpointed(True) if how == "checkpoint" else smooth_mlp()).double().train()
    before = {name: t.detach().clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    risk = ModelRisk(model, (X, Y), batchnorm="batch" if how == "batch" else "frozen")
    risk.hvps(risk.theta, LANES, draw(2, len(risk.theta), name="v"))
    risk.lane_losses(risk.theta, LANES)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(layer.training for layer in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_cases_are_the_digits_of_the_other_tests():
    assert len(COUNTS) == 4
    assert torch.bincount(Y).tolist() == [7, 4, 3, 2]
