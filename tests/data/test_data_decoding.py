"""Pixels from files: Pillow's own conversions, the published geometries, each against a plain transcription."""

import math
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from image_cases import pixels
from PIL import Image

from landscape.data import load_dataset
from landscape.data.batches import Batches
from landscape.data.decoding import (
    DRAWS_PER_CROP,
    Geometry,
    crop_box,
    draw_crops,
    evaluation_view,
    read_rgb,
    training_view,
)
from landscape.data.resizing import scaled_for_evaluation, scaled_for_training
from landscape.errors import LandscapeError
from landscape.randomness import stream


def resampled(image, size):
    """Bilinear scaling with antialiasing in float64: a triangle as wide as a pixel of the coarser grid."""
    image = image.astype(np.float64)
    for axis, target in ((0, size[1]), (1, size[0])):
        length = image.shape[axis]
        scale = length / target
        width = max(scale, 1)
        weights = np.zeros((target, length))
        for i in range(target):
            for j in range(length):
                weights[i, j] = max(0, 1 - abs(j + 0.5 - (i + 0.5) * scale) / width)
            weights[i] /= weights[i].sum()
        image = np.moveaxis(np.tensordot(weights, image, (1, axis)), 0, axis)
    return image


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "jpg"), ("L", "png"), ("CMYK", "jpg"), ("P", "png"), ("1", "png")]
)
def test_every_mode_becomes_rgb(tmp_path, mode, suffix):
    image = Image.fromarray(pixels(0, 20, 10)).convert(mode)
    image.save(tmp_path / f"a.{suffix}")
    read = read_rgb(str(tmp_path / f"a.{suffix}"))
    assert read.mode == "RGB"
    stored = Image.open(tmp_path / f"a.{suffix}")
    assert (np.asarray(read) == np.asarray(stored.convert("RGB"))).all()


