"""A batch in pieces, losses of its own for the ascent, and mixed precision: what the engine does around every rule."""

from __future__ import annotations

import pytest
import torch
from optimizer_cases import OPTIONS, SGD_OPTIONS, build, closure_of, criterion, make_batch, make_model, weights
from torch import nn

from landscape.optimizers import OPTIMIZERS, build_optimizer
from landscape.optimizers.passes import Passes
from landscape.optimizers.precision import Arithmetic
from landscape.processes import Processes

every_method = pytest.mark.parametrize("name", OPTIMIZERS)
# Sizes of the pieces of a batch of 12; one of them holds head classes only, one a single example.
CUTS = {1: [12], 2: [7, 5], 3: [2, 9, 1]}


def pieces_of(model, x, y, sizes):
    return [closure_of(model, a, b) for a, b in zip(x.split(sizes), y.split(sizes))]


def trained(name, sizes, num_steps=5, **changes):
    model, (x, y) = make_model(), make_batch()
    optimizer = build(name, model, **changes)
    losses = []
    for step in range(num_steps):
        if step == 2:
            optimizer.start_epoch(2, 4)
        closure = closure_of(model, x, y) if sizes is None else pieces_of(model, x, y, sizes)
        losses.append(optimizer.step(closure, labels=y))
    return weights(model), torch.stack(losses), optimizer


@every_method
@pytest.mark.parametrize("num_pieces", CUTS)
def test_a_batch_in_pieces_makes_the_step_of_the_whole_batch(name, num_pieces):
    whole, whole_losses, _ = trained(name, None)
    cut, cut_losses, optimizer = trained(name, CUTS[num_pieces])
    torch.testing.assert_close(cut, whole, rtol=1e-12, atol=1e-13)
    # GNM and the like are evaluated first at perturbed weights, the others at theta: the same points either way.
    torch.testing.assert_close(cut_losses, whole_losses, rtol=1e-12, atol=1e-13)
    assert optimizer.num_backwards > 0


def test_pieces_are_not_the_mean_of_their_means():
    """The weights of the pieces matter: equal ones would be wrong by far more than the tolerance above."""
    model, (x, y) = make_model(), make_batch()
    halves = [torch.autograd.grad(closure().mean(), model[0].weight)[0] for closure in pieces_of(model, x, y, [2, 10])]
    (whole,) = torch.autograd.grad(closure_of(model, x, y)().mean(), model[0].weight)
    assert (sum(halves) / 2 - whole).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "passes"), [("sam", (2, 2)), ("imbsam", (2, 3)), ("ssesam", (3, 4)), ("ccsam", (2, 1))]
)
def test_pieces_run_as_often_as_the_whole_batch_where_their_graphs_need_not_stay(name, passes):
    """CC-SAM's perturbations need all pieces first, so its one forward pass becomes two."""
    model, (x, y) = make_model(), make_batch()
    optimizer = build(name, model)
    optimizer.step(pieces_of(model, x, y, CUTS[3]), labels=y)
    assert (optimizer.num_forwards, optimizer.num_backwards) == passes


@every_method
def test_no_graph_of_a_piece_outlives_its_passes(name):
    """When a piece runs, at most the one before it is still saved for a backward pass."""
    model, (x, y) = make_model(), make_batch()
    alive = {"now": 0, "most": 0}

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, hidden):
            marker = Marker(alive)
            ctx.marker = marker
            return hidden.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    class Marker:
        def __init__(self, counts):
            counts["now"] += 1
            counts["most"] = max(counts["most"], counts["now"])
            self.counts = counts

        def __del__(self):
            self.counts["now"] -= 1

    def closure(a, b):
        return lambda: criterion(model[2](Counted.apply(model[1](model[0](a)))), b)

    optimizer = build(name, model)
    optimizer.step([closure(a, b) for a, b in zip(x.split(3), y.split(3))], labels=y)
    assert alive["now"] == 0
    assert alive["most"] <= 2


