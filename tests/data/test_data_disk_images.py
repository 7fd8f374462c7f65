"""Images on disk look like a tensor and give the same pixels however they are read."""

import math

import numpy as np
import pytest
import torch
from image_cases import write_folders, write_image
from PIL import Image

from landscape.data import Batches, DiskImages, disk_images, load_dataset, pixel_store
from landscape.data.decoding import Geometry, draw_crops, evaluation_view, read_rgb, training_view
from landscape.data.disk_images import ImageFiles
from landscape.errors import LandscapeError
from landscape.randomness import stream

SIDE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_folders(root / "train", {"ant": 9, "bee": 6, "cow": 4})
    write_folders(root / "test", {"ant": 3, "bee": 3, "cow": 3}, start=100)
    return root


@pytest.fixture
def files(folder):
    return ImageFiles(folder / "train", tuple(f"ant/{k:02d}.jpg" for k in range(9)))


@pytest.fixture
def no_room(monkeypatch):
    """Nothing fits the memory: every reading decodes."""
    monkeypatch.setattr(disk_images, "MEMORY_SHARE", 0)


def decoded(files):
    geometry = Geometry.of_side(SIDE)
    return torch.stack([torch.tensor(evaluation_view(read_rgb(files.path(k)), geometry)) for k in range(len(files))])


def test_it_reads_like_a_tensor(files):
    images, expected = DiskImages.of(files, Geometry.of_side(SIDE)), decoded(files)
    assert (images.shape, images.dtype, len(images)) == (expected.shape, torch.uint8, 9)
    assert images.numel() == expected.numel() == math.prod(images.shape)
    index = torch.tensor([7, 0, 7, 3])
    for pick in (slice(0, 4), slice(2, None, 3), slice(5, 5), index, 4, -1):
        assert torch.equal(images[pick], expected[pick])
    some = images.take([5, 2, 8]).take(torch.tensor([2, 0]))
    assert torch.equal(some[:], expected[[8, 5]])
    assert torch.equal(images.resident(), expected)
    with pytest.raises(IndexError):
        images[9]


@pytest.mark.parametrize("share", [0, 1])
def test_the_same_pixels_whichever_way(files, monkeypatch, tmp_path, share):
    monkeypatch.setattr(disk_images, "MEMORY_SHARE", share)
    expected = decoded(files)
    for cache_dir in (None, tmp_path / "cache"):
        images = DiskImages.of(files, Geometry.of_side(SIDE), cache_dir=cache_dir)
        parts = list(images.stream((part, None) for part in torch.arange(9).split(2)))
        assert torch.equal(torch.cat(parts), expected)
        assert torch.equal(images[:], expected)
        held = images.held("cpu")
        assert isinstance(held, torch.Tensor if share else DiskImages)
        assert torch.equal(held[:], expected)


def count_decoding(monkeypatch):
    calls = []
    monkeypatch.setattr(disk_images, "read_rgb", lambda path: calls.append(path) or read_rgb(path))
    return calls


def test_an_image_is_decoded_once_if_there_is_room(files, monkeypatch):
    calls = count_decoding(monkeypatch)
    images = DiskImages.of(files, Geometry.of_side(SIDE))
    first = images.take([1, 3])[:]
    assert torch.equal(images.take([3])[:], first[1:])
    images[:]
    assert sorted(calls) == [files.path(k) for k in range(9)]
    assert images.resident_bytes == 9 * 3 * SIDE**2


def test_without_room_it_is_decoded_at_every_reading(files, monkeypatch, no_room):
    calls = count_decoding(monkeypatch)
    images = DiskImages.of(files, Geometry.of_side(SIDE))
    assert torch.equal(images[:2], images[:2])
    assert (len(calls), images.resident_bytes) == (4, 0)


def test_a_cache_outlives_the_run_and_notices_other_files(files, monkeypatch, tmp_path):
    calls = count_decoding(monkeypatch)
    geometry = Geometry.of_side(SIDE)
    first = DiskImages.of(files, geometry, cache_dir=tmp_path)[:4]
    again = DiskImages.of(files, geometry, cache_dir=tmp_path)
    assert torch.equal(again[:4], first)
    assert len(calls) == 4
    assert torch.equal(again[:], decoded(files))
    (path,) = tmp_path.iterdir()
    assert (np.load(path, mmap_mode="r") == decoded(files).numpy()).all()
    DiskImages.of(files, Geometry.of_side(8), cache_dir=tmp_path)[:1]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_changed_file_has_another_cache(tmp_path):
    path = write_image(tmp_path / "images" / "a.png", seed=0)
    files = ImageFiles(path.parent, ("a.png",))
    first = DiskImages.of(files, Geometry.of_side(SIDE), cache_dir=tmp_path / "cache")[:]
    write_image(path, seed=1, width=41)
    assert not torch.equal(DiskImages.of(files, Geometry.of_side(SIDE), cache_dir=tmp_path / "cache")[:], first)


