"""GLMC against its one-hot formulation in NumPy, and what its two closures are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from method_cases import COUNTS, log_softmax, make_batch, make_setting, same_draws, trunk

from landscape.data.mixing import draw_shares
from landscape.errors import LandscapeError
from landscape.losses import build_loss
from landscape.optimizers import build_optimizer
from landscape.training.methods import build_method


def cosine(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def drawn(batch, *, is_glmc=True):
    """Return lambda, and which pixels the released rule takes from the partners, (4, 4) bool."""
    generator = same_draws(batch)
    lam = draw_shares(1.0, 1, generator).item()
    spans = []
    for _ in range(2):
        side, centre = 4 * np.sqrt(1 - lam), torch.randint(0, 4, (1,), generator=generator).item()
        cut = np.ceil(side).astype(int) if is_glmc else np.floor(side).astype(int)
        spans.append(np.arange(4) >= np.clip(centre - cut // 2, 0, 4))
        spans[-1] &= np.arange(4) < np.clip(centre + cut // 2, 0, 4)
    return lam, spans[0][:, None] & spans[1][None, :]


def by_hand(method, batch, *, epoch, box="glmc"):
    """Return (supervised, all) mean losses: mixed one-hot labels, weights q = 1.2, as the release writes them."""
    model, (lam, is_partner) = method.setting.model, drawn(batch, is_glmc=box == "glmc")
    lam = float(np.float32(lam))  # shares are single precision
    mixed = lam * batch.views[0] + (1 - lam) * batch.partner_views[0]
    cut = batch.views[1].clone()
    cut[:, :, torch.from_numpy(is_partner)] = batch.partner_views[1][:, :, torch.from_numpy(is_partner)]
    weights = 1.0 / np.array(COUNTS) ** 1.2
    weights = weights / weights.sum() * 3
    one_hot = [np.eye(3)[labels.numpy()] for labels in (batch.labels, batch.partner_labels)]
    cut_share = lam if box == "glmc" else 1 - is_partner.mean()
    a, supervised, projected, predicted = 1 - (epoch / method.setting.epochs) ** 2, 0.0, [], []
    for images, share in ((mixed, lam), (cut, cut_share)):
        features = trunk(model, images)
        soft = share * one_hot[0] + (1 - share) * one_hot[1]
        soft_w = share * one_hot[0] * weights + (1 - share) * one_hot[1] * weights
        plain = -(log_softmax(method.classifier(features)) * soft).sum(1).mean()
        balanced = -(log_softmax(model.linear(features)) * soft_w).sum(1).mean()
        supervised += a * plain + (1 - a) * balanced
        projected.append(method.projector(features).detach().numpy())
        predicted.append(method.predictor(method.projector(features)).detach().numpy())
    contrast = -cosine(predicted[0], projected[1]).mean() - cosine(predicted[1], projected[0]).mean()
    return supervised, supervised + method.contrast_weight * contrast


@pytest.mark.parametrize("epoch", [0, 3, 9])
@pytest.mark.parametrize("box", ["glmc", "cutmix"])
def test_losses_against_one_hot_labels(epoch, box):
    setting, batch = make_setting(), make_batch(has_partners=True, seed=epoch)
    method = build_method("glmc", setting, dim=7, box=box, contrast_weight=3.0).double()
    method.start_epoch(epoch)
    closures = method.closures(batch)
    supervised, everything = by_hand(method, batch, epoch=epoch, box=box)
    assert closures.ascent().mean().item() == pytest.approx(supervised, rel=1e-12)
    assert closures.descent().mean().item() == pytest.approx(everything, rel=1e-12)
    assert abs(supervised - everything) > 1e-3


def test_perturbations_come_from_the_supervised_losses_alone():
    method = build_method("glmc", make_setting()).double()
    method.start_epoch(5)
    closures = method.closures(make_batch(has_partners=True))
    own = list(method.projector.parameters())
    trained = [*own, *method.classifier.parameters(), *method.setting.model.parameters()]
    ascent = torch.autograd.grad(closures.ascent().mean(), trained, allow_unused=True)
    descent = torch.autograd.grad(closures.descent().mean(), trained, allow_unused=True)
    assert all(g is None for g in ascent[: len(own)])
    assert all(g is not None for g in (*ascent[len(own) :], *descent))


def test_the_gradient_does_not_pass_through_the_targets():
    """With the predictor at zero the cosines are constant in the projections, unless targets carry gradients too."""
    method = build_method("glmc", make_setting(), contrast_weight=1.0).double()
    batch = make_batch(has_partners=True)
    with torch.no_grad():
        method.predictor[0].weight.zero_()
        method.predictor[0].bias.fill_(1.0)
    closures = method.closures(batch)
    weight = method.projector[0].weight
    (gradient,) = torch.autograd.grad(closures.descent().mean(), [weight])
    assert float(gradient.abs().max()) == 0.0


def test_the_own_classifier_learns_nothing_in_the_first_epoch():
    method = build_method("glmc", make_setting()).double()
    for epoch, is_zero in ((0, True), (1, False)):
        method.start_epoch(epoch)
        closures = method.closures(make_batch(has_partners=True))
        (gradient,) = torch.autograd.grad(closures.descent().mean(), [method.setting.model.linear.weight])
        assert bool((gradient == 0).all()) is is_zero


def test_labels_are_those_of_the_larger_share():
    seen = set()
    for seed in range(6):
        batch = make_batch(has_partners=True, seed=seed)
        share, _ = drawn(batch)
        labels = build_method("glmc", make_setting()).double().closures(batch).labels
        assert torch.equal(labels, batch.labels if share >= 0.5 else batch.partner_labels)
        seen.add(share >= 0.5)
    assert seen == {True, False}


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_any_loss_takes_the_place_of_cross_entropy(head):
    method = build_method("glmc", make_setting(head=head, loss="balanced-softmax"), contrast_weight=0.0).double()
    method.start_epoch(9)
    batch = make_batch(has_partners=True)
    share, is_partner = drawn(batch)
    cut = torch.where(torch.from_numpy(is_partner), batch.partner_views[1], batch.views[1])
    loss, total = build_loss("balanced-softmax", COUNTS).double(), 0.0
    weights = method.class_weights
    for images in (share * batch.views[0] + (1 - share) * batch.partner_views[0], cut):
        features = trunk(method.setting.model, images)
        for part, labels in ((share, batch.labels), (1 - share, batch.partner_labels)):
            total = total + part * 0.19 * loss(method.classifier(features), labels)
            total = total + part * 0.81 * weights[labels] * loss(method.setting.model.linear(features), labels)
    torch.testing.assert_close(method.closures(batch).descent(), total, rtol=1e-5, atol=1e-5)


def test_batches_without_partners_are_refused():
    with pytest.raises(LandscapeError, match="glmc mixes each batch with a second one"):
        build_method("glmc", make_setting()).closures(make_batch())


def test_steps_move_everything_that_is_trained():
    method = build_method("glmc", make_setting(), dim=5).double()
    params = [*method.setting.model.parameters(), *method.parameters()]
    before = [p.detach().clone() for p in params]
    optimizer = build_optimizer("sam", params, base_options={"lr": 0.1}, rho=0.05)
    for epoch in (0, 5):
        method.start_epoch(epoch)
        closures = method.closures(make_batch(has_partners=True, seed=epoch))
        optimizer.step(closures.descent, closures.labels)
        method.after_step()
    assert not any(torch.equal(a, b) for a, b in zip(before, params))
