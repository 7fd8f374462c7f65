"""Single examples at any theta: against the plain network, with and without folding, and back to class means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from risk_cases import COUNTS, digits, digits_convnet, draw, fill, smooth_mlp
from torch import nn
from torch.nn import functional

from landscape.errors import LandscapeError
from landscape.losses import build_loss
from landscape.risk import ModelRisk, evaluator, lanes_of
from landscape.risk.evaluator import ClassSums, PointEvaluator
from landscape.risk.folding import find_pairs
from landscape.risk.points import ClassWalk, NetworkWalk, walk_of

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class Block(nn.Module):
    """Convolutions with BatchNorm in every relation: folded, shared, read twice, transposed, without affine."""

    def __init__(self, kind="plain"):
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(1, 4, 3, bias=kind == "bias")
        self.norm = nn.BatchNorm2d(4, affine=kind != "no affine")
        transposed = nn.ConvTranspose2d(4, 4, 3) if kind == "transposed" else nn.Conv2d(4, 4, 3)
        self.second, self.second_norm = transposed, nn.BatchNorm2d(4)
        self.head = nn.Linear(4, len(COUNTS))
        fill(self.double())
        for layer in (self.norm, self.second_norm):
            layer.running_mean.copy_(torch.linspace(-0.5, 0.5, 4))
            layer.running_var.copy_(torch.linspace(0.5, 2.0, 4))
        if kind == "parametrised":
            nn.utils.parametrizations.weight_norm(self.conv)
        self.eval()

    def forward(self, x):
        made = self.conv(x)
        x = torch.tanh(self.norm(made))
        if self.kind == "read twice":
            x = x + made
        if self.kind == "called twice":
            x = self.norm(x)
        if self.kind == "touches the layer":
            x = x * self.norm.weight[:, None, None]
        return self.head(torch.tanh(self.second_norm(self.second(x))).mean((2, 3)))


def values_at(model, theta_step=0.1, **options):
    images, labels = digits()
    risk = ModelRisk(model, (images, labels), **options)
    theta = risk.theta + theta_step * draw(len(risk.theta), name="step").to(risk.theta)
    return risk, theta, PointEvaluator(risk)


def class_means(risk, evaluated, theta):
    values = evaluated(theta)
    means = ClassSums.of(evaluated, len(risk.class_names)).means(torch.stack(list(values.values())))
    return dict(zip(values, means))


FOLDED = {
    "plain": 2,
    "bias": 2,
    "no affine": 2,
    "transposed": 1,
    "read twice": 0,  # one pair would change the function, so none is trusted
    "called twice": 1,
    "touches the layer": 0,
    "parametrised": 1,
}


@pytest.mark.parametrize("kind", FOLDED)
def test_folding_leaves_the_function_alone_and_happens_where_it_can(kind):
    """Float64, off the centre: to 1e-12 of the plain network, whatever reads the convolution's output."""
    risk, theta, evaluated = values_at(Block(kind))
    assert len(evaluated._pairs) == FOLDED[kind]
    assert evaluated.folding_error < 1e-12
    expected = risk.evaluate(theta)
    got = class_means(risk, evaluated, theta)
    torch.testing.assert_close(got["loss"], expected["loss"], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(1 - got["error"], expected["accuracy"], rtol=0, atol=1e-15)


def test_a_fold_that_is_not_checked_would_be_wrong(monkeypatch):
    """The check is what refuses: without it the network that reads the convolution's output twice changes."""
    monkeypatch.setattr(evaluator, "FOLDING_TOLERANCE", float("inf"))
    risk, theta, evaluated = values_at(Block("read twice"))
    assert len(evaluated._pairs) == 2
    assert evaluated.folding_error > 0.01
    assert float((class_means(risk, evaluated, theta)["loss"] - risk.losses(theta)).abs().max()) > 1e-3


def test_pairs_are_found_by_who_feeds_whom():
    model = Block("plain")
    found = find_pairs(model, lambda: model(digits()[0][:2]))
    assert [(pair.convolution, pair.normalisation) for pair in found] == [("conv", "norm"), ("second", "second_norm")]
    assert not any(layer._forward_hooks for layer in model.modules())


@pytest.mark.parametrize("build", [smooth_mlp, digits_convnet])
def test_every_quantity_of_every_example(build):
    """Loss, error and margin of each row, by hand from the logits."""
    risk, theta, evaluated = values_at(build(torch.float64), dtype=torch.float64)
    logits = risk.logits(theta, slice(0, sum(COUNTS)))
    labels = risk.labels
    values = evaluated(theta)
    losses = functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(values["loss"], losses, rtol=1e-11, atol=1e-12)
    for row, (z, y) in enumerate(zip(logits.tolist(), labels.tolist())):
        others = max(value for k, value in enumerate(z) if k != y)
        assert float(values["margin"][row]) == pytest.approx(z[y] - others, abs=1e-11)
        assert float(values["error"][row]) == float(z[y] <= others)
    assert set(values) == {"loss", "error", "margin"}


@pytest.mark.parametrize("name", ["ldam", "vs"])
def test_own_loss_beside_cross_entropy(name):
    loss = build_loss(name, COUNTS)
    loss.name = name
    risk, theta, evaluated = values_at(digits_convnet(torch.float64), loss=loss, dtype=torch.float64)
    got, expected = class_means(risk, evaluated, theta), risk.evaluate(theta)
    torch.testing.assert_close(got["own_loss"], expected["loss"], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(got["loss"], expected["cross_entropy"], rtol=1e-11, atol=1e-12)


def test_named_inputs_and_attention():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, 8)
            self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, tokens, mask):
            x = self.embed(tokens)
            x, _ = self.attend(x, x, x, key_padding_mask=~mask)
            return self.head(x.mean(1))

    with torch.random.fork_rng(devices=[]):
        model = Tokens()
    tokens = torch.randint(0, 7, (12, 5), generator=torch.Generator().manual_seed(0))
    inputs = {"tokens": tokens, "mask": torch.ones(12, 5, dtype=torch.bool)}
    risk = ModelRisk(model, (inputs, torch.arange(12) % 3), dtype=torch.float64)
    evaluated = PointEvaluator(risk)
    got = class_means(risk, evaluated, 1.1 * risk.theta)
    torch.testing.assert_close(got["loss"], risk.losses(1.1 * risk.theta), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("params", ["head", "conv"])
def test_frozen_parameters_stay_where_they_are(params):
    risk, theta, evaluated = values_at(Block("bias"), params=params)
    torch.testing.assert_close(class_means(risk, evaluated, theta)["loss"], risk.losses(theta), rtol=1e-12, atol=0)


def test_the_same_bits_again_and_in_any_order_of_points():
    risk, theta, evaluated = values_at(digits_convnet())
    first = evaluated(theta)["loss"].clone()
    evaluated(risk.theta)
    assert evaluated(theta)["loss"].equal(first)
    assert PointEvaluator(risk)(theta)["loss"].equal(first)


def test_inputs_that_do_not_stay_resident_give_the_same_bits(monkeypatch):
    risk, theta, evaluated = values_at(digits_convnet())
    monkeypatch.setattr(evaluator, "RESIDENT_SHARE", 0.0)
    streamed = PointEvaluator(risk)
    assert streamed._inputs is None
    assert evaluated._inputs is not None
    assert streamed(theta)["loss"].equal(evaluated(theta)["loss"])


def test_chunks_are_even_and_agree_to_rounding(monkeypatch):
    risk, theta, whole = values_at(digits_convnet())
    monkeypatch.setattr(evaluator, "MAX_CHUNK", 5)
    cut = PointEvaluator(risk)
    sizes = [rows.stop - rows.start for rows in cut._chunks]
    assert sum(sizes) == sum(COUNTS)
    assert max(sizes) <= 5
    assert min(sizes) >= 4
    torch.testing.assert_close(cut(theta)["loss"], whole(theta)["loss"], rtol=1e-5, atol=1e-6)


def test_chosen_classes_alone():
    risk, theta, evaluated = values_at(digits_convnet(torch.float64), dtype=torch.float64)
    some = PointEvaluator(risk, classes=[3, 1])
    assert some.classes == (1, 3)
    means = class_means(risk, some, theta)["loss"]
    assert means.isnan().tolist() == [True, False, True, False]
    expected = class_means(risk, evaluated, theta)["loss"][[1, 3]]
    torch.testing.assert_close(means[[1, 3]], expected, rtol=1e-12, atol=0)


def test_preview_is_near_and_says_so():
    """bfloat16 keeps eight bits: a few per cent of a logit, never the same bits as float32."""
    risk, theta, evaluated = values_at(digits_convnet())
    rough = PointEvaluator(risk, precision="preview")
    loss, exact = rough(theta)["loss"], evaluated(theta)["loss"]
    assert 0 < float((loss - exact).abs().max()) < 0.1 * float(exact.max())
    with pytest.raises(LandscapeError, match=r"unknown precision 'half'.*exact, preview"):
        PointEvaluator(risk, precision="half")


def test_recalibrated_buffers_are_those_of_the_risk():
    risk, theta, evaluated = values_at(digits_convnet(torch.float64), dtype=torch.float64)
    values = evaluated(theta, evaluated.buffers_at(theta))
    means = ClassSums.of(evaluated, len(COUNTS)).means(torch.stack(list(values.values())))
    expected = risk.with_batchnorm("recalibrate").losses(theta)
    torch.testing.assert_close(means[0], expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(class_means(risk, evaluated, theta)["loss"], risk.losses(theta), rtol=1e-11, atol=1e-12)


def test_nothing_of_the_risk_or_the_caller_is_touched():
    images, labels = digits()
    model = digits_convnet().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    risk = ModelRisk(model, (images.float(), labels))
    own, state = {n: t.clone() for n, t in risk._model.state_dict().items()}, torch.get_rng_state()
    evaluated = PointEvaluator(risk)
    evaluated(risk.theta + 1, evaluated.buffers_at(risk.theta + 1))
    assert model.training
    for module, kept in ((model, before), (risk._model, own)):
        assert all(kept[name].equal(tensor) for name, tensor in module.state_dict().items())
    assert torch.get_rng_state().equal(state)


# Walks.


def test_a_paired_standard_error_is_that_of_the_differences():
    risk, theta, evaluated = values_at(digits_convnet(torch.float64), dtype=torch.float64)
    lanes = lanes_of(risk, {"0": [1, 0, 0, 0], "mixed": [0.5, 0.3, 0.2, 0.0], "all": [0.25] * 4})
    found = NetworkWalk(risk, lanes).at(theta)["increase_stderr"]
    increase = (evaluated(theta)["loss"] - evaluated(risk.theta)["loss"]).numpy()
    labels = risk.labels.numpy()
    per_class = [increase[labels == c].var(ddof=1) / (labels == c).sum() for c in range(4)]
    expected = np.sqrt((lanes.weights.numpy() ** 2) @ np.array(per_class))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_class_of_one_image_has_no_standard_error_and_neither_has_what_holds_it():
    images, labels = digits(counts=(6, 4, 2, 1))
    risk = ModelRisk(digits_convnet(torch.float64), (images, labels))
    found = NetworkWalk(risk, lanes_of(risk, "classes,all")).at(1.1 * risk.theta)["increase_stderr"]
    assert found.isnan().tolist() == [False, False, False, True, True]


def test_draws_of_one_example_are_averaged_before_the_error_is_taken():
    images, labels = digits(counts=(5, 4, 3, 3))
    twice = images.repeat_interleave(2, 0)
    once = ModelRisk(digits_convnet(torch.float64), (images, labels))
    drawn = ModelRisk(digits_convnet(torch.float64), (twice, labels.repeat_interleave(2)), draws_per_example=2)
    one, other = (NetworkWalk(r, lanes_of(r, None), keep_examples=True).at(1.1 * r.theta) for r in (once, drawn))
    for name in ("loss", "increase_stderr", "example_loss"):
        torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-9)


def test_examples_are_named_by_their_place_in_the_file():
    risk, theta, _ = values_at(digits_convnet(torch.float64), dtype=torch.float64)
    walk = NetworkWalk(risk, lanes_of(risk, "1,3"), keep_examples=True)
    names, losses = walk.example_coordinates(), walk.at(theta)["example_loss"]
    images, labels = digits()
    assert labels[names["example_row"]].tolist() == names["example_class"].tolist()
    everything = ModelRisk(digits_convnet(torch.float64), (images[names["example_row"]], labels[names["example_row"]]))
    torch.testing.assert_close(losses, PointEvaluator(everything)(theta)["loss"].float(), rtol=1e-6, atol=1e-7)


def test_a_risk_of_class_losses_walks_too():
    images, labels = digits(counts=(9, 8, 7, 6))
    risk = ModelRisk(digits_convnet(torch.float64), (images, labels), batchnorm="batch")
    walk = walk_of(risk, lanes_of(risk, "classes"))
    assert isinstance(walk, ClassWalk)
    torch.testing.assert_close(walk.at(risk.theta)["loss"], risk.losses(risk.theta))
    with pytest.raises(LandscapeError, match=r"batchnorm 'both'.*frozen"):
        walk_of(risk, lanes_of(risk, "classes"), policy="both")


@pytest.mark.gpu
def test_a_gpu_captures_the_pass_and_gives_the_numbers_of_the_cpu():
    images, labels = digits(counts=(40, 30, 20, 10), dtype=torch.float32)
    found = {}
    for device in ("cpu", "cuda"):
        risk = ModelRisk(digits_convnet(), (images, labels), device=device)
        evaluated = PointEvaluator(risk)
        theta = risk.theta * 1.1
        found[device] = evaluated(theta)["loss"].cpu()
        assert evaluated(theta)["loss"].cpu().equal(found[device])
        if device == "cuda":
            assert evaluated._replayed.is_capturing
            assert evaluated._replayed._graphs
            moved = evaluated(risk.theta)["loss"].cpu()
            assert not moved.equal(found[device])  # replayed with other weights
    torch.testing.assert_close(found["cpu"], found["cuda"], rtol=1e-4, atol=1e-5)
