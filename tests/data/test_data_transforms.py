"""Training transforms: every operation pixel for pixel Pillow's, the published tables, the same images in any batch."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from landscape.data import TRANSFORMS, Batches, colours, load_dataset
from landscape.data.augmentation import PARTS, PUBLISHED_TRANSFORMS, compose, find_transform, frozen_draws
from landscape.data.dataset import Split
from landscape.data.geometry import FRACTIONS, Cutout, RandomResizedCrop, affine, rotation, shear, translation
from landscape.data.policies import NUM_LEVELS, POLICIES, AutoAugment, ColorJitter
from landscape.errors import LandscapeError
from landscape.randomness import stream

LEVELS = [(level, sign) for level in range(NUM_LEVELS) for sign in (-1, 1)]
SHARES = np.linspace(0, 150 / 331, NUM_LEVELS)
ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
    "sharpness": ImageEnhance.Sharpness,
}


def smooth(channels, height, width):
    """Return images like photographs: ramps and waves, a few levels of noise, some of low contrast."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    waves = torch.randn(6, channels, 4, 1, 1, generator=stream(0, "test/waves"), dtype=torch.float64)
    levels = 128 + 60 * (
        waves[:, :, 0] * x + waves[:, :, 1] * y + torch.sin(9 * waves[:, :, 2] * x * y + waves[:, :, 3])
    )
    levels[::3] = 100 + levels[::3] / 8
    return levels.clamp(0, 255).to(torch.uint8)


def noise(count, *shape, high=256):
    return torch.randint(0, high, (count, *shape), generator=stream(0, "test/noise"), dtype=torch.uint8)


IMAGES = {
    "smooth": smooth(3, 32, 32),
    "noise": noise(6, 3, 32, 32),
    "grey": noise(4, 1, 24, 17),
    "dark": noise(4, 3, 17, 40, high=30),
    "constant": torch.full((2, 3, 9, 9), 7, dtype=torch.uint8),
    "tiny": noise(4, 3, 2, 2),
}


@pytest.fixture(params=IMAGES)
def images(request):
    return IMAGES[request.param]


def pillow(image):
    return Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy())


def tensor(image):
    array = torch.from_numpy(np.array(image))
    return array[None] if array.dim() == 2 else array.permute(2, 0, 1)


def require_pillows(result, images, operation):
    """Every image of the result is what Pillow makes of it."""
    assert (result.dtype, result.shape) == (torch.uint8, images.shape)
    for ours, image in zip(result, images):
        assert torch.equal(ours, tensor(operation(pillow(image))))


def per_image(value, images):
    return torch.full((len(images),), value, dtype=torch.float64)


def filled(image, coefficients, resample=Image.Resampling.NEAREST):
    fill = 128 if image.mode == "L" else (128,) * 3
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, resample, fillcolor=fill)


def rotated(image, degrees):
    """Rotate and put grey behind, by way of an alpha channel."""
    turned = image.convert("RGBA").rotate(degrees)
    return Image.composite(turned, Image.new("RGBA", turned.size, (128,) * 4), turned).convert(image.mode)


# ---- single operations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENHANCERS)
def test_enhancers(name, images):
    for factor in [1 + sign * 0.1 * level for level, sign in LEVELS] + [0.613, 1.3719]:
        result = getattr(colours, name)(images, per_image(factor, images))
        require_pillows(result, images, lambda image, factor=factor: ENHANCERS[name](image).enhance(factor))


def test_tables_of_levels(images):
    require_pillows(colours.invert(images), images, ImageOps.invert)
    require_pillows(colours.autocontrast(images), images, ImageOps.autocontrast)
    require_pillows(colours.equalize(images), images, ImageOps.equalize)
    for bits in range(1, 9):
        result = colours.posterize(images, per_image(bits, images))
        require_pillows(result, images, lambda image, bits=bits: ImageOps.posterize(image, bits))
    for threshold in np.linspace(256, 0, NUM_LEVELS):
        result = colours.solarize(images, per_image(float(threshold), images))
        require_pillows(result, images, lambda image, threshold=threshold: ImageOps.solarize(image, threshold))


def test_affine_maps(images):
    height, width = images.shape[2:]
    for level, sign in LEVELS:
        degrees, columns, rows = sign * 30 * level / 9, sign * SHARES[level] * width, sign * SHARES[level] * height
        cases = (
            (rotation(degrees, height, width), lambda image, d=degrees: rotated(image, d)),
            (translation(columns, 0), lambda image, s=columns: filled(image, (1, 0, s, 0, 1, 0))),
            (translation(0, rows), lambda image, s=rows: filled(image, (1, 0, 0, 0, 1, s))),
        )
        for coefficients, operation in cases:
            parameters = torch.tensor([coefficients], dtype=torch.float64).expand(len(images), -1)
            require_pillows(affine(images, parameters, 128), images, operation)


