"""Every kind of network that people have: its Hessian against dense automatic differentiation, or a refusal that says why."""

from __future__ import annotations

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from risk_cases import digits, draw, example_weights, smooth_mlp
from torch import Tensor, nn
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
