"""Batches: every image once, the drawn crops and flips, the same numbers on every device."""

from dataclasses import replace

import pytest
import torch

from landscape.data import Batches, build_sampler, load_dataset
from landscape.data.augmentation import TRANSFORMS, frozen_draws
from landscape.errors import LandscapeError
from landscape.randomness import stream


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits-lt")


def epoch(dataset, *, name="epoch=0", device="cpu", **options):
    options = {"batch_size": 64, "augment": True} | options
    batches = Batches(dataset, device=device, **options)
    return list(batches.epoch(stream(0, name)))


def test_an_epoch_serves_every_image_once(digits):
    pairs = epoch(digits)
    images, labels = (torch.cat(part) for part in zip(*pairs))
    assert len(pairs) == Batches(digits, batch_size=64, device="cpu", augment=True).num_batches == 8
    assert (images.dtype, labels.dtype, images.shape) == (torch.float32, torch.int64, (453, 1, 8, 8))
    order = torch.randperm(453, generator=stream(0, "epoch=0"))
    assert torch.equal(labels, digits.train.labels[order])
    assert torch.equal(images, digits.normalise(digits.train.images)[order])


def test_equal_streams_give_equal_epochs(digits):
    data = replace(digits, augmentation="shift")
    first, again, other = (torch.cat([x for x, _ in epoch(data, name=n)]) for n in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_drop_last(digits):
    assert [len(y) for _, y in epoch(digits, drop_last=True)] == [64] * 7
    with pytest.raises(LandscapeError, match="batch_size 500 with drop_last leaves no batch of 453"):
        epoch(digits, batch_size=500, drop_last=True)
    with pytest.raises(LandscapeError, match="batch_size must be at least 1, got 0"):
        epoch(digits, batch_size=0)


def test_transforms_by_name(digits):
    with pytest.raises(LandscapeError, match="unknown augmentation 'cutout'"):
        epoch(replace(digits, augmentation="cutout"))
    with pytest.raises(LandscapeError, match="unknown augmentation 'mosaic'"):
        epoch(digits, transform="mosaic")
    match = "augmentation 'color-jitter' computes with levels 0 to 255, the white of digits-lt is 16"
    with pytest.raises(LandscapeError, match=match):
        epoch(digits, transform="color-jitter")
    named, own = (
        torch.cat([x for x, _ in epoch(data, **options)])
        for data, options in ((digits, {"transform": "shift"}), (replace(digits, augmentation="shift"), {}))
    )
    assert torch.equal(named, own)


def test_a_sampler_says_what_an_epoch_serves(digits):
    sampler = build_sampler("class-aware", num_samples=300, num_samples_cls=2)
    batches = Batches(digits, batch_size=64, device="cpu", augment=False, sampler=sampler)
    assert (batches.num_images, batches.num_batches) == (300, 5)
    images, labels = (torch.cat(part) for part in zip(*batches.epoch(stream(0, "epoch=0"))))
    order = sampler.epoch_order(digits.train.labels, 10, stream(0, "epoch=0"), 0, 1)
    assert torch.equal(labels, digits.train.labels[order])
    assert torch.equal(images, digits.normalise(digits.train.images[order]))
    assert torch.bincount(labels).tolist() == [30] * 10


def test_progressive_sampling_follows_the_epochs(digits):
    batches = Batches(digits, batch_size=64, device="cpu", augment=False, sampler=build_sampler("progressive"))

    def tail_images(number):
        return sum(int((y == 9).sum()) for _, y in batches.epoch(stream(0, "x"), epoch=number, num_epochs=10))

    assert tail_images(0) < 20 < tail_images(9)  # 6 and 41 of 453 expected


def test_frozen_draws_repeat_every_image_with_draws_of_its_own(digits):
    transform = TRANSFORMS["crop-flip"]
    split = digits.train.take(torch.arange(20))
    draws = transform.draw(60, stream(0, "draws"))
    drawn = frozen_draws(split, transform, draws.view(-1, 20, 3))
    for i, image in enumerate(split.images):
        own = drawn.images[3 * i : 3 * i + 3]
        assert torch.equal(own, transform.apply(image.expand(3, -1, -1, -1), draws[:, 3 * i : 3 * i + 3]))
        assert drawn.labels[3 * i : 3 * i + 3].tolist() == [int(split.labels[i])] * 3
    assert len(torch.unique(draws, dim=1).T) > 40  # of 162 possible ones


def test_without_augmentation_images_are_as_stored(digits):
    data = replace(digits, augmentation="crop-flip")
    plain = torch.cat([x for x, _ in epoch(data, augment=False)])
    order = torch.randperm(453, generator=stream(0, "epoch=0"))
    assert torch.equal(plain, data.normalise(data.train.images)[order])
    assert not torch.equal(plain, torch.cat([x for x, _ in epoch(data)]))


def test_the_global_generator_is_left_alone(digits):
    before = torch.get_rng_state()
    epoch(replace(digits, augmentation="crop-flip"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_gpu_sees_the_same_batches_and_never_waits(name, digits):
    data = replace(digits, augmentation=name, pixel_max=255)
    expected = epoch(data)
    batches = iter(Batches(data, batch_size=64, device="cuda", augment=True).epoch(stream(0, "epoch=0")))
    pairs = [next(batches)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        pairs += list(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (images, labels), (cpu_images, cpu_labels) in zip(pairs, expected, strict=True):
        torch.testing.assert_close(images.cpu(), cpu_images, rtol=1e-6, atol=1e-6)
        assert torch.equal(labels.cpu(), cpu_labels)
