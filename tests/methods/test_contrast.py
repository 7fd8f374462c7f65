"""PaCo and GPaCo against loops over examples and a plain loop of steps."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from method_cases import COUNTS, log_softmax, make_batch, make_setting, trunk, twin
from torch.nn import functional

from landscape.losses import build_loss
from landscape.optimizers import build_optimizer
from landscape.training.methods import build_method
from landscape.training.methods.contrast import ExampleQueue, parametric_contrastive_loss

PIECES = (slice(0, 4), slice(4, 10))
SHARES = torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)


def loop_loss(embeddings, labels, centres, *, temperature, weights, smooth=0.0, form="released"):
    """The loss of each anchor, one by one, in NumPy float64 as the release computes it, or as the paper prints it."""
    embeddings, centres = (np.asarray(t.detach()) for t in (embeddings, centres))
    labels, shares = labels.tolist(), np.array(COUNTS) / sum(COUNTS)
    alpha, beta, gamma = weights
    num_anchors, num_classes = centres.shape
    losses = []
    for i in range(num_anchors):
        scores, present, positive = [], [], []
        for c in range(num_classes):
            own = 1 - smooth if c == labels[i] else smooth / (num_classes - 1)
            scores.append(centres[i, c] + np.log(shares[c] + 1e-9))
            present.append(1.0)
            positive.append(beta * own)
        for j in range(len(embeddings)):
            scores.append(embeddings[i] @ embeddings[j] / temperature)
            present.append(0.0 if j == i else gamma)
            positive.append(alpha if j != i and labels[j] == labels[i] else 0.0)
        scores, present, positive = (np.array(values) for values in (scores, present, positive))
        if form == "released":
            shifted = scores - scores.max()
            logs = shifted - np.log((np.exp(shifted) * present).sum() + 1e-12)
            losses.append(-(positive * logs).sum() / positive.sum())
        else:
            largest = scores[present > 0].max()
            logs = scores - largest - np.log((np.exp(scores - largest) * present).sum())
            losses.append(-(positive * logs).sum())
    return np.array(losses)


def make_examples(num_anchors=7, num_others=13, dim=5):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(num_anchors + num_others, dim, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 3, (num_anchors + num_others,), generator=generator)
    labels[-4:] = torch.tensor([-1, 700, 999, 2])  # what the released queue starts with belongs to no class
    centres = torch.randn(num_anchors, 3, dtype=torch.float64, generator=generator)
    return functional.normalize(vectors, dim=1), labels, centres


@pytest.mark.parametrize("form", ["released", "paper"])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("weights", [(0.01, 1.0, 1.0), (0.3, 2.0, 0.5), (1.0, 0.7, 0.0)])
@pytest.mark.parametrize("smooth", [0.0, 0.1])
def test_loss_against_a_loop(form, temperature, weights, smooth):
    embeddings, labels, centres = make_examples()
    options = {"temperature": temperature, "weights": weights, "smooth": smooth, "form": form}
    got = parametric_contrastive_loss(embeddings, labels, centres, class_shares=SHARES, **options)
    np.testing.assert_allclose(got, loop_loss(embeddings, labels, centres, **options), rtol=1e-10)


@pytest.mark.parametrize("form", ["released", "paper"])
def test_without_examples_it_is_logit_adjusted_cross_entropy(form):
    embeddings, labels, centres = make_examples()
    options = {"class_shares": SHARES, "temperature": 1.0, "weights": (0.0, 1.0, 0.0), "form": form}
    got = parametric_contrastive_loss(embeddings, labels, centres, **options)
    expected = build_loss("logit-adjusted", COUNTS)(centres, labels[:7])
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-7)  # the release adds 1e-9 to the shares


def test_the_released_floor_matters_at_a_low_temperature():
    """An anchor's own score, 1/T, is subtracted though it is not in the sum: 1e-12 is then not small."""
    vectors = torch.eye(4, dtype=torch.float64)
    labels, centres = torch.arange(4) % 3, torch.zeros(1, 3, dtype=torch.float64)
    options = {"class_shares": SHARES, "temperature": 0.03, "weights": (0.0, 1.0, 1.0)}
    released, paper = (
        parametric_contrastive_loss(vectors, labels, centres, form=form, **options) for form in ("released", "paper")
    )
    total = 3 + (SHARES + 1e-9).sum()
    own = torch.log(SHARES[0] + 1e-9)
    torch.testing.assert_close(paper[0], torch.log(total) - own)
    torch.testing.assert_close(released[0], torch.log(total + 1e-12 * np.exp(1 / 0.03)) - own)
    assert released[0] - paper[0] > 1