def test_a_cache_that_cannot_be_used_is_one_line(files, tmp_path, monkeypatch):
    geometry = Geometry.of_side(SIDE)
    (tmp_path / "file").write_text("")
    with pytest.raises(LandscapeError, match=r"cache_dir .*file: cannot keep 9 decoded images there"):
        DiskImages.of(files, geometry, cache_dir=tmp_path / "file")[:1]
    DiskImages.of(files, geometry, cache_dir=tmp_path / "cache")[:1]
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(LandscapeError, match=r"is no cache of these images .*: delete it"):
        DiskImages.of(files, geometry, cache_dir=tmp_path / "cache")[:1]

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pixel_store.os, "posix_fallocate", full)
    with pytest.raises(LandscapeError, match=r"cannot keep 9 decoded images there .No space left on device"):
        DiskImages.of(files, geometry, cache_dir=tmp_path / "full")[:1]
    assert list((tmp_path / "full").iterdir()) == []


def test_random_parts_are_those_of_their_draws(files):
    images, geometry = DiskImages.of(files, Geometry.of_side(SIDE)), Geometry.of_side(SIDE)
    crops = draw_crops(3, stream(0, "crops"))
    rows = torch.tensor([4, 0, 8])
    found = images.read(rows, crops)
    for row, draws, pixels in zip(rows.tolist(), crops.numpy(), found):
        assert (pixels.numpy() == training_view(read_rgb(files.path(row)), geometry, draws)).all()
    assert not torch.equal(images[rows], found)


@pytest.mark.parametrize("content", [b"", b"not an image", "cut"])
def test_a_damaged_image_is_named(folder, tmp_path, content):
    whole = write_image(tmp_path / "a.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(whole[: len(whole) // 2] if content == "cut" else content)
    (tmp_path / "list.txt").write_text("a.jpg 0\n\nb.jpg 1\n")
    data = load_dataset(
        "image-list", data_dir=tmp_path, train_list=tmp_path / "list.txt", test_list=tmp_path / "list.txt", resize=SIDE
    )
    with pytest.raises(LandscapeError, match=r"list.txt, line 3: 'b.jpg' cannot be decoded as an image \(") as caught:
        data.train.pixels()
    assert "\n" not in str(caught.value)
    assert data.train.take([0]).pixels().shape == (1, 3, SIDE, SIDE)
    files = ImageFiles(tmp_path, ("b.jpg",))
    with pytest.raises(LandscapeError, match=r"b.jpg cannot be decoded"):
        DiskImages.of(files, Geometry.of_side(SIDE))[0]


def test_a_stream_that_is_left_stops_decoding(files, monkeypatch, no_room):
    calls = count_decoding(monkeypatch)
    batches = DiskImages.of(files, Geometry.of_side(SIDE)).stream((part, None) for part in torch.arange(9).split(1))
    next(batches)
    batches.close()
    assert len(calls) <= 1 + disk_images.BATCHES_AHEAD


@pytest.mark.parametrize("augment", [False, True])
def test_batches_are_the_same_streamed_and_resident(folder, monkeypatch, augment):
    def epoch():
        data = load_dataset("image-folder", data_dir=folder, resize=SIDE)
        batches = Batches(data, batch_size=4, device="cpu", augment=augment)
        pairs = list(batches.epoch(stream(0, "epoch=0")))
        assert len(pairs) == batches.num_batches == 5
        return tuple(torch.cat(part) for part in zip(*pairs))

    images, labels = epoch()
    monkeypatch.setattr(disk_images, "MEMORY_SHARE", 0)
    again, same = epoch()
    assert torch.equal(images, again)
    assert torch.equal(labels, same)
    data = load_dataset("image-folder", data_dir=folder, resize=SIDE)
    order = torch.randperm(19, generator=stream(0, "epoch=0"))
    assert torch.equal(labels, data.train.labels[order])
    stored = data.normalise(data.train.pixels()[order])
    assert torch.equal(stored, images) is not augment


def test_image_arrays_are_written_by_pillow_alone(folder):
    """A guard for the tests themselves: what they compare are real JPEG files."""
    with Image.open(folder / "train" / "ant" / "00.jpg") as image:
        assert image.format == "JPEG"
