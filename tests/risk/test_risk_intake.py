"""What people hand in as a model, as data and as a loss: it is studied as what it is, or refused in one line."""

import types
from collections import UserDict

import numpy as np
import pytest
import torch
from test_risk_reach import CUTS, QUICK, Two, X, Y, losses_of
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, Sampler, SubsetRandomSampler, TensorDataset

from landscape import ModelRisk, measure_spectrum
from landscape.errors import LandscapeError
from landscape.risk.copies import cast, copied


def hessian_of(risk):
    eye = torch.eye(len(risk.theta), dtype=risk.dtype)
    weights = (risk.class_counts / risk.class_counts.sum())[None]
    with risk.hessian(risk.theta, weights) as product:
        return product(eye[None])[0]


# ---- gradients of another function -----------------------------------------------------------------------------------


def rounded(m, x):  # straight through
    hidden = m.b(x)
    return m.h(hidden + ((4 * hidden).round() / 4 - hidden).detach())


def without_statistics(m, x):
    hidden = m.b(x)
    return m.h(hidden / hidden.norm(dim=1, keepdim=True).detach())


def hooked(m, x):
    hidden = m.b(x)
    if hidden.requires_grad:
        hidden.register_hook(lambda g: g.clamp(-1e-2, 1e-2))
    return m.h(hidden)


