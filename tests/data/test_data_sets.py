"""Digits, arrays and what every data set shares: registry, recipe, normalisation."""

import json

import numpy as np
import pytest
import torch

import landscape.data as data_package
from landscape.data import DATASETS, load_dataset
from landscape.errors import LandscapeError


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits-lt")


def write_arrays(path, **changes):
    """Write a small .npz: 3 classes of 20, 15 and 10 grey images of 5 x 6 pixels."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(3), [20, 15, 10]))
    content = {"images": rng.integers(0, 256, (45, 5, 6), dtype=np.uint8), "labels": labels} | changes
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    return content


def test_digits_have_a_long_tail_and_a_balanced_test(digits):
    assert digits.train_counts == (134, 96, 68, 49, 35, 25, 18, 13, 9, 6)
    assert digits.test.counts(10) == (40,) * 10
    assert (digits.train.images.shape[1:], digits.train.images.dtype) == ((1, 8, 8), torch.uint8)
    assert int(digits.train.images.max()) == digits.pixel_max == 16
    assert digits.class_names == tuple("0123456789")
    assert (digits.num_classes, digits.augmentation, digits.groups.rule) == (10, "none", "mislas-cifar10")
    assert digits.recipe["imbalance_ratio"] == 20


def test_digits_test_split_is_fixed_and_disjoint(digits):
    other = load_dataset("digits-lt", imbalance_ratio=1, selection="first")
    assert other.train_counts == (134,) * 10
    assert torch.equal(other.test.images, digits.test.images)
    seen = {image.numpy().tobytes() for image in other.train.images}
    assert not any(image.numpy().tobytes() in seen for image in other.test.images)


def test_digits_constants_are_those_of_the_whole_set(digits):
    from sklearn.datasets import load_digits

    pixels = load_digits().images / 16
    assert digits.mean == (pytest.approx(pixels.mean(), abs=5e-5),)
    assert digits.std == (pytest.approx(pixels.std(), abs=5e-5),)


def test_selections_differ(digits):
    first = load_dataset("digits-lt", selection="first")
    assert first.train_counts == digits.train_counts
    assert not torch.equal(first.train.images, digits.train.images)


def test_normalise_is_the_formula(digits):
    images = digits.test.images[:3]
    expected = (images.double() / 16 - 0.3053) / 0.3760
    assert torch.allclose(digits.normalise(images, torch.float64), expected, rtol=1e-14, atol=0)
    assert digits.normalise(images).dtype == torch.float32


def test_recipes_rebuild_the_data(tmp_path, digits):
    write_arrays(tmp_path / "a.npz")
    arrays = load_dataset("arrays", data_dir=tmp_path / "a.npz", imbalance_ratio=4, selection="first", profile="step")
    for data in (digits, arrays):
        again = load_dataset(**json.loads(json.dumps(data.recipe)))
        assert again.recipe == data.recipe
        assert torch.equal(again.train.images, data.train.images)
        assert torch.equal(again.test.labels, data.test.labels)
        assert (again.mean, again.std, again.groups) == (data.mean, data.std, data.groups)


def test_mean_and_std_can_be_chosen(digits):
    data = load_dataset("digits-lt", mean=[0.5], std=(0.25,))
    assert (data.mean, data.std, data.recipe["mean"]) == ((0.5,), (0.25,), [0.5])
    assert load_dataset("digits-lt", mean=[0.5]).std == digits.std


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.1, 0.2, 0.3)}, r"mean needs 1 finite numbers, one per channel, got \[0.1, 0.2, 0.3\]"),
        ({"std": (0.0,)}, r"std must be positive in every channel, got \[0.0\]"),
        ({"std": (float("nan"),)}, "std needs 1 finite"),
        ({"imbalance_ratio": 0.05}, "got 0.05: did you mean 20"),
        ({"imbalance_ratio": 1000}, "imbalance_ratio 1000 leaves class"),
        ({"group_rule": "nobody"}, "unknown group rule 'nobody'"),
        ({"profile": "steps"}, "did you mean 'step'"),
        ({"selection": "seed7"}, "unknown selection 'seed7'"),
        ({"data_dir": "somewhere"}, "takes no data_dir, got somewhere"),
    ],
)
def test_bad_options_are_one_line(options, message):
    with pytest.raises(LandscapeError, match=message) as caught:
        load_dataset("digits-lt", **options)
    assert "\n" not in str(caught.value)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(LandscapeError, match="unknown data set 'cifar10lt': did you mean 'cifar10-lt'"):
        load_dataset("cifar10lt")
    images = {"imagenet-lt", "places-lt", "inaturalist18", "image-list", "image-folder"}
    assert set(DATASETS) == {"digits-lt", "cifar10-lt", "cifar100-lt", "cifar10", "cifar100", "arrays", *images}
    assert all(hasattr(data_package, name) for name in data_package.__all__)


def test_arrays_hold_out_a_balanced_test(tmp_path):
    content = write_arrays(tmp_path / "a.npz", class_names=np.array(["x", "y", "z"]))
    data = load_dataset("arrays", data_dir=tmp_path / "a.npz")
    assert data.test.counts(3) == (2, 2, 2)
    assert data.train_counts == (18, 13, 8)
    assert data.class_names == ("x", "y", "z")
    assert data.train.images.shape == (39, 1, 5, 6)
    assert data.groups.members == {"head": (0,), "medium": (1,), "tail": (2,)}
    kept = [i for i in range(45) if content["images"][i].tobytes() in {t.numpy().tobytes() for t in data.train.images}]
    assert data.train.labels.tolist() == content["labels"][kept].tolist()
    pixels = data.train.images.double() / 255
    assert data.mean[0] == pytest.approx(float(pixels.mean()), rel=1e-12)
    assert data.std[0] == pytest.approx(float(pixels.std(unbiased=False)), rel=1e-12)


def test_arrays_with_test_split_keep_file_order(tmp_path):
    content = write_arrays(
        tmp_path / "a.npz", test_images=np.zeros((3, 5, 6), np.uint8), test_labels=np.arange(3, dtype=np.uint8)
    )
    data = load_dataset("arrays", data_dir=str(tmp_path / "a.npz"))
    assert (data.train.images[:, 0].numpy() == content["images"]).all()
    assert data.train.labels.tolist() == content["labels"].tolist()
    assert data.train_counts == (20, 15, 10)
    assert len(data.test) == 3
    assert load_dataset("arrays", data_dir=tmp_path / "a.npz", imbalance_ratio=5).train_counts == (10, 4, 2)


@pytest.mark.parametrize("shape", [(45, 5, 6, 3), (45, 3, 5, 6), (45, 5, 6, 1), (45, 1, 5, 6)])
def test_arrays_accept_channels_first_and_last(tmp_path, shape):
    images = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    write_arrays(tmp_path / "a.npz", images=images, test_images=images[:3], test_labels=np.arange(3))
    data = load_dataset("arrays", data_dir=tmp_path / "a.npz")
    expected = images if shape[1] in (1, 3) else np.moveaxis(images, 3, 1)
    assert (data.train.images.numpy() == expected).all()
    assert len(data.mean) == expected.shape[1]


def test_a_constant_channel_is_left_alone(tmp_path):
    write_arrays(tmp_path / "a.npz", images=np.full((45, 5, 6), 51, np.uint8))
    data = load_dataset("arrays", data_dir=tmp_path / "a.npz")
    assert (data.mean, data.std) == ((pytest.approx(0.2),), (1.0,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, r"array 'images' is missing, the file has \['labels'\]"),
        ({"labels": None}, "array 'labels' is missing"),
        ({"images": np.zeros((45, 5, 6))}, "must be uint8 pixels from 0 to 255, got float64"),
        ({"images": np.zeros((44, 5, 6), np.uint8)}, "has 44 images, 'labels' 45 labels"),
        ({"images": np.zeros((45, 3, 5, 3), np.uint8)}, r"of shape \(45, 3, 5, 3\) is not"),
        ({"images": np.zeros((45, 30), np.uint8)}, r"of shape \(45, 30\) is not"),
        ({"labels": np.zeros(45)}, r"whole numbers of shape \(N,\), got float64"),
        ({"labels": np.full(45, -1)}, "label -1, out of range"),
        ({"labels": np.full(45, 2**63, np.uint64)}, "out of range"),
        ({"labels": np.full(45, 10**12)}, "label 1000000000000 is out of range for 45 training images"),
        ({"labels": np.full(45, 2)}, "class 0 has no training example"),
        ({"labels": np.array([0] * 44 + [1])}, "class 1 has 1 example, so none can be held out"),
        ({"labels": np.array([None] * 45)}, "not a readable .npz file of plain arrays"),
        ({"class_names": np.array(["a", "b"])}, "label 2 is out of range for 2 class names"),
        ({"class_names": np.array(["a", "b", "a"])}, "must differ from each other"),
        ({"class_names": np.array(["a", "b", "tail"])}, "'tail'"),
        ({"test_images": np.zeros((3, 5, 6), np.uint8)}, "'test_images' and 'test_labels' go together"),
        (
            {"test_images": np.zeros((3, 6, 6), np.uint8), "test_labels": np.arange(3)},
            r"training images are \(1, 5, 6\).*test images \(1, 6, 6\)",
        ),
    ],
)
def test_bad_arrays_are_refused(tmp_path, changes, message):
    write_arrays(tmp_path / "a.npz", **changes)
    with pytest.raises(LandscapeError, match=message) as caught:
        load_dataset("arrays", data_dir=tmp_path / "a.npz")
    assert "\n" not in str(caught.value)


def test_unreadable_array_files_are_refused(tmp_path):
    with pytest.raises(LandscapeError, match="arrays needs data_dir"):
        load_dataset("arrays")
    with pytest.raises(LandscapeError, match=r"none.npz is not a file"):
        load_dataset("arrays", data_dir=tmp_path / "none.npz")
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(LandscapeError, match="it holds a single array"):
        load_dataset("arrays", data_dir=tmp_path / "single.npy")
    write_arrays(tmp_path / "a.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:300])
    with pytest.raises(LandscapeError, match=r"cut.npz: not a readable"):
        load_dataset("arrays", data_dir=tmp_path / "cut.npz")