@every_method
def test_an_exception_in_a_piece_restores_the_weights(name):
    model, (x, y) = make_model(), make_batch()
    before = weights(model)
    closures = pieces_of(model, x, y, [6, 6])

    def failing():
        raise RuntimeError("disk")

    for position in (0, 1):
        optimizer = build(name, model)
        with pytest.raises(RuntimeError, match="disk"):
            optimizer.step([failing if k == position else c for k, c in enumerate(closures)], labels=y)
        assert weights(model).equal(before)


def test_pieces_and_labels_must_fit():
    model, (x, y) = make_model(), make_batch()
    with pytest.raises(ValueError, match="got 5 labels and losses up to number 7"):
        build("sam", model).step(pieces_of(model, x, y, [7, 5]), labels=y[:5])
    with pytest.raises(ValueError, match="as many closures of the ascent as of the descent"):
        build("sam", model).step(pieces_of(model, x, y, [7, 5]), y, closure_of(model, x, y))
    with pytest.raises(ValueError, match="at least one"):
        build("sam", model).step([], y)


# ---- losses of its own for the ascent -----------------------------------------------------------------------------


def other_closure(model, x, y):
    """Another loss of the same outputs."""
    return lambda: (model(x)[torch.arange(len(y)), y] - 1) ** 2


def gradient_of(closure, model, mask=None):
    losses = closure()
    objective = losses.mean() if mask is None else (losses * mask).mean()
    return torch.autograd.grad(objective, list(model.parameters()))


def moved_gradient(closure, model, direction, rho, mask=None):
    norm = sum((g**2).sum() for g in direction) ** 0.5
    with torch.no_grad():
        for p, g in zip(model.parameters(), direction):
            p += rho * g / norm
    gradient = gradient_of(closure, model, mask)
    with torch.no_grad():
        for p, g in zip(model.parameters(), direction):
            p -= rho * g / norm
    return gradient


@pytest.mark.parametrize("sizes", [None, [7, 5]], ids=["whole", "pieces"])
@pytest.mark.parametrize("name", ["sgd", "sam", "imbsam"])
def test_the_ascent_takes_its_own_losses_and_the_step_the_others(name, sizes):
    model, other, (x, y) = make_model(), make_model(), make_batch()
    optimizer = build(name, model, base_options={"lr": 0.1})
    if sizes is None:
        optimizer.step(closure_of(model, x, y), y, other_closure(model, x, y))
    else:
        ascents = [other_closure(model, a, b) for a, b in zip(x.split(sizes), y.split(sizes))]
        optimizer.step(pieces_of(model, x, y, sizes), y, ascents)
    descent, ascent = closure_of(other, x, y), other_closure(other, x, y)
    tail = (y >= 2).double()
    if name == "sgd":
        expected = gradient_of(descent, other)
    elif name == "sam":
        expected = moved_gradient(descent, other, gradient_of(ascent, other), OPTIONS["sam"]["rho"])
    else:
        direction = gradient_of(ascent, other, tail)
        moved = moved_gradient(descent, other, direction, OPTIONS["imbsam"]["rho"], 2 * tail)
        expected = [a + b for a, b in zip(gradient_of(descent, other, 1 - tail), moved)]
    after = torch.cat([(p - 0.1 * g).detach().flatten() for p, g in zip(other.parameters(), expected)])
    torch.testing.assert_close(weights(model), after, rtol=1e-10, atol=1e-12)


@every_method
def test_an_ascent_of_the_same_losses_changes_nothing(name):
    model, other, (x, y) = make_model(), make_model(), make_batch()
    for _ in range(2):
        build(name, model).step(closure_of(model, x, y), y, closure_of(model, x, y))
        build(name, other).step(closure_of(other, x, y), y)
    torch.testing.assert_close(weights(model), weights(other), rtol=1e-12, atol=1e-13)


# ---- mixed precision ----------------------------------------------------------------------------------------------


def seen_types(name, precision):
    model, (x, y) = make_model().float(), make_batch()
    optimizer = build(name, model, precision=precision)
    types = set()

    def closure():
        logits = model(x.float())
        types.add(logits.dtype)
        return criterion(logits.float(), y)

    loss = optimizer.step(closure, labels=y)
    return model, types, loss