PARTLY_CUT = {
    "straight through": rounded,
    "skip": lambda m, x: m.h(m.b(x) + m.b(x).detach()),
    "statistics": without_statistics,
    "hook": hooked,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cut", PARTLY_CUT)
def test_a_gradient_of_another_function_is_refused_by_the_names_of_its_weights(cut, dtype):
    risk = ModelRisk(Two(PARTLY_CUT[cut]), (X, Y), dtype=dtype)
    assert risk.losses(risk.theta).isfinite().all()  # losses are right
    with pytest.raises(LandscapeError, match=r"gradient is not the derivative of the loss: .*'b\.0\.weight'.* is cut"):
        measure_spectrum(risk, "all", options=QUICK)


def test_a_loss_with_a_part_held_fixed_is_refused():
    def focal(logits, labels):
        losses = functional.cross_entropy(logits, labels, reduction="none")
        return (1 - torch.exp(-losses)).detach() ** 2 * losses

    risk = ModelRisk(Two(), (X, Y), loss=focal)
    with pytest.raises(LandscapeError, match="gradient is not the derivative of the loss"):
        risk.gradients(risk.theta, torch.ones(1, 3))


SOUND = {
    "largest logit held": lambda m, x: (z := m.h(m.b(x))) - z.max(1, keepdim=True)[0].detach(),
    "kinks": lambda m, x: m.h(functional.relu(m.b(x) - 0.1)),
    "kinks at the point": lambda m, x: m.h(
        functional.relu(m.b[0](x * (x > 0.5)))
    ),  # most rows' inputs and biases are zero
    "routing": lambda m, x: m.h(torch.where(m.b(x).sum(1, keepdim=True) > 0, m.b(x), -m.b(x))),
    "float32 inside": lambda m, x: m.h(m.b(x).float().to(x.dtype)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", SOUND)
def test_kinks_and_constants_are_no_flaw(how, dtype):
    model = Two(SOUND[how])
    with torch.no_grad():
        model.b[0].bias.zero_()
    risk = ModelRisk(model, (X, Y), dtype=dtype)
    assert risk.gradients(risk.theta, torch.ones(1, 3) / 3).isfinite().all()


def test_rows_that_pad_are_held_fixed_by_convention():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.h = nn.Embedding(11, 4, padding_idx=0), nn.Linear(4, 3)
            with torch.no_grad():
                self.e.weight[0] = 1.0

        def forward(self, tokens):
            return self.h(torch.tanh(self.e(tokens)).mean(1))

    risk = ModelRisk(Bag().double(), (torch.arange(24 * 5).view(24, 5) % 11, Y))
    assert risk.gradients(risk.theta, torch.ones(1, 3)).any()


# ---- weights that are reached in another way --------------------------------------------------------------------------


def held(name, of):
    def setup(model):
        setattr(model, name, of(model))
        return model

    return setup


ALIASES = {
    "a view": (held("w", lambda m: m.h.weight.view(3, 8)), lambda m, x: functional.linear(m.b(x), m.w, m.h.bias)),
    "data": (held("w", lambda m: m.h.weight.data), lambda m, x: functional.linear(m.b(x), m.w, m.h.bias)),
    "a list": (held("w", lambda m: [m.h.weight]), lambda m, x: functional.linear(m.b(x), m.w[0], m.h.bias)),
    "also": (held("w", lambda m: [m.h.weight]), lambda m, x: m.h(m.b(x)) + functional.linear(m.b(x), m.w[0])),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alias", ALIASES)
def test_weights_that_are_read_elsewhere_are_named(alias, dtype):
    setup, how = ALIASES[alias]
    model = setup(Two(how).to(torch.float32))
    with pytest.raises(LandscapeError, match=r"reads 'h\.weight' by another way than as its parameters"):
        ModelRisk(model, (X.float(), Y), dtype=dtype)


def test_a_model_that_uses_none_of_its_weights_is_refused():
    model = Two()
    model.forward = types.MethodType(lambda self, x: x[:, :3], model)
    with pytest.raises(LandscapeError, match=r"depends on none of the chosen parameters \('b\.0\.weight', .*\)"):
        ModelRisk(model, (X, Y))


def test_weights_in_a_plain_list_are_held_fixed_and_said_to_be(caplog):
    model = Two(lambda m, x: m.h(torch.tanh(m.layers[0](m.b(x)))))
    model.layers = [nn.Linear(8, 8)]
    with pytest.raises(LandscapeError, match="does not accept inputs"):  # the list is in float32, its owner in float64
        ModelRisk(Two(lambda m, x: 1 / 0), (X, Y))
    risk = ModelRisk(model, (X, Y))
    assert risk.layout.names == ("b.0.weight", "b.0.bias", "h.weight", "h.bias")
    assert "trainable weights that are none of its parameters (layers)" in caplog.text
    assert not any(p.grad is not None for p in model.layers[0].parameters())
    registered = Two(lambda m, x: m.h(torch.tanh(m.layers[0](m.b(x)))))
    registered.layers = nn.ModuleList([nn.Linear(8, 8).double()])
    registered.layers[0].load_state_dict(model.layers[0].state_dict())
    other = ModelRisk(registered, (X, Y), params="^(b|h)")
    torch.testing.assert_close(hessian_of(risk), hessian_of(other), rtol=1e-12, atol=1e-14)


# ---- copies -----------------------------------------------------------------------------------------------------------


def test_hooks_and_exchanged_forwards_lead_to_the_copy():
    def hooked(model):
        model.seen = {}
        model.b.register_forward_hook(lambda module, args, output: model.seen.__setitem__("b", output))
        return model

    plain = hessian_of(ModelRisk(Two(), (X, Y)))
    reads_hook = hooked(Two(lambda m, x: (m.b(x), m.h(m.seen["b"]))[1]))
    reads_hook(X + 1)  # leaves other activations behind
    before = reads_hook.seen["b"]
    patched = Two(lambda m, x: 1 / 0)
    patched.forward = lambda x: patched.h(patched.b(x))
    for model in (reads_hook, patched):
        torch.testing.assert_close(hessian_of(ModelRisk(model, (X, Y))), plain, rtol=1e-12, atol=1e-14)
    assert reads_hook.seen["b"] is before


def test_plain_attributes_follow_the_precision_and_complex_buffers_stay_complex():
    model = Two(lambda m, x: m.h(m.b(x @ m.mix["a"][0]) + m.turn.imag)).float()
    model.mix = {"a": [torch.eye(6)]}
    model.register_buffer("turn", torch.full((8,), 0.5j, dtype=torch.complex64))
    risk = ModelRisk(model, (X.float(), Y), dtype="float64")
    by_hand = losses_of(lambda m, x: m.h(m.b(x) + 0.5))
    torch.testing.assert_close(risk.losses(risk.theta), by_hand, rtol=1e-6, atol=0)
    assert model.mix["a"][0].dtype == torch.float32  # the caller's
    assert np.isfinite(measure_spectrum(ModelRisk(model, (X.float(), Y)), "all", options=QUICK).lambda_max).all()


def test_a_copy_of_a_recurrent_network_keeps_its_own_flat_weights():
    model = nn.LSTM(3, 4)
    own = cast(copied(model), torch.float64)
    assert {id(w) for w in own._flat_weights} == {id(p) for p in own.parameters()}
    assert own(torch.ones(2, 1, 3, dtype=torch.float64))[0].dtype == torch.float64


# ---- models that are none ---------------------------------------------------------------------------------------------


def with_weights(change):
    model = Two()
    change(model)
    return model


NO_MODELS = {
    "function": (lambda: lambda x: x, "expected a model .* got a function"),
    "class": (lambda: Two, "got the class Two"),
    "state dict": (lambda: nn.Linear(2, 2).state_dict(), "got a OrderedDict"),
    "script": (lambda: torch.jit.trace(nn.Linear(6, 3), X.float()), "TorchScript module .* pass the nn.Module"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), "'0.weight' are not there yet .* run one batch"),
    "meta": (lambda: nn.Linear(6, 3, device="meta"), "'weight' have no values"),
    "sparse": (
        lambda: with_weights(lambda m: setattr(m.h, "weight", nn.Parameter(m.h.weight.detach().to_sparse()))),
        "sparse",
    ),
    "complex": (
        lambda: nn.Linear(6, 3, dtype=torch.complex64),
        "complex64 weights 'weight' are complex: .*view_as_real",
    ),
    "whole": (
        lambda: with_weights(
            lambda m: setattr(m, "n", nn.Parameter(torch.ones(3, dtype=torch.int64), requires_grad=False))
        ),
        "int64 weights 'n' are no floating point numbers",
    ),
    "max_norm": (lambda: nn.Sequential(nn.Embedding(9, 3, max_norm=1.0)), r"embedding '0' rescales .*max_norm=1"),
    "whole logits": (
        lambda: Two(lambda m, x: m.h(m.b(x)).long()),
        "expected logits in floating point numbers .* torch.int64",
    ),
    "no input": (lambda: Two(lambda m, x: m.seen["b"]), r"does not accept inputs of shape \(1, 6\) \(AttributeError"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize("kind", NO_MODELS)
def test_what_is_no_model_is_refused_in_one_line(kind):
    make, words = NO_MODELS[kind]
    model = make()
    with pytest.raises(LandscapeError, match=words) as caught:
        ModelRisk(model, (X, Y))
    assert "\n" not in str(caught.value)


def test_probabilities_are_not_taken_for_logits_without_a_word(caplog):
    ModelRisk(Two(lambda m, x: m.h(m.b(x)).softmax(1)), (X, Y))
    assert "outputs look like probabilities" in caplog.text
    caplog.clear()
    ModelRisk(Two(lambda m, x: m.h(m.b(x)).log_softmax(1)), (X, Y))
    assert not caplog.text


# ---- embeddings -------------------------------------------------------------------------------------------------------

TOKENS = torch.arange(24 * 5).view(24, 5) * 7 % 11


class Bags(nn.Module):
    def __init__(self, layer):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.e, self.h = layer, nn.Linear(4, 3)
            with torch.no_grad():
                self.e.weight.normal_()
        self.double()

    def forward(self, tokens):
        rows = self.e(tokens)
        return self.h(torch.tanh(rows if rows.dim() == 2 else rows.mean(1)))


class ByHand(Bags):
    """The same by indexing."""

    def __init__(self, reduce):
        super().__init__(nn.Embedding(11, 4))
        self.reduce = reduce

    def forward(self, tokens):
        return self.h(torch.tanh(self.reduce(self.e.weight[tokens], tokens)))


def mean_without_zero(rows, tokens):
    used = (tokens != 0).double()[..., None]
    return (rows * used).sum(1) / used.sum(1)


EMBEDDINGS = {
    "sparse": (lambda: nn.Embedding(11, 4, sparse=True), lambda rows, tokens: rows.mean(1)),
    "by frequency": (lambda: nn.Embedding(11, 4, scale_grad_by_freq=True), lambda rows, tokens: rows.mean(1)),
    "bag of means": (lambda: nn.EmbeddingBag(11, 4), lambda rows, tokens: rows.mean(1)),
    "bag of sums": (lambda: nn.EmbeddingBag(11, 4, mode="sum", sparse=True), lambda rows, tokens: rows.sum(1)),
    "bag of maxima": (lambda: nn.EmbeddingBag(11, 4, mode="max"), lambda rows, tokens: rows.amax(1)),
    "bag that pads": (lambda: nn.EmbeddingBag(11, 4, padding_idx=0), mean_without_zero),
}


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_embeddings_have_the_hessian_of_their_formula(kind):
    layer, reduce = EMBEDDINGS[kind]
    risk, by_hand = ModelRisk(Bags(layer()), (TOKENS, Y)), ModelRisk(ByHand(reduce), (TOKENS, Y))
    torch.testing.assert_close(risk.losses(risk.theta), by_hand.losses(by_hand.theta), rtol=1e-12, atol=0)
    torch.testing.assert_close(hessian_of(risk), hessian_of(by_hand), rtol=1e-10, atol=1e-13)


# ---- data -------------------------------------------------------------------------------------------------------------


class Streamed(IterableDataset):
    def __iter__(self):
        return iter((X[i], int(Y[i])) for i in range(24))


@pytest.mark.parametrize(
    "data",
    [
        lambda: (X.tolist(), Y.tolist()),
        lambda: (list(X), Y),
        lambda: (list(X.numpy()), Y),
        lambda: (X.clone().requires_grad_(), Y),
        lambda: UserDict(x=X, labels=Y),
        lambda: DataLoader(Streamed(), batch_size=5),
        lambda: DataLoader(TensorDataset(X, Y), batch_size=6, drop_last=True),  # nothing is dropped
        lambda: DataLoader(TensorDataset(X, Y), batch_size=6, sampler=SubsetRandomSampler(range(24))),
    ],
    ids=["lists", "tensors", "arrays", "with a graph", "mapping", "stream", "whole batches", "subset"],
)
def test_data_come_in_many_shapes(data):
    risk = ModelRisk(Two(), data())
    torch.testing.assert_close(risk.losses(risk.theta), losses_of(None), rtol=1e-6, atol=0)
    assert np.isfinite(measure_spectrum(risk, "all", options=QUICK).lambda_max).all()


def fails():
    yield X[:4], Y[:4]
    raise OSError("image 5 is damaged")


NO_DATA = {
    "padding": (
        [(TOKENS[:9], Y[:9]), (TOKENS[9:, :3], Y[9:])],
        r"batch 2 holds inputs \(15, 3\), the first \(9, 5\): .*pad",
    ),
    "names": (
        [{"x": X, "labels": Y}, {"z": X, "labels": Y}],
        r"batch 2 holds inputs z \(24, 6\), the first x \(24, 6\)",
    ),
    "ragged": (([[1.0, 2.0], [3.0]], [0, 1]), "inputs: expected a tensor .* pad the examples"),
    "ragged tensors": (([X[0], X[0, :3]], [0, 1]), r"examples of one shape, got \(3,\) and \(6,\)"),
    "sparse": ((X.to_sparse(), Y), "expected a dense tensor"),
    "meta": ((X.to("meta"), Y), "expected a dense tensor"),
    "nothing": ((None, Y), "inputs: expected a tensor"),
    "scalar": ((torch.tensor(1.0), Y), r"beside inputs \(N, ...\).* inputs \(\)"),
    "text": ("data", "iterable of batches, got str"),
    "single examples": (Streamed(), "got single examples: gather them"),
    "dataset": (TensorDataset(X, Y), "got TensorDataset: wrap it in torch.utils.data.DataLoader"),
    "no pair": ([(X,)], r"expected batches \(inputs, labels\), got tuple of 1"),
    "no batch": ([None], r"expected batches \(inputs, labels\), got NoneType"),
    "damaged": (fails(), r"the batches cannot be read \(OSError: image 5 is damaged\)"),
    "complex labels": ((X, Y.to(torch.complex64)), "expected integer labels .*complex64"),
    "one-hot": ((X, functional.one_hot(Y, 3)), r"of one-hot labels take argmax\(1\)"),
    "huge labels": ((X, [10**30] * 24), r"expected integer labels \(N,\), got int"),
}


@pytest.mark.parametrize("kind", NO_DATA)
def test_what_is_no_data_is_refused_in_one_line(kind):
    data, words = NO_DATA[kind]
    with pytest.raises(LandscapeError, match=words) as caught:
        ModelRisk(Two(), data)
    assert "\n" not in str(caught.value)


class InTurn(Sampler):
    def __iter__(self):
        return iter([[0, 12, 20, 0]] * 6)

    def __len__(self):
        return 6


class Prefetched:
    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return iter(self.loader)


def test_whoever_draws_the_examples_is_named():
    loader = DataLoader(TensorDataset(X, Y), batch_sampler=InTurn())
    for data in (loader, Prefetched(loader)):
        with pytest.warns(UserWarning, match="its sampler InTurn draws them"):
            ModelRisk(Two(), data)
    with pytest.warns(UserWarning, match="drop_last leaves some out"):
        ModelRisk(Two(), DataLoader(TensorDataset(X, Y), batch_size=7, drop_last=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": 3}, "loss: expected a name or a callable .* got int"),
        ({"loss": lambda logits, labels: labels}, r"expected one value per example \(2,\), got \(2,\) torch.int64"),
        ({"loss": lambda logits, labels: 1.0}, "expected one value per example .* got float"),
        ({"loss": nn.BCEWithLogitsLoss(reduction="none")}, r"cannot be studied \(Target size"),
        ({"transform": lambda stored: stored}, r"the transform fails on stored inputs \(1, 6\)"),
        ({"chunk_size": -1}, "chunk_size: expected a whole number, at least 1, got -1"),
        ({"memory_budget": -5}, "memory_budget: expected a whole number, at least 0, got -5"),
        ({"draws_per_example": "2"}, "draws_per_example: expected a whole number, at least 1, got '2'"),
        ({"device": "nowhere"}, "cannot be studied .*nowhere"),
        ({"dtype": "float16"}, "expected float32 or float64, got a model in torch.float16"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_fail_are_refused_in_one_line(options, words):
    with pytest.raises(LandscapeError, match=words):
        ModelRisk(Two(), (X, Y), **options)


def test_a_cut_graph_leaves_what_needs_no_derivative():
    risk = ModelRisk(Two(CUTS["detach"]), (X, Y))
    assert risk.evaluate(risk.theta)["accuracy"].isfinite().all()


class Shared(nn.Module):
    """One layer at three places, and a weight that two layers share; ``plain`` says the same without modules."""

    def __init__(self, plain=False):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.layer, self.out, self.tied = nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(6, 6)
        self.again = nn.ModuleList([self.layer, nn.ModuleDict({"x": self.layer})])
        self.double()
        self.tied.weight = self.layer.weight  # a tied tensor in a module of its own
        self.plain = plain

    def forward(self, x):
        if self.plain:
            w, b = self.layer.weight, self.layer.bias
            for bias in (b, b, b, self.tied.bias):
                x = torch.tanh(x @ w.T + bias)
            return self.out(x)
        for layer in (self.layer, self.again[0], self.again[1]["x"], self.tied):
            x = torch.tanh(layer(x))
        return self.out(x)


def test_a_layer_that_stands_at_several_places_is_one():
    risk, by_hand = ModelRisk(Shared(), (X, Y)), ModelRisk(Shared(plain=True), (X, Y))
    torch.testing.assert_close(hessian_of(risk), hessian_of(by_hand), rtol=1e-12, atol=1e-14)
    assert all(p.is_leaf for p in risk._model.parameters())
    assert np.isfinite(measure_spectrum(ModelRisk(Shared(), (X, Y)), "all", options=QUICK).lambda_max).all()