def test_shears(images):
    bicubic = Image.Resampling.BICUBIC
    for level, sign in LEVELS:
        slope = sign * 0.3 * level / 9
        slopes = per_image(slope, images)
        require_pillows(shear(images, slopes, 128), images, lambda i, s=slope: filled(i, (1, s, 0, 0, 1, 0), bicubic))
        result = shear(images.transpose(2, 3), slopes, 128).transpose(2, 3)
        require_pillows(result, images, lambda i, s=slope: filled(i, (1, 0, 0, s, 1, 0), bicubic))


def test_crops_and_flips_against_a_loop():
    images = noise(40, 3, 6, 7)
    transform = TRANSFORMS["crop-flip"]
    draws = transform.draw(40, stream(0, "draws"))
    for image, (row, column, flip), out in zip(images, draws.T.tolist(), transform.apply(images, draws)):
        canvas = torch.zeros(3, 14, 15, dtype=torch.uint8)
        canvas[:, 4:10, 4:11] = image
        expected = canvas[:, row : row + 6, column : column + 7]
        assert torch.equal(out, expected.flip(2) if flip else expected)


@pytest.mark.parametrize("size", [16, 5])
def test_cutout_against_a_loop(size):
    images = noise(60, 3, 20, 32).clamp_min(1)
    cutout = Cutout(size)
    draws = cutout.draw(60, stream(0, "draws"))
    for image, (y, x), out in zip(images, draws.T.tolist(), cutout.apply(images, draws)):
        y, x, expected = y * 20 // FRACTIONS, x * 32 // FRACTIONS, image.clone()
        expected[:, max(0, y - size // 2) : y + size // 2, max(0, x - size // 2) : x + size // 2] = 0
        assert torch.equal(out, expected)
    assert int((cutout.apply(images, draws) == 0).sum((1, 2, 3)).max()) == 3 * (size // 2 * 2) ** 2


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 24, 17), (3, 17, 60)])
def test_resized_crops(shape):
    images = noise(40, *shape)
    height, width = shape[1:]
    crop = RandomResizedCrop()
    draws = crop.draw(40, stream(0, "draws"))
    draws[:-2, 0] = FRACTIONS - 1  # never fits: the fallback
    result = crop.apply(images, draws)
    boxes = crop.boxes(draws, height, width)
    for image, (top, left, part_height, part_width), out in zip(images, boxes.T.tolist(), result):
        part = pillow(image).crop((left, top, left + part_width, top + part_height))
        assert torch.equal(out, tensor(part.resize((width, height), Image.Resampling.BILINEAR)))
    floating = crop.apply(images.double(), draws)
    assert (floating - result).abs().max() <= 1.01  # rounded once per pass


def test_boxes_of_resized_crops_against_a_loop():
    """The published rules, image by image, from the same uniform numbers."""
    crop, height, width = RandomResizedCrop(), 48, 30
    draws = crop.draw(200, stream(0, "boxes"))
    draws[:20, :5] = FRACTIONS - 1
    uniform = draws.double().numpy() / FRACTIONS
    for column, box in zip(uniform.T, crop.boxes(draws, height, width).T.tolist()):
        expected = None
        for attempt in range(10):
            area = height * width * (0.08 + 0.92 * column[attempt])
            ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * column[10 + attempt])
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                expected = [int(column[20] * (height - h + 1)), int(column[21] * (width - w + 1)), h, w]
                break
        assert box == (expected or [4, 0, 40, 30])  # 30 / 48 is below 3/4: the whole width, 40 rows in the middle


# ---- draws ------------------------------------------------------------------------------------------------------