@every_method
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_passes_run_in_the_precision_and_everything_else_in_float32(name, precision):
    reference, _, _ = seen_types(name, "float32")
    model, types, loss = seen_types(name, precision)
    assert types == {getattr(torch, precision)}
    assert loss.dtype == weights(model).dtype == torch.float32
    start = weights(make_model().float())
    # bfloat16 has 8 bits: its step points where the exact one does, to a few per cent.
    cosine = torch.cosine_similarity(weights(model) - start, weights(reference) - start, dim=0)
    assert cosine > 0.98


@pytest.mark.parametrize("name", ["sgd", "sam", "gnm", "imbsam"])
def test_loss_scaling_changes_a_step_by_nothing_but_powers_of_two(name):
    """The scale is a power of two: in a network that autocast leaves alone the scaled step has the same bits."""
    results = []
    for precision in ("float32", "float16"):
        model, (x, y) = make_model().float(), make_batch()
        optimizer = build(name, model, precision=precision)

        def closure(model=model, x=x, y=y):
            with torch.autocast("cpu", enabled=False):
                return criterion(model(x.float()), y)

        for _ in range(3):
            optimizer.step(closure, labels=y)
        results.append(weights(model))
    assert results[0].equal(results[1])


@pytest.mark.parametrize("when", [1, 2])
def test_a_step_with_a_gradient_that_is_not_finite_is_left_out(when):
    """In the pass at theta, and in the perturbed one; BatchNorm's statistics and the weights stay finite."""
    model, (x, y) = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)), make_batch()
    optimizer = build_optimizer("sam", model.parameters(), base_options=SGD_OPTIONS, precision="float16")
    calls = []

    def closure():
        calls.append(1)
        losses = criterion(model(x.float()).float(), y)
        return losses * (1e38 if len(calls) == when else 1.0)

    optimizer.step(closure, y)
    scale = optimizer.arithmetic.scaler.get_scale()
    assert scale == 2.0**15
    state = torch.cat([weights(model), model[1].running_mean, model[1].running_var])
    assert state.isfinite().all()
    before = weights(model)
    optimizer.step(closure, y)
    assert not weights(model).equal(before)


def test_a_resumed_run_keeps_its_loss_scale():
    model, (x, y) = make_model().float(), make_batch()
    optimizer = build("sam", model, precision="float16")
    optimizer.step(lambda: criterion(model(x.float()), y) * 1e38, labels=y)
    resumed = build("sam", make_model().float(), precision="float16")
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.arithmetic.scaler.get_scale() == optimizer.arithmetic.scaler.get_scale() == 2.0**15


def test_a_callers_autocast_does_not_see_weights_of_another_point():
    """Autocast caches casts of weights; a perturbed pass within one context must not take those of the pass before."""
    model, other, (x, y) = make_model().float(), make_model().float(), make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        build("sam", model, rho=1.0).step(closure_of(model, x.float(), y), y)
    build("sam", other, rho=1.0, precision="bfloat16").step(closure_of(other, x.float(), y), y)
    torch.testing.assert_close(weights(model), weights(other), rtol=1e-3, atol=1e-3)


def test_an_unknown_precision_is_named():
    with pytest.raises(ValueError, match="float8"):
        build("sam", make_model(), precision="float8")


class AsOne(Processes):
    """A process among several whose sum over all is its own."""

    def sum_(self, tensor):
        return tensor


@pytest.mark.parametrize("shape", [(), (3,), (3, 2)])
def test_the_rows_of_a_process_stand_at_their_places_in_the_whole_batch(shape):
    rows = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    passes = Passes([], num_pieces=1, arithmetic=Arithmetic("float32", "cpu"), processes=AsOne(1, 2), rows=(2, 5))
    whole = passes.whole([rows[:1], rows[1:]])
    assert whole.shape == (5, *shape)
    assert whole[2:4].equal(rows)
    assert not whole[:2].any()
    assert not whole[4:].any()
