"""Mixup and CutMix: the formula, Beta's moments, the released rectangles, no global generator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from landscape.data.mixing import blend, cutmix, draw_shares, mixup, paste
from landscape.errors import LandscapeError
from landscape.randomness import stream

IMAGES = torch.randn(12, 3, 9, 14, generator=stream(0, "test/images"))
LABELS = torch.arange(12)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_follow_beta(alpha):
    shares = draw_shares(alpha, 20_000, stream(0, "shares"))
    assert (shares.dtype, shares.shape) == (torch.float64, (20_000,))
    distance = stats.kstest(shares.numpy(), stats.beta(alpha, alpha).cdf).statistic
    assert distance < 1.95 / math.sqrt(20_000)  # the 0.1 % point of Kolmogorov's distribution
    assert torch.equal(shares, draw_shares(alpha, 20_000, stream(0, "shares")))
    assert not torch.equal(shares, draw_shares(alpha, 20_000, stream(0, "others")))


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_without_mixing(mix):
    mixed = mix(IMAGES, LABELS, 0.0, stream(0, "mix"))
    assert torch.equal(mixed.images, IMAGES)
    assert mixed.shares.tolist() == [1.0] * 12


@pytest.mark.parametrize("mix", [mixup, cutmix])
@pytest.mark.parametrize("per_example", [False, True])
def test_draws(mix, per_example):
    state = torch.get_rng_state()
    mixed = mix(IMAGES, LABELS, 1.0, stream(0, "mix"), per_example=per_example)
    assert (len(mixed.shares.unique()) > 6) if per_example else (len(mixed.shares.unique()) == 1)
    assert sorted(mixed.partner_labels.tolist()) == list(range(12))
    assert torch.equal(mixed.labels, LABELS)
    again = mix(IMAGES, LABELS, 1.0, stream(0, "mix"), per_example=per_example)
    assert all(torch.equal(a, b) for a, b in zip(mixed, again))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("per_example", [False, True])
def test_mixup_against_a_loop(per_example):
    mixed = mixup(IMAGES.double(), LABELS, 1.0, stream(0, "mix"), per_example=per_example)
    for i, (partner, share) in enumerate(zip(mixed.partner_labels.tolist(), mixed.shares.double().tolist())):
        expected = share * IMAGES[i].double() + (1 - share) * IMAGES[partner].double()
        torch.testing.assert_close(mixed.images[i], expected, rtol=1e-12, atol=1e-12)


def released_box(size, share, centre, *, glmc):
    """One rectangle: rows, columns, and the share that is said to be left."""
    spans, area = [], 1.0
    for length, middle in zip(size, centre):
        side = length * math.sqrt(1 - share)
        side = math.ceil(side) if glmc else int(side)
        low, high = np.clip(middle - side // 2, 0, length), np.clip(middle + side // 2, 0, length)
        spans.append(slice(low, high))
        area *= (high - low) / length
    return *spans, share if glmc else 1 - area


@pytest.mark.parametrize("box", ["released", "glmc"])
def test_cutmix_against_a_loop(box):
    shares = draw_shares(1.0, 12, stream(0, "shares"))
    centres = torch.stack([torch.randint(0, n, (12,), generator=stream(0, f"centres/{n}")) for n in (9, 14)])
    partners = IMAGES.flip(0)
    given = {"partners": partners, "partner_labels": LABELS.flip(0)}
    mixed = paste(IMAGES, LABELS, **given, shares=shares, centres=centres, box=box)
    for i in range(12):
        rows, columns, share = released_box((9, 14), float(shares[i]), centres[:, i].tolist(), glmc=box == "glmc")
        expected = IMAGES[i].clone()
        expected[:, rows, columns] = partners[i, :, rows, columns]
        assert torch.equal(mixed.images[i], expected)
        assert float(mixed.shares[i]) == pytest.approx(share, rel=1e-6)
    assert torch.equal(mixed.partner_labels, LABELS.flip(0))


def test_the_share_of_cutmix_is_what_is_left_of_the_image():
    marked, generator = torch.arange(12.0).view(12, 1, 1, 1).expand(12, 1, 32, 32), stream(0, "cut")
    for _ in range(20):
        mixed = cutmix(marked, LABELS, 1.0, generator, per_example=True)
        left = (mixed.images == marked).double().mean((1, 2, 3))
        own = mixed.partner_labels == LABELS
        torch.testing.assert_close(left[~own].float(), mixed.shares[~own])


def test_centres_are_any_pixel():
    shares, generator = torch.full((4000,), 1 - (2.01 / 9) ** 2, dtype=torch.float64), stream(0, "centres")
    rows, columns = (torch.randint(0, n, (4000,), generator=generator) for n in (9, 14))
    blank = torch.zeros(4000, 1, 9, 14)
    given = {"partners": blank + 1, "partner_labels": torch.zeros(4000)}
    mixed = paste(blank, torch.zeros(4000), **given, shares=shares, centres=torch.stack([rows, columns]))
    assert float(mixed.images.sum((0, 1)).min()) > 0


def test_types_of_the_images_stay():
    images = IMAGES.to(torch.bfloat16)
    assert mixup(images, LABELS, 1.0, stream(0, "mix")).images.dtype == torch.bfloat16
    assert cutmix(images, LABELS, 1.0, stream(0, "mix")).images.dtype == torch.bfloat16
    given = {"partners": IMAGES.flip(0), "partner_labels": LABELS.flip(0)}
    half = blend(IMAGES, LABELS, **given, shares=torch.full((12,), 0.5))
    torch.testing.assert_close(half.images, (IMAGES + IMAGES.flip(0)) / 2)


def test_wrong_options():
    for alpha in (-1.0, float("nan")):
        with pytest.raises(LandscapeError, match=f"alpha must be a finite number of at least 0, got {alpha}"):
            mixup(IMAGES, LABELS, alpha, stream(0, "mix"))
    with pytest.raises(LandscapeError, match="unknown CutMix box 'round'"):
        cutmix(IMAGES, LABELS, 1.0, stream(0, "mix"), box="round")


@pytest.mark.gpu
@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_a_gpu_mixes_the_same_and_never_waits(mix):
    expected = mix(IMAGES, LABELS, 1.0, stream(0, "mix"))
    images, labels = IMAGES.cuda(), LABELS.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        mixed = mix(images, labels, 1.0, stream(0, "mix"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(mixed, expected):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-6, atol=1e-6)
