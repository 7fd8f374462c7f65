"""From a checkpoint file to a risk: what the file records, what the caller overrides, what does not fit."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from landscape.checkpoint import read_checkpoint, write_checkpoint
from landscape.data import load_dataset
from landscape.errors import LandscapeError
from landscape.loading import CheckpointSource, load_checkpoint, load_risk
from landscape.losses import build_loss
from landscape.models import build_model


def network(head="linear"):
    model = build_model("convnet", num_classes=10, in_channels=1, image_size=8, head=head, seed=4)
    with torch.no_grad():
        for _ in range(5):  # running statistics that are not the initial ones
            model(digits().normalise(digits().train.images))
    return model.eval()


def digits(**options):
    return load_dataset("digits-lt", **options)


def spec(**changes):
    data = digits()
    return {
        "model": "convnet",
        "head": "linear",
        "num_classes": 10,
        "loss": "ce",
        "loss_options": {},
        "class_counts": list(data.train_counts),
        "data": data.recipe,
        "optimizer": "sam",
        **changes,
    }


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("ours") / "a.safetensors", network().state_dict(), spec())


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    path = tmp_path_factory.mktemp("foreign") / "b.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in network().state_dict().items()}}, path)
    return path


def class_losses(split, loss=None, data=None):
    data = data or digits()
    loss = loss or (lambda z, y: functional.cross_entropy(z, y, reduction="none"))
    with torch.no_grad():
        losses = loss(network()(data.normalise(split.images)), split.labels).double()
    return torch.stack([losses[split.labels == c].mean() for c in range(10)])


def test_a_file_of_ours_needs_no_words(ours):
    risk = load_risk(ours)
    data = digits()
    # Two float32 evaluations in different chunks.
    torch.testing.assert_close(risk.losses(risk.theta), class_losses(data.train), rtol=1e-5, atol=1e-7)
    assert tuple(risk.class_counts.tolist()) == data.train_counts
    assert risk.class_names == data.class_names
    assert risk.groups == data.groups.members
    recorded = risk.attributes
    assert recorded["checkpoint"] == "a.safetensors"
    assert recorded["checkpoint_sha256"] == read_checkpoint(ours).sha256
    assert recorded["dataset"] == "digits-lt"
    assert recorded["split"] == "train"
    assert recorded["optimizer"] == "sam"
    assert recorded["objective"] == "ce"
    assert recorded["group_rule"] == data.groups.rule
    assert recorded["augmentation"] == "none"


def test_overrides(ours):
    data = digits()
    test = load_risk(ours, split="test")
    torch.testing.assert_close(test.losses(test.theta), class_losses(data.test), rtol=1e-5, atol=1e-7)
    few = load_risk(ours, max_per_class=7, dtype=torch.float64, device=torch.device("cpu"), params="head")
    assert few.class_counts.tolist() == [min(7, n) for n in data.train_counts]
    assert few.theta.dtype == torch.float64
    assert few.layout.names == ("linear.weight", "linear.bias")
    assert few.attributes["max_per_class"] == 7
    first = torch.cat([torch.nonzero(data.train.labels == c)[:7, 0] for c in range(10)]).sort().values
    expected = class_losses(data.train.take(first))
    torch.testing.assert_close(few.losses(few.theta), expected, rtol=1e-5, atol=1e-7)
    other = load_risk(ours, imbalance_ratio=5.0, mean=[0.5], std=[0.25])
    changed = digits(imbalance_ratio=5.0, mean=[0.5], std=[0.25])
    assert tuple(other.class_counts.tolist()) == changed.train_counts
    expected = class_losses(changed.train, data=changed)
    torch.testing.assert_close(other.losses(other.theta), expected, rtol=1e-5, atol=1e-7)


def test_the_training_loss_with_its_own_options_and_counts(tmp_path):
    """On other data, too, the loss keeps the counts that it was trained with."""
    counts = digits().train_counts
    path = write_checkpoint(
        tmp_path / "a.safetensors",
        network().state_dict(),
        spec(loss="logit-adjusted", loss_options={"tau": 2.5}),
    )
    data = digits()
    expected = class_losses(data.train, build_loss("logit-adjusted", counts, tau=2.5))
    risk = load_risk(path)
    torch.testing.assert_close(risk.losses(risk.theta), expected, rtol=1e-5, atol=1e-6)
    assert risk.attributes["objective"] == "logit-adjusted"
    plain = load_risk(path, loss="ce")
    torch.testing.assert_close(plain.losses(plain.theta), class_losses(data.train), rtol=1e-5, atol=1e-7)
    default = load_risk(path, loss="vs")  # options of another loss are not carried over
    expected = class_losses(data.train, build_loss("vs", counts))
    torch.testing.assert_close(default.losses(default.theta), expected, rtol=1e-5, atol=1e-6)
    balanced = load_risk(path, imbalance_ratio=1.0)
    even = digits(imbalance_ratio=1.0)
    expected = class_losses(even.train, build_loss("logit-adjusted", counts, tau=2.5))
    torch.testing.assert_close(balanced.losses(balanced.theta), expected, rtol=1e-5, atol=1e-6)


def test_a_file_of_others_needs_model_and_data(foreign):
    with pytest.raises(LandscapeError, match=r"b\.pth does not record its data: name it with --dataset"):
        load_risk(foreign)
    risk = load_risk(foreign, dataset="digits-lt", model="convnet")
    torch.testing.assert_close(risk.losses(risk.theta), class_losses(digits().train), rtol=1e-5, atol=1e-7)
    assert risk.attributes["optimizer"] == "unknown"
    assert risk.attributes["objective"] == "ce"


def test_calibration_uses_training_images_whatever_the_split(ours):
    train, test = (
        load_risk(ours).with_batchnorm("recalibrate"),
        load_risk(ours, split="test").with_batchnorm("recalibrate"),
    )
    assert "recalibrated on 453 examples" in str(train.attributes["batchnorm"])  # all of 453: fewer than 2000
    assert "recalibrated on 453 examples" in str(test.attributes["batchnorm"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, "unknown split 'valid'.*known: test, train"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
        ({"max_per_class": 0}, "--max-per-class: expected a whole number, at least 1, got 0"),
        ({"loss": "focl"}, "unknown loss 'focl': did you mean 'focal'"),
        ({"dataset": "digit-lt"}, "unknown data set 'digit-lt': did you mean 'digits-lt'"),
        ({"model": "resnet20"}, "does not fit the model"),
        ({"head": "cosine"}, "its classifier is a linear head, the model's a cosine head"),
        ({"params": "nothing"}, "'nothing' matches none of the"),
        ({"data_dir": "/nowhere"}, "digits-lt is built in and takes no data_dir"),
    ],
)
def test_bad_sources_name_the_offence(ours, options, message):
    with pytest.raises(LandscapeError, match=message):
        load_risk(ours, **options)


def test_a_model_is_rebuilt_with_its_recorded_options(tmp_path):
    sizes = {"patch_size": 4, "width": 8, "depth": 2, "num_heads": 2}
    options = {**sizes, "num_prompts": 3, "head_dropout": 0.2}
    task = {"num_classes": 10, "in_channels": 1, "image_size": 8}
    model = build_model("vit-b16-gnm", head="cosine", seed=4, **task, **options)
    record = spec(model="vit-b16-gnm", head="cosine", model_options=options)
    path = write_checkpoint(tmp_path / "vit.safetensors", model.state_dict(), record)
    loaded = load_checkpoint(CheckpointSource(path)).model
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values()))
    assert loaded.head_dropout.p == 0.2
    for params, names in (("prompts+head", ("prompts", "head.weight")), ("trainable", ("prompts", "head.weight"))):
        assert load_risk(path, params=params, max_per_class=2).layout.names == names
    write_checkpoint(path, model.state_dict(), record | {"model_options": [8]})
    with pytest.raises(LandscapeError, match=r"its record cannot be used, 'model_options' is \[8\]"):
        load_risk(path)
    write_checkpoint(path, model.state_dict(), record | {"model_options": {"prompts": 3}})
    with pytest.raises(LandscapeError, match="unknown option of model 'vit-b16-gnm' 'prompts'"):
        load_risk(path)


def test_weights_are_not_downloaded_for_a_checkpoint_that_has_them(tmp_path, monkeypatch):
    asked = []
    model = network()
    monkeypatch.setattr("landscape.loading.build_model", lambda name, **options: asked.append(options) or model)
    record = spec(model="timm:resnet18", model_options={"pretrained": True})
    load_checkpoint(CheckpointSource(write_checkpoint(tmp_path / "a.safetensors", model.state_dict(), record)))
    assert [set(options) for options in asked] == [{"num_classes", "in_channels", "image_size", "head"}]


def test_a_network_of_others_is_recognised_with_its_sizes(tmp_path):
    model = build_model("resnet50-imagenet", num_classes=10, in_channels=1, image_size=8, width=4)
    torch.save({f"encoder.{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "w.pth")
    loaded = load_checkpoint(CheckpointSource(tmp_path / "w.pth", dataset="digits-lt")).model
    assert torch.equal(loaded.layer3[5].conv2.weight, model.layer3[5].conv2.weight)


def test_a_model_that_is_not_named_anywhere(foreign):
    with pytest.raises(LandscapeError, match=r"b\.pth does not record its model: name it with --model"):
        load_checkpoint(CheckpointSource(foreign, dataset="digits-lt"))


def test_a_missing_file(tmp_path):
    with pytest.raises(LandscapeError, match=r"missing\.pth"):
        load_risk(tmp_path / "missing.pth", dataset="digits-lt", model="convnet")