def test_draws_cover_their_range_evenly():
    ranges = {"shift": [3, 3], "crop": [9, 9], "flip": [2], "autoaugment": [25, 10, 10, 2, 2], "color-jitter": [6]}
    ranges["autoaugment-imagenet"] = ranges["autoaugment"]
    for name, part in PARTS.items():
        draws = part.draw(20_000, stream(0, name))
        assert (draws.shape, draws.dtype) == ((part.num_draws, 20_000), torch.int64)
        assert int(draws.min()) >= 0
        for row, numbers in enumerate(draws):
            places = ranges.get(name, [])[row] if row < len(ranges.get(name, [])) else 16
            counts = torch.bincount(numbers if row < len(ranges.get(name, [])) else numbers * 16 // FRACTIONS)
            assert len(counts) == places
            # 5 standard deviations of a binomial count
            assert ((counts - 20_000 / places).abs() < 5 * (20_000 / places) ** 0.5).all()


def test_factors_of_colour_jitter_fill_their_range():
    factors = ColorJitter().factors(ColorJitter().draw(20_000, stream(0, "factors")))
    assert 0.6 <= float(factors.min()) < 0.601
    assert 1.399 < float(factors.max()) <= 1.4
    assert ((factors.mean(1) - 1).abs() < 5 * 0.8 / math.sqrt(12 * 20_000)).all()


def test_the_stream_of_crops_and_flips_is_as_it_was():
    """Runs of earlier versions repeat: two offsets of all images, then the flips."""
    generator = stream(0, "draws")
    offsets = torch.randint(0, 9, (2, 50), generator=generator)
    flips = torch.randint(0, 2, (50,), generator=generator)
    assert torch.equal(TRANSFORMS["crop-flip"].draw(50, stream(0, "draws")), torch.cat([offsets, flips[None]]))


# ---- policies ---------------------------------------------------------------------------------------------------

# Each operation's letter, probability in tenths (x: 10) and level, in the order of torchvision's tables, which give no
# level (-) to operations without one.
TABLES = {
    "cifar10": """i1- C26, R72 X39, P81 P93, s58 Y79, a5- e9-, s27 p37, c43 b67, P39 b79, e6- e5-, C67 P65, c77 X58, e3- a4-,
        Y43 P26, b96 c28, o52 i0-, e2- a6-, e2- e6-, c99 e6-, a8- o28, b13 c70, o45 a9-, Y99 Y79, a9- o83, e8- i1-, Y79 a9-""",
    "imagenet": """p48 R69, o65 a6-, e8- e6-, p67 p66, e4- o24, e4- R88, o63 e6-, p85 ex-, R23 o68, e6- p46, R88 c40, R49 e6-,
        e0- e8-, i6- ex-, c64 Cx8, R88 cx2, c88 o87, P47 i6-, S65 ex-, c40 e6-, e4- o24, o65 a6-, i6- ex-, c64 Cx8, e8- e6-""",
}
LETTERS = {
    **{"i": "invert", "C": "contrast", "R": "rotate", "X": "translate-x", "Y": "translate-y", "P": "sharpness"},
    **{"s": "shear-y", "S": "shear-x", "a": "autocontrast", "e": "equalize", "p": "posterize", "c": "color"},
    **{"b": "brightness", "o": "solarize"},
}


@pytest.mark.parametrize("name", POLICIES)
def test_policies_are_the_published_tables(name):
    pairs = TABLES[name].split(",")
    assert len(pairs) == len(POLICIES[name]) == 25
    for published, ours in zip(pairs, POLICIES[name]):
        for entry, (operation, tenths, level) in zip(published.split(), (ours[:3], ours[3:])):
            assert LETTERS[entry[0]] == operation
            assert int(entry[1].replace("x", "10")) == tenths
            assert entry[2] == "-" or int(entry[2]) == level


def in_pillow(image, name, level, sign):
    """Do one operation of a policy to an image, in Pillow."""
    slope, share, bicubic = sign * 0.3 * level / 9, sign * SHARES[level], Image.Resampling.BICUBIC
    factor = 1 + sign * np.linspace(0, 0.9, NUM_LEVELS)[level]
    operations = {
        "invert": lambda: ImageOps.invert(image),
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "posterize": lambda: ImageOps.posterize(image, (8, 8, 7, 7, 6, 6, 5, 5, 4, 4)[level]),
        "solarize": lambda: ImageOps.solarize(image, np.linspace(256, 0, NUM_LEVELS)[level]),
        "shear-x": lambda: filled(image, (1, slope, 0, 0, 1, 0), bicubic),
        "shear-y": lambda: filled(image, (1, 0, 0, slope, 1, 0), bicubic),
        "translate-x": lambda: filled(image, (1, 0, share * image.size[0], 0, 1, 0)),
        "translate-y": lambda: filled(image, (1, 0, 0, 0, 1, share * image.size[1])),
        "rotate": lambda: rotated(image, sign * 30 * level / 9),
        "color": lambda: ImageEnhance.Color(image).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
    }
    return operations[name]()


@pytest.mark.parametrize("rotation_sign", ["positive", "both"])
@pytest.mark.parametrize("policy", POLICIES)
def test_autoaugment_against_a_loop_over_images(policy, rotation_sign):
    images = torch.cat([IMAGES["smooth"], IMAGES["noise"]]).repeat(40, 1, 1, 1)
    operation = AutoAugment(policy, rotation_sign)
    draws = operation.draw(len(images), stream(0, policy))
    result = operation.apply(images, draws)
    for image, (pair, *tenths_and_signs), ours in zip(images, draws.T.tolist(), result):
        expected = pillow(image)
        entries = POLICIES[policy][pair]
        for (name, tenths, level), drawn, sign in zip(
            (entries[:3], entries[3:]), tenths_and_signs[:2], tenths_and_signs[2:]
        ):
            sign = 1 if name == "rotate" and rotation_sign == "positive" else 2 * sign - 1
            if drawn < tenths:
                expected = in_pillow(expected, name, level, sign)
        assert torch.equal(ours, tensor(expected))


def test_colour_jitter_against_a_loop_over_images():
    images = torch.cat([IMAGES["smooth"], IMAGES["noise"]]).repeat(10, 1, 1, 1)
    jitter = ColorJitter()
    draws = jitter.draw(len(images), stream(0, "jitter"))
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for image, (order, *fractions), ours in zip(images, draws.T.tolist(), jitter.apply(images, draws)):
        expected = pillow(image)
        for kind in orders[order]:
            expected = enhancers[kind](expected).enhance(0.6 + 0.8 * fractions[kind] / FRACTIONS)
        assert torch.equal(ours, tensor(expected))


def test_colours_need_eight_bits():
    for name in ("crop-flip-autoaugment", "color-jitter"):
        transform = TRANSFORMS[name]
        draws = transform.draw(2, stream(0, "draws"))
        for images in (torch.ones(2, 3, 8, 8), torch.ones(2, 4, 8, 8, dtype=torch.uint8)):
            with pytest.raises(LandscapeError, match="works on uint8 images with 1 or 3 channels, got torch"):
                transform.apply(images, draws)


# ---- transforms by name -----------------------------------------------------------------------------------------


def test_names_are_their_parts():
    for name, transform in TRANSFORMS.items():
        left, parts = name, []
        while left and name != "none":
            part = max((part for part in PARTS if left.startswith(part)), key=len)
            parts.append(part)
            left = left[len(part) :].lstrip("-")
        assert compose(*parts) == transform
    assert set(PUBLISHED_TRANSFORMS.values()) <= set(TRANSFORMS)
    assert load_dataset("digits-lt").augmentation == PUBLISHED_TRANSFORMS["digits-lt"]
    with pytest.raises(LandscapeError, match="unknown part of an augmentation 'blur'"):
        compose("crop", "blur")


def test_what_is_left_after_decoding():
    assert TRANSFORMS["random-resized-crop-flip-color-jitter"].after_decoding() == TRANSFORMS["color-jitter"]
    assert TRANSFORMS["random-resized-crop-flip"].after_decoding() == TRANSFORMS["none"]


@pytest.fixture(scope="module")
def pictures():
    """Return a data set of 8-bit colour pictures, 20 of each of three classes."""
    images = torch.cat([smooth(3, 32, 32), noise(14, 3, 32, 32)]).repeat(3, 1, 1, 1)
    split = Split(images, torch.arange(3).repeat_interleave(20))
    rgb = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "class_names": ("a", "b", "c")}
    return replace(load_dataset("digits-lt"), train=split, test=split, pixel_max=255, **rgb)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_serves_batches_of_any_size(name, pictures):
    data = replace(pictures, augmentation=name)
    whole, parts, again = (
        [
            torch.cat(part)
            for part in zip(*Batches(data, batch_size=n, device="cpu", augment=True).epoch(stream(0, "e")))
        ]
        for n in (60, 7, 7)
    )
    for first, *others in zip(whole, parts, again):
        assert all(torch.equal(first, other) for other in others)
    stored = pictures.normalise(pictures.train.images[torch.randperm(60, generator=stream(0, "e"))])
    assert torch.equal(whole[0], stored) == (name == "none")


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_can_be_frozen(name, pictures):
    transform, num_draws = find_transform(pictures, name), 3
    draws = transform.draw(60 * num_draws, stream(0, "frozen")).view(transform.num_draws, 60, num_draws)
    frozen = frozen_draws(pictures.train, transform, draws)
    kept = torch.tensor([2, 30, 59])
    few = frozen_draws(pictures.train.take(kept), transform, draws[:, kept])
    rows = (kept[:, None] * num_draws + torch.arange(num_draws)).flatten()
    assert torch.equal(few.images, frozen.images[rows])
    assert few.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    for r in range(num_draws):
        assert torch.equal(frozen.images[r::num_draws], transform.apply(pictures.train.images, draws[:, :, r]))


def test_transforms_leave_the_stored_images_and_the_global_generator_alone(pictures):
    before, state = pictures.train.images.clone(), torch.get_rng_state()
    for transform in TRANSFORMS.values():
        transform.redraw(pictures.train.images, stream(0, "x"))
    assert torch.equal(before, pictures.train.images)
    assert torch.equal(torch.get_rng_state(), state)
