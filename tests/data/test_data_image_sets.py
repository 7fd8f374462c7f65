"""Data sets of image files: published lists, folders, relabelling, and what training and analysis make of them."""

import logging
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from image_cases import listing, write_folders, write_image

from landscape.checkpoint import read_checkpoint
from landscape.data import Split, assign_groups, disk_images, load_dataset
from landscape.data.decoding import draw_crops
from landscape.data.image_sets import PUBLISHED
from landscape.data.profiles import relabelled_by_count
from landscape.errors import LandscapeError
from landscape.loading import load_risk
from landscape.randomness import stream
from landscape.surface import measure_surface
from landscape.training import TrainSpec, evaluate, train

SIDE = 16
COUNTS = {"ant": 9, "bee": 14, "cow": 9, "dog": 6}
TEST = dict.fromkeys(COUNTS, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_folders(root / "train", COUNTS)
    write_folders(root / "val", TEST, start=100)
    (root / "train.txt").write_text("\n".join(listing(root, COUNTS, "train/")) + "\n")
    (root / "test.txt").write_text("\n".join(listing(root, TEST, "val/")) + "\n")
    return root


def own_lists(folder, **options):
    options = {"train_list": folder / "train.txt", "test_list": folder / "test.txt", "resize": SIDE} | options
    return load_dataset("image-list", data_dir=folder, **options)


def test_lists_and_folders_of_the_same_images_are_equal(folder):
    lists, folders = own_lists(folder), load_dataset("image-folder", data_dir=folder, resize=SIDE)
    for data in (lists, folders):
        assert data.class_names == tuple(COUNTS)
        assert (data.train_counts, data.test.counts(4)) == (tuple(COUNTS.values()), (3, 3, 3, 3))
        assert (data.image_size, data.pixel_max, data.has_random_parts) == (SIDE, 255, True)
        assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert torch.equal(lists.train.pixels(), folders.train.pixels())
    assert torch.equal(lists.test.pixels(), folders.test.pixels())


def test_a_recipe_rebuilds_images(folder):
    data = own_lists(folder, relabel="count", imbalance_ratio=3)
    again = load_dataset(**data.recipe)
    assert again.recipe == data.recipe
    assert data.recipe["train_list"] == str(folder / "train.txt")
    assert torch.equal(again.train.pixels(), data.train.pixels())
    assert again.class_names == data.class_names


def test_a_long_tail_is_cut_from_folders(folder):
    data = load_dataset("image-folder", data_dir=folder, resize=SIDE, imbalance_ratio=6, selection="first")
    assert data.train_counts == (6, 3, 1, 1)
    whole = load_dataset("image-folder", data_dir=folder, resize=SIDE)
    assert torch.equal(data.train.pixels()[:6], whole.train.pixels()[:6])


def test_a_plain_folder_holds_out_a_test(folder):
    data = load_dataset("image-folder", data_dir=folder / "train", resize=SIDE)
    assert data.test.counts(4) == (1, 1, 1, 1)
    assert data.train_counts == tuple(n - 1 for n in COUNTS.values())
    lists = own_lists(folder, test_list=None)
    assert torch.equal(lists.test.pixels(), data.test.pixels())


def test_relabelling_by_count_is_stable_and_takes_names_and_test_along(folder):
    data, plain = own_lists(folder, relabel="count"), own_lists(folder)
    assert data.class_names == ("bee", "ant", "cow", "dog")
    assert data.train_counts == (14, 9, 9, 6)
    for new, old in ((data.train, plain.train), (data.test, plain.test)):
        assert [data.class_names[c] for c in new.labels] == [plain.class_names[c] for c in old.labels]
        assert torch.equal(new.pixels(), old.pixels())
    assert (data.recipe["relabel"], plain.recipe["relabel"]) == ("count", "none")
    assert data.groups.members["head"] == (0,)


def published_counts():
    path = Path(__file__).with_name("imagenet_lt_counts.txt")
    words = [word for line in path.read_text().splitlines() if not line.startswith("#") for word in line.split()]
    pairs = [(word + "x1").split("x")[:2] for word in words]
    return np.repeat(*(np.array(part, dtype=int) for part in zip(*pairs)))


def test_imagenet_lt_has_the_published_groups():
    """Counts of the real list, classes in another order, through relabelling and each rule that papers use."""
    counts = published_counts()
    assert (len(counts), counts.sum(), counts.max(), counts.min()) == (1000, 115_846, 1280, 5)
    shuffled = np.random.default_rng(0).permutation(counts)
    labels = torch.from_numpy(np.repeat(np.arange(1000), shuffled))
    split = Split(torch.empty(len(labels), 0, dtype=torch.uint8), labels)
    train, test, names = relabelled_by_count(split, split, tuple(map(str, range(1000))))
    assert train.counts(1000) == tuple(counts.tolist())
    expected = sorted(range(1000), key=lambda c: (-shuffled[c], c))
    assert names == tuple(map(str, expected))
    assert torch.equal(train.labels, test.labels)
    sizes = {
        rule: tuple(len(members) for members in assign_groups(train.counts(1000), rule).members.values())
        for rule in ("oltr", "cc-sam", "lpt", "mislas-imagenet-lt", "auto")
    }
    assert sizes["oltr"] == (385, 479, 136)
    assert sizes["cc-sam"] == (391, 463, 146)  # six classes of 100, ten of 20
    assert sizes["lpt"] == (385, 469, 146)
    assert sizes["mislas-imagenet-lt"] == sizes["auto"] == (390, 445, 165)
    assert counts[835] == 23


def test_auto_knows_the_sizes_of_the_published_sets():
    sizes = {"places-lt": (131, 157, 77), "inaturalist18": (842, 3701, 3599)}
    for name, expected in sizes.items():
        groups = assign_groups(range(PUBLISHED[name].num_classes, 0, -1), "auto")
        assert groups.rule == f"mislas-{name}"
        assert tuple(map(len, groups.members.values())) == expected


def test_a_published_list_is_found_by_name(tmp_path):
    counts = {f"{c:03d}": 1 + (c % 2) for c in range(365)}
    path = write_image(tmp_path / "one.png")
    for name, count in counts.items():
        for k in range(count):
            target = tmp_path / "data_256" / name / f"{k:02d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(path)
    lines = listing(tmp_path, counts, "data_256/", ".png")
    (tmp_path / "Places_LT_train.txt").write_text("\r\n".join(lines))
    with pytest.raises(LandscapeError, match=r"no Places_LT_test.txt in data_dir .*; name the list as test_list"):
        load_dataset("places-lt", data_dir=tmp_path)
    (tmp_path / "Places_LT_test.txt").write_text("\n".join(line for line in lines if "/00.png" in line))
    data = load_dataset("places-lt", data_dir=tmp_path)
    assert data.train.images.shape == (365 + 182, 3, 224, 224)
    assert data.train_counts == (2,) * 182 + (1,) * 183
    assert data.class_names[:3] == ("001", "003", "005")
    assert [data.class_names[c] for c in data.test.labels[:3]] == ["000", "001", "002"]
    assert (data.groups.rule, data.recipe["relabel"], data.recipe["resize"]) == ("mislas-places-lt", "count", 224)
    assert load_dataset("places-lt", data_dir=tmp_path, relabel="none").train_counts[:3] == (1, 2, 1)
    (tmp_path / "bad.txt").write_text(f"{lines[0][:-1]}365")
    with pytest.raises(LandscapeError, match=r"bad.txt, line 1: .* has label 365, out of range 0..364"):
        load_dataset("places-lt", data_dir=tmp_path, train_list=tmp_path / "bad.txt")
    assert PUBLISHED["inaturalist18"].mean == (0.466, 0.471, 0.380)


def test_class_names_come_from_folders_where_each_class_has_one(tmp_path):
    names = ["a/air/1.png 0", "a/air/2.png 0", "b/in/1.png 1", "c/in/1.png 2", "a/air/t.png 1"]
    for line in names:
        write_image(tmp_path / line.split()[0])
    (tmp_path / "test.txt").write_text("a/air/t.png 1\n")
    for lines, expected in ((names[:4], ("a/air", "b/in", "c/in")), (names, ("0", "1", "2"))):
        (tmp_path / "train.txt").write_text("\n".join(lines))
        data = load_dataset(
            "image-list", data_dir=tmp_path, train_list=tmp_path / "train.txt", test_list=tmp_path / "test.txt"
        )
        assert data.class_names == expected


def test_images_in_both_lists_are_announced(folder, caplog):
    with caplog.at_level(logging.WARNING):
        own_lists(folder, test_list=folder / "train.txt")
    assert "share 38 images, such as 'train/ant/00.jpg'" in caplog.text


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("image-list", {}, "image-list needs train_list"),
        ("image-list", {"data_dir": None}, "image-list needs data_dir, the folder of the images"),
        ("image-folder", {"data_dir": "/none"}, "data_dir /none is not a folder"),
        ("imagenet-lt", {}, "no ImageNet_LT_train.txt in data_dir"),
        ("inaturalist18", {}, r"no iNaturalist18_train.txt or train2018.json in data_dir"),
        ("image-folder", {"train_list": "a.txt"}, "image-folder takes no train_list, got a.txt"),
        ("image-folder", {"download": True}, "image-folder takes no download"),
        ("digits-lt", {"data_dir": None, "cache_dir": "a"}, "digits-lt takes no cache_dir, got a"),
        ("image-folder", {"relabel": "counts"}, "unknown relabelling 'counts': did you mean 'count'"),
        ("image-folder", {"resize": 2}, "resize is the side of the network's input in pixels, from 8 to 4096, got 2"),
        ("digits-lt", {"data_dir": None, "resize": 224.0}, "got 224.0"),
        ("digits-lt", {"data_dir": None, "resize": 2**3 - 1}, "from 8 to 4096, got 7"),
        ("digits-lt", {"data_dir": None, "download": True}, "digits-lt takes no download"),
    ],
)
def test_bad_requests_are_one_line(folder, name, options, message):
    with pytest.raises(LandscapeError, match=message) as caught:
        load_dataset(name, **{"data_dir": folder, **options})
    assert "\n" not in str(caught.value)