def test_sixteen_bits_are_cut_off_and_transparency_is_dropped(tmp_path):
    deep = np.array([[0, 200, 255, 300, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.asarray(read_rgb(str(tmp_path / "deep.png")))[0, :, 0].tolist() == [0, 200, 255, 255, 255]
    image = Image.fromarray(pixels(0, 20, 10)).convert("P")
    image.save(
        tmp_path / "clear.png", transparency=bytes([0, 128] * 128)
    )  # Pillow warns when such a palette is converted
    assert (np.asarray(read_rgb(str(tmp_path / "clear.png"))) == np.asarray(image.convert("RGB"))).all()


def test_orientation_tags_are_ignored(tmp_path):
    image = Image.fromarray(pixels(0, 20, 10))
    exif = image.getexif()
    exif[0x0112] = 6  # rotated by a quarter turn
    image.save(tmp_path / "a.png", exif=exif)
    assert (np.asarray(read_rgb(str(tmp_path / "a.png"))) == np.asarray(image)).all()


@pytest.mark.parametrize(
    ("width", "height", "left", "top"), [(36, 36, 2, 2), (45, 36, 6, 2), (36, 47, 2, 8), (37, 36, 2, 2)]
)
def test_the_centre_without_scaling_is_a_slice(width, height, left, top):
    image = pixels(1, width, height)
    view = evaluation_view(Image.fromarray(image), Geometry.of_side(32))
    assert (view == image[top : top + 32, left : left + 32].transpose(2, 0, 1)).all()


@pytest.mark.parametrize(("width", "height", "size"), [(50, 40, (45, 36)), (40, 61, (36, 54)), (20, 15, (48, 36))])
def test_evaluation_scales_the_short_side(width, height, size):
    image = pixels(2, width, height)
    view = evaluation_view(Image.fromarray(image), Geometry.of_side(32))
    left, top = round((size[0] - 32) / 2), round((size[1] - 32) / 2)
    expected = resampled(image, size)[top : top + 32, left : left + 32].transpose(2, 0, 1)
    assert np.abs(view - expected).max() <= 1  # Pillow rounds after each of the two passes


def test_random_parts_against_the_published_rule():
    """All tries in turn, in float64, from the same uniform numbers."""
    draws = draw_crops(300, stream(0, "crops")).numpy()
    draws[::50, :20] = 0.999  # near the whole area and 4 : 3, which fits none of these images
    for k, row in enumerate(draws):
        width, height = [(100, 80), (300, 40), (40, 300), (64, 64)][k % 4]
        expected = None
        for area, ratio in row[:20].astype(float).reshape(10, 2):
            pixel_area = width * height * (0.08 + 0.92 * area)
            aspect = math.exp(math.log(3 / 4) + ratio * (math.log(4 / 3) - math.log(3 / 4)))
            w, h = round(math.sqrt(pixel_area * aspect)), round(math.sqrt(pixel_area / aspect))
            if w <= width and h <= height:
                y, x = int(float(row[20]) * (height - h + 1)), int(float(row[21]) * (width - w + 1))
                expected = (x, y, x + w, y + h)
                break
        if expected is None:
            w = min(width, round(height * 4 / 3))
            h = min(height, round(width / (3 / 4)))
            x, y = (width - w) // 2, (height - h) // 2
            expected = (x, y, x + w, y + h)
        assert crop_box(width, height, row) == expected
        assert 0 <= expected[0] < expected[2] <= width
        assert 0 <= expected[1] < expected[3] <= height


def test_random_parts_have_the_published_sizes_and_places():
    boxes = np.array([crop_box(400, 400, row) for row in draw_crops(4000, stream(1, "crops")).numpy()])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    ratios = np.log(widths / heights)
    assert abs(ratios.mean()) < 5 * np.log(4 / 3) / np.sqrt(3 * 4000)  # symmetric: 5 standard errors of a uniform draw
    assert np.abs(ratios).max() < np.log(4 / 3) + 0.02  # whole pixels
    assert (widths * heights).min() > 0.078 * 400**2
    free = (400 - widths) > 20
    places = boxes[free, 0] / (400 - widths[free])
    assert abs(places.mean() - 0.5) < 5 / np.sqrt(12 * free.sum())


def test_the_training_view_is_the_part_scaled_and_mirrored():
    image = pixels(3, 60, 50)
    draws = draw_crops(8, stream(2, "crops")).numpy()
    mirrored = 0
    for row in draws:
        left, top, right, bottom = crop_box(60, 50, row)
        expected = resampled(image[top:bottom, left:right], (32, 32)).transpose(2, 0, 1)
        expected = expected[:, :, ::-1] if row[-1] < 0.5 else expected
        mirrored += row[-1] < 0.5
        assert np.abs(training_view(Image.fromarray(image), Geometry.of_side(32), row) - expected).max() <= 1
    assert 0 < mirrored < 8
    assert draws.shape == (8, DRAWS_PER_CROP)


def test_small_images_scaled_for_evaluation_are_pillows():
    """GNM-PT: Resize to 8/7 of the side on a Pillow image, then the centre."""
    stored = torch.randint(0, 256, (3, 3, 32, 32), generator=stream(0, "images"), dtype=torch.uint8)
    for side, tolerance in ((224, 0), (64, 1)):
        short = side * 8 // 7
        edge = round((short - side) / 2)
        scaled = scaled_for_evaluation(stored.float(), side, rounds=True)
        for image, found in zip(stored, scaled):
            pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((short, short), Image.Resampling.BILINEAR)
            centre = torch.from_numpy(np.array(pillow)).permute(2, 0, 1)[:, edge : edge + side, edge : edge + side]
            assert (found - centre.float()).abs().max() <= tolerance


def test_small_images_scaled_for_training_are_not_rounded():
    stored = torch.randint(0, 256, (2, 3, 8, 8), generator=stream(0, "images"), dtype=torch.uint8)
    expected = resampled(stored[0].permute(1, 2, 0).numpy(), (28, 28)).transpose(2, 0, 1)
    assert np.abs(scaled_for_training(stored.double(), 28)[0].numpy() - expected).max() < 1e-10


def test_resize_reaches_networks_and_the_recipe():
    data = load_dataset("digits-lt", resize=28)
    assert (data.image_size, data.resize, data.recipe["resize"]) == (28, 28, 28)
    stored = data.test.images[:2]
    assert stored.shape == (2, 1, 8, 8)
    expected = (scaled_for_evaluation(stored.double(), 28, rounds=False) / 16 - 0.3053) / 0.3760
    torch.testing.assert_close(data.normalise(stored, torch.float64), expected)
    images, _ = next(Batches(data, batch_size=4, device="cpu", augment=True).epoch(stream(0, "epoch")))
    order = torch.randperm(len(data.train), generator=stream(0, "epoch"))[:4]
    trained = (scaled_for_training(data.train.images[order].float(), 28) / 16 - 0.3053) / 0.3760
    torch.testing.assert_close(images, trained)
    assert load_dataset("digits-lt", resize=8).resize is None
    assert load_dataset(**data.recipe).resize == 28


@pytest.mark.parametrize(("size", "match"), [((1, 150_000_000), "no pixel decoded"), ((2, 2000), "are a strip")])
def test_the_size_of_an_image_is_read_before_its_pixels(tmp_path, size, match):
    header = struct.pack(">II5B", *size, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, of the same
        with pytest.raises(LandscapeError, match=match):
            read_rgb(str(tmp_path / "a.png"))
