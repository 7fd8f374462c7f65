"""Major-to-minor translation against a loop over single images."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from method_cases import COUNTS, MEAN, STD, log_softmax, make_batch, make_setting, same_draws

from landscape.training.methods import MiniBatch, build_method


def after_warm_up(setting, **options):
    method = build_method("m2m", setting, **{"warm": 0.1} | options).double()
    method.start_epoch(1)
    return method


def one_image(network_g, network_f, pixels, source, target, method):
    """Translate one image (1, 1, 4, 4): the paper's algorithm 1, with both networks in evaluation mode."""
    for _ in range(method.num_steps):
        x = pixels.clone().requires_grad_(True)
        normalised = (x - MEAN[0]) / STD[0]
        loss = -torch.log(torch.softmax(network_g(normalised), 1)[0, target])
        loss = loss + method.lam * network_f(normalised)[0, source]
        (gradient,) = torch.autograd.grad(loss, x)
        length = math.sqrt(float((gradient**2).sum()))
        pixels = (pixels - method.step_size * gradient / (length + 1e-10)).clamp(0, 1).detach()
    share = float(np.exp(log_softmax(network_g((pixels - MEAN[0]) / STD[0]))[0, target]))
    return pixels, share


def transcription(method, network_g, batch):
    network_g, network_f = copy.deepcopy(network_g).eval(), copy.deepcopy(method.setting.model).eval()
    images, labels, size = batch.views[0], batch.labels.tolist(), len(batch.labels)
    generator = same_draws(batch)
    uniform = torch.rand(3, size, dtype=torch.float64, generator=generator).numpy()
    noise = torch.rand(images.shape, generator=generator).double() - 0.5
    plans = {}
    for i, target in enumerate(labels):
        if uniform[0, i] < COUNTS[target] / max(COUNTS):
            continue
        q = [1 - method.beta ** max(COUNTS[y] - COUNTS[target], 0) for y in labels]
        if sum(q) > 0:
            j = next(j for j in range(size) if sum(q[: j + 1]) > uniform[1, i] * sum(q))
            plans[i] = (j, q[j])
    wanted = list(plans)
    if method.start == "channel":  # one channel: the length of the noise of all wanted images together
        total = math.sqrt(sum(float((noise[i] ** 2).sum()) for i in wanted))
        noise = noise * min(1.0, 0.5 / (total + 1e-7))  # torch's renorm adds 1e-7
    result, num_kept = images.clone(), 0
    for i, (j, q) in plans.items():
        pixels = images[j : j + 1] * STD[0] + MEAN[0]
        if method.start == "image":
            own = noise[i] * min(1.0, 0.5 / (float(noise[i].norm()) + 1e-7))
        else:
            own = noise[i] if method.start == "channel" else torch.zeros_like(noise[i])
        start = (pixels + own).clamp(0, 1) if method.start != "none" else pixels
        pixels, share = one_image(network_g, network_f, start, labels[j], labels[i], method)
        is_sure = share >= method.gamma if method.bound == "probability" else -math.log(share) <= method.gamma
        if uniform[2, i] < q and is_sure:
            result[i], num_kept = ((pixels - MEAN[0]) / STD[0])[0], num_kept + 1
    return result, len(plans), num_kept


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.9, "gamma": 0.3},
        {"beta": 0.97, "gamma": 0.3, "start": "image", "lam": 0.1},
        {"beta": 0.9, "gamma": 1.1, "start": "none", "bound": "loss", "step_size": 0.3},
    ],
    ids=["released", "image-noise", "paper-bound"],
)
@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_translations_against_a_loop_over_images(options, model):
    setting, batch = make_setting(model=model), make_batch(24, seed=3)
    method = after_warm_up(setting, **options)
    network_g = copy.deepcopy(setting.model)
    with torch.no_grad():  # training goes on, g does not
        for parameter in setting.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)).double())
    modes = [m.training for m in setting.model.modules()]
    expected, num_wanted, num_kept = transcription(method, network_g, batch)
    got = method.translated(batch.views[0], batch.labels, batch.generator)
    assert 0 < num_kept < num_wanted < 24
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    assert [m.training for m in setting.model.modules()] == modes
    assert all(p.grad is None for p in setting.model.parameters())


def test_what_is_replaced_and_from_where():
    """With beta 0 and no bound every draw is kept: the share is 1 - n_k / n_max, the sources are more frequent classes."""
    setting = make_setting()
    method = after_warm_up(setting, beta=0.0, gamma=0.0, num_steps=0, start="none")
    labels = torch.arange(3).repeat(400)
    images = labels.double().view(-1, 1, 1, 1).expand(-1, 1, 4, 4) / 10  # each shows its class
    got = method.translated(images, labels, torch.Generator().manual_seed(0))[:, 0, 0, 0] * 10
    shown = got.round().long()
    for k in range(3):
        sources = shown[labels == k]
        share = 1 - COUNTS[k] / max(COUNTS)
        replaced = (sources != k).double().mean().item()
        assert abs(replaced - share) <= 5 * math.sqrt(share * (1 - share) / 400)
        assert bool((sources <= k).all())


def test_warm_up_is_plain_training_on_the_usual_examples():
    setting, batch = make_setting(), make_batch()
    method = build_method("m2m", setting, warm=0.3, beta=0.0, gamma=0.0).double()
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
    plain = build_method("plain", setting).closures(batch).descent()
    for epoch in range(10):
        method.start_epoch(epoch)
        order = method.example_order(labels, torch.Generator().manual_seed(0))
        assert (order is None) == (epoch < 3)
    assert method.phases == (0, 3)
    method.start_epoch(2)
    assert torch.equal(method.closures(batch).descent(), plain)
    method.start_epoch(3)
    assert not torch.equal(method.closures(batch).descent(), plain)


def test_the_classifier_is_the_network_at_the_end_of_the_warm_up():
    setting = make_setting()
    method = build_method("m2m", setting, warm=0.2).double()
    for epoch, is_same in ((0, False), (1, False), (2, True), (3, False)):
        with torch.no_grad():
            setting.model.linear.weight += 0.1
        method.start_epoch(epoch)
        assert torch.equal(method.translator.linear.weight, setting.model.linear.weight) is is_same
    method.train()
    assert not any(m.training for m in method.translator.modules())
    assert not [name for name, p in method.named_parameters() if p.requires_grad]


def test_labels_stay_those_of_the_class_that_was_wanted():
    setting, batch = make_setting(), make_batch()
    closures = after_warm_up(setting, gamma=0.0).closures(MiniBatch(batch.views, batch.labels, batch.generator))
    assert closures.labels is batch.labels
    assert torch.equal(closures.descent(), closures.descent())