def test_bad_folders_are_named(tmp_path):
    write_folders(tmp_path / "train", {"ant": 1, "bee": 1})
    (tmp_path / "train" / ".hidden").mkdir()
    with pytest.raises(
        LandscapeError, match=r"class 0 .'ant'. has 1 example, so none can be held out: add a folder 'test'"
    ):
        load_dataset("image-folder", data_dir=tmp_path)
    write_folders(tmp_path / "test", {"ant": 1, "owl": 1})
    with pytest.raises(LandscapeError, match=r"test: class 'owl' is not among the 2 classes of .*train"):
        load_dataset("image-folder", data_dir=tmp_path)
    (tmp_path / "test" / "owl" / "00.jpg").rename(tmp_path / "train" / "owl")
    (tmp_path / "test" / "owl").rmdir()
    assert load_dataset("image-folder", data_dir=tmp_path).test.counts(2) == (1, 0)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(LandscapeError, match=r"empty: class 'empty' has no image \(.jpg"):
        load_dataset("image-folder", data_dir=tmp_path)
    (tmp_path / "train" / "empty").rename(tmp_path / "train" / "tail")
    write_folders(tmp_path / "train", {"tail": 1})
    with pytest.raises(LandscapeError, match="a class cannot be called 'tail'"):
        load_dataset("image-folder", data_dir=tmp_path)