def test_queue_is_a_ring():
    queue = ExampleQueue(5, 2, num_labels=1000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(queue.embeddings.norm(dim=0), torch.ones(2))  # coordinates, not rows, as released
    expected = list(zip(queue.embeddings.tolist(), queue.labels.tolist()))
    place = 0
    for size in (2, 2, 3, 5, 1, 7):
        rows = torch.rand(size, 2, generator=torch.Generator().manual_seed(size))
        labels = torch.arange(size) + 10 * size
        queue.push(rows, labels)
        for row, label in list(zip(rows.tolist(), labels.tolist()))[-5:]:
            expected[place % 5] = (row, label)
            place += 1
        assert list(zip(queue.embeddings.tolist(), queue.labels.tolist())) == expected


def batch_norm(x, layer, state):
    mean, variance = x.mean(0), x.var(0, unbiased=False)
    state[:] = [0.9 * state[0] + 0.1 * mean.detach(), 0.9 * state[1] + 0.1 * x.var(0).detach()]
    return (x - mean) / torch.sqrt(variance + layer.eps) * layer.weight + layer.bias


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


def paco_by_hand(setting, projector, queue, batches, *, rho, momentum=0.9):
    """Five steps of PaCo, SAM around it if rho is positive: lists, loops, and the loss written out once more."""
    model, temperature, alpha, lr = setting.model, 0.2, 0.05, 0.1
    keyed = [copy.deepcopy(model), copy.deepcopy(projector)]
    ring = list(zip(queue.embeddings.tolist(), queue.labels.tolist()))
    params = [*model.parameters(), *projector.parameters()]
    place = 0

    def embedded(network, layers, images):
        first, norm, _, last = layers
        features = trunk(network, images)
        hidden = torch.relu(batch_norm(features @ first.weight.T + first.bias, norm, [0, 0]))
        return features, unit(hidden @ last.weight.T + last.bias)

    for batch in batches:
        with torch.no_grad():
            for old, new in zip([p for m in keyed for p in m.parameters()], params):
                old.copy_(momentum * old + (1 - momentum) * new)
            _, keys = embedded(*keyed, batch.views[1])
        everything = torch.tensor([label for _, label in ring])
        others = torch.cat([keys, torch.tensor([row for row, _ in ring], dtype=torch.float64)])
        labels = torch.cat([batch.labels, batch.labels, everything])

        def loss(batch=batch, others=others, labels=labels):
            features, queries = embedded(model, projector, batch.views[0])
            logits = features @ model.linear.weight.T + model.linear.bias + torch.log(SHARES + 1e-9)
            vectors, total = torch.cat([queries, others]), 0.0
            for i, y in enumerate(batch.labels.tolist()):
                rest = [j for j in range(len(labels)) if j != i]
                scores = torch.cat([logits[i], vectors[rest] @ queries[i] / temperature])
                logs = scores - torch.logsumexp(scores, 0)
                friends = [3 + k for k, j in enumerate(rest) if labels[j] == y]
                total = total - (logs[y] + alpha * logs[friends].sum()) / (1 + alpha * len(friends))
            return total / len(batch.labels)

        start = [p.detach().clone() for p in params]
        if rho:
            gradient = torch.autograd.grad(loss(), params)
            norm = torch.sqrt(sum((g**2).sum() for g in gradient))
            with torch.no_grad():
                for p, g in zip(params, gradient):
                    p.add_(rho * g / (norm + 1e-12))
        gradient = torch.autograd.grad(loss(), params)
        with torch.no_grad():
            for p, s, g in zip(params, start, gradient):
                p.copy_(s - lr * g)
        for row, label in zip(keys.tolist(), batch.labels.tolist()):
            ring[place % len(ring)] = (row, label)
            place += 1
    return params


@pytest.mark.parametrize("rho", [0.0, 0.2])
def test_five_steps_of_paco_against_a_plain_loop(rho):
    setting = make_setting()
    options = {"alpha": 0.05, "temperature": 0.2, "momentum": 0.9, "queue": 17, "dim": 6}
    method = build_method("paco", setting, **options).double()
    batches = [make_batch(10, seed=s) for s in range(5)]
    by_hand = make_setting()
    expected = paco_by_hand(
        by_hand, copy.deepcopy(method.projector), method.queue, [make_batch(10, seed=s) for s in range(5)], rho=rho
    )
    params = [*setting.model.parameters(), *(p for p in method.parameters() if p.requires_grad)]
    optimizer = build_optimizer(
        "sam" if rho else "sgd", params, base_options={"lr": 0.1}, **({"rho": rho} if rho else {})
    )
    before = twin(setting)
    for batch in batches:
        closures = method.closures(batch)
        optimizer.step(closures.descent, closures.labels)
        method.after_step()
    assert len(params) == len(expected)
    for got, want in zip(params, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-8)
    assert not torch.allclose(before.linear.weight, setting.model.linear.weight, atol=1e-3)
    assert int(method.queue.place) == 50 % 17


@pytest.mark.parametrize("name", ["paco", "gpaco"])
def test_the_queue_takes_every_piece_of_a_batch_and_the_copy_moves_once(name):
    setting, whole = make_setting(), make_batch(10)
    method = build_method(name, setting, queue=20, dim=6).double()
    parts = [replace(whole, views=tuple(v[s] for v in whole.views), labels=whole.labels[s]) for s in PIECES]
    if name == "paco":
        with torch.no_grad():
            setting.model.linear.weight += 1
        before = method.key_model.linear.weight.clone()
    for closures in [method.closures(part) for part in parts]:
        closures.descent()
    method.after_step()
    assert int(method.queue.place) == 10
    assert torch.equal(method.queue.labels[:10], whole.labels)
    if name == "paco":
        moved = 0.999 * before + (1 - 0.999) * setting.model.linear.weight
        torch.testing.assert_close(method.key_model.linear.weight, moved)


def test_gpaco_averages_both_views_as_anchors():
    setting, batch = make_setting(), make_batch(9)
    method = build_method("gpaco", setting, queue=20, dim=6, smooth=0.1, alpha=0.1).double()
    earlier = method.queue.embeddings.clone()
    closures = method.closures(batch)
    losses = closures.descent()
    closures.descent()  # a second point
    embeddings, logits = [], []
    for view in batch.views:
        hidden = trunk(setting.model, view)
        logits.append(setting.model.linear(hidden))
        for layer in (0, 2, 4):
            hidden = hidden @ method.projector[layer].weight.T + method.projector[layer].bias
            hidden = torch.relu(hidden) if layer < 4 else hidden
        embeddings.append(unit(hidden))
    labels = torch.cat([batch.labels, batch.labels, method.queue.labels])
    expected = loop_loss(
        torch.cat([*embeddings, earlier]),
        labels,
        torch.cat(logits),
        temperature=0.05,
        weights=(0.1, 1.0, 1.0),
        smooth=0.1,
    )
    np.testing.assert_allclose(losses.detach(), expected.reshape(2, 9).mean(0), rtol=1e-7)
    method.after_step()
    torch.testing.assert_close(method.queue.embeddings[:9], embeddings[1].detach())
    assert torch.equal(method.queue.embeddings[9:], earlier[9:])
    assert log_softmax(logits[0]).shape == (9, 3)