# ---- training and analysis ------------------------------------------------------------------------------------------


def trained(folder, out, **options):
    settings = {"model": "convnet", "epochs": 1, "batch_size": 8, "lr": 0.05, "schedule": "constant"} | options
    spec = TrainSpec(dataset="image-folder", data_dir=str(folder), resize=SIDE, **settings)
    return train(spec, out)


@pytest.fixture(scope="module")
def checkpoint(folder, tmp_path_factory):
    return trained(folder, tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("augment", [True, False])
def test_training_from_disk_is_training_from_memory(folder, tmp_path, monkeypatch, augment):
    resident = read_checkpoint(trained(folder, tmp_path / "a", augment=augment))
    monkeypatch.setattr(disk_images, "MEMORY_SHARE", 0)
    streamed = read_checkpoint(trained(folder, tmp_path / "b", augment=augment))
    assert all(torch.equal(streamed.state_dict[name], value) for name, value in resident.state_dict.items())
    assert streamed.spec["accuracy"] == resident.spec["accuracy"]
    assert streamed.spec["image_size"] == SIDE


def test_an_analysis_from_disk_is_one_from_memory(checkpoint, monkeypatch):
    def measure():
        risk = load_risk(checkpoint, split="test", device="cpu")
        weights = torch.eye(4, dtype=torch.float64)[1:3]
        # Which strategy is the fastest is found out by time, and each rounds in its own way.
        with risk.hessian(risk.theta, weights, strategy="fresh") as product:
            products = product(torch.ones(2, 1, len(risk.theta)))
        surface = measure_surface(risk, kind="line", x=[-0.1, 0.0, 0.1], batchnorm="both")
        return {
            "stored": type(risk._examples.inputs).__name__,
            "losses": risk.losses(risk.theta),
            "gradients": risk.gradients(risk.theta, weights),
            "products": products,
            "surface": torch.from_numpy(surface.loss.values),
            "recalibrated surface": torch.from_numpy(surface.recalibrated_loss.values),
            "recalibrated": risk.with_batchnorm("recalibrate").losses(risk.theta),
            "restricted": risk.restricted(torch.tensor([0, 4, 7])).losses(risk.theta),
        }

    resident = measure()
    monkeypatch.setattr(disk_images, "MEMORY_SHARE", 0)
    streamed = measure()
    assert (resident.pop("stored"), streamed.pop("stored")) == ("Tensor", "DiskImages")
    for name, values in resident.items():
        torch.testing.assert_close(streamed[name], values, rtol=0, atol=0, equal_nan=True, msg=name)


def test_a_risk_takes_the_images_it_is_asked_for(checkpoint, monkeypatch):
    calls = []
    read_rgb = disk_images.read_rgb
    monkeypatch.setattr(disk_images, "read_rgb", lambda path: calls.append(path) or read_rgb(path))
    risk = load_risk(checkpoint, split="train", max_per_class=2, device="cpu")
    assert risk.class_counts.tolist() == [2, 2, 2, 2]
    assert len(set(calls)) == 8


def test_frozen_random_parts_are_those_of_the_image_whatever_is_left_out(checkpoint, folder):
    risk = load_risk(checkpoint, split="test", augment="frozen", augment_draws=2, device="cpu")
    assert (risk.draws_per_example, risk.class_counts.tolist()) == (2, [3, 3, 3, 3])
    data = load_dataset("image-folder", data_dir=folder, resize=SIDE)
    crops = draw_crops(24, stream(0, "augment/frozen/test/parts"))
    expected = data.test.images.read(torch.arange(12).repeat_interleave(2), crops)
    assert torch.equal(risk._examples.inputs, expected)
    few = load_risk(checkpoint, split="test", augment="frozen", augment_draws=2, device="cpu", max_per_class=1)
    assert torch.equal(few._examples.inputs, expected.view(4, 6, 3, SIDE, SIDE)[:, :2].flatten(0, 1))
    with pytest.raises(LandscapeError, match="--augment redraw: image-folder is trained on random parts"):
        load_risk(checkpoint, augment="redraw", device="cpu")
    with pytest.raises(LandscapeError, match="random parts are cut out of images on disk"):
        Split(expected, torch.zeros(24, dtype=torch.int64)).random_parts(crops[:, None])


@pytest.mark.gpu
def test_a_gpu_reads_the_same_images(checkpoint, folder, monkeypatch):
    expected = load_risk(checkpoint, split="test", device="cpu")
    monkeypatch.setattr(disk_images, "MEMORY_SHARE", 0)
    risk = load_risk(checkpoint, split="test", device="cuda")
    torch.testing.assert_close(risk.losses(risk.theta).cpu(), expected.losses(expected.theta), rtol=1e-5, atol=1e-6)
    data = load_dataset("image-folder", data_dir=folder, resize=SIDE)
    rows = torch.tensor([3, 1])
    assert torch.equal(data.test.images.to("cuda")[rows.cuda()].cpu(), data.test.images[rows])


def test_evaluation_from_disk_is_the_same_in_any_batches(folder, monkeypatch):
    data = load_dataset("image-folder", data_dir=folder, resize=SIDE)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIDE**2, 4)).double()
    resident = evaluate(model, Split(data.test.pixels(), data.test.labels), data)
    monkeypatch.setattr(disk_images, "MEMORY_SHARE", 0)
    streamed = evaluate(model, load_dataset(**data.recipe).test, data, batch_size=5)
    torch.testing.assert_close(streamed.loss, resident.loss, rtol=1e-12, atol=0)
    assert torch.equal(streamed.accuracy, resident.accuracy)


# ---- download -------------------------------------------------------------------------------------------------------


def fake_torchvision(monkeypatch, archive):
    module = types.ModuleType("torchvision.datasets")
    module.CIFAR10 = archive
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)


def test_torchvision_downloads_where_nothing_is(tmp_path, monkeypatch):
    calls = []

    def archive(*, root, train, download):
        calls.append((root, train, download))
        folder = Path(root) / "cifar-10-batches-bin"
        folder.mkdir()
        rng = np.random.default_rng(0)
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
            records = rng.integers(0, 256, (20, 3073), dtype=np.uint8)
            records[:, 0] = np.arange(20) % 10
            (folder / f"{name}.bin").write_bytes(records.tobytes())

    fake_torchvision(monkeypatch, archive)
    for _ in range(2):
        data = load_dataset("cifar10", data_dir=tmp_path / "new", download=True)
    assert data.train_counts == (10,) * 10
    assert calls == [(str(tmp_path / "new"), True, True)]
    assert "download" not in data.recipe


@pytest.mark.parametrize("error", [OSError("<urlopen error no route>"), RuntimeError("File not found or corrupted.")])
def test_a_download_that_fails_is_one_line(tmp_path, monkeypatch, error):
    def archive(**options):
        raise error

    fake_torchvision(monkeypatch, archive)
    with pytest.raises(
        LandscapeError, match=r"download of CIFAR10 into .* failed \((<urlopen|File not).*\): try again"
    ):
        load_dataset("cifar10", data_dir=tmp_path, download=True)
    with pytest.raises(LandscapeError, match="download of CIFAR10 needs data_dir"):
        load_dataset("cifar10-lt", download=True)


def test_without_torchvision_the_remedy_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(
        LandscapeError, match=r"download of CIFAR100 needs torchvision.*pip install torchvision, or unpack"
    ):
        load_dataset("cifar100", data_dir=tmp_path, download=True)
