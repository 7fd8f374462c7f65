"""The ImageNet residual networks, CC-SAM's and ImbSAM's: names, sizes, first weights, values, published weights."""

import csv
import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from landscape.errors import LandscapeError
from landscape.models import MODELS, NormedLinear, build_model, infer_architecture, load_backbone
from landscape.models.imagenet import ImageNetResNet
from landscape.randomness import stream

MEASURED = Path(__file__).parents[2] / "analyses" / "benchmarks" / "backbones.csv"
ROWS = {row["model"]: row for row in csv.DictReader(MEASURED.read_text().splitlines())}


def skeleton(name, num_classes=1000, size=224, head=nn.Linear, **options):
    """Return a network of full size without its weights."""
    with torch.device("meta"):
        return MODELS[name](lambda features: head(features, num_classes), 3, size, **options)


def size_of(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", ROWS)
def test_names_and_shapes_are_those_that_the_comparison_found_in_torchvision_and_timm(name):
    """The benchmark, which needs both packages, compared values too and found the same bits."""
    model, row = skeleton(name), ROWS[name]
    lines = sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in model.state_dict().items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == row["hash"]
    assert size_of(model) == int(row["parameters"])
    assert [float(row[column]) for column in ("float64", "gradients", "float32")] == [0, 0, 0]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet50-imagenet", 25_557_032),  # as published with torchvision's weights
        ("resnet152-imagenet", 60_192_808),
        ("resnext50-imagenet", 25_028_904),
        ("vit-b16", 86_567_656),  # with timm's
        # ResNet-34 of torchvision, 21,797,672, with a stem of 3 x 3 in the place of 7 x 7
        ("resnet34-cifar", 21_797_672 - 64 * 3 * (49 - 9)),
    ],
)
def test_published_sizes(name, parameters):
    assert size_of(skeleton(name)) == parameters


def tiny(block, **options):
    options = {"groups": 1, "group_width": 64, "width": 8, "stem": "imagenet"} | options
    head = nn.Linear(ImageNetResNet.num_features(block, options["width"]), 3)
    model = ImageNetResNet(head, block=block, num_blocks=(2, 1, 1, 1), in_channels=3, **options).double()
    model.draw_weights(stream(0, "imagenet/weights"))
    for index, layer in enumerate(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        draws = torch.rand(4, layer.num_features, generator=stream(0, f"imagenet/norm={index}"), dtype=torch.float64)
        with torch.no_grad():
            for tensor, draw in zip((layer.weight, layer.bias, layer.running_mean, layer.running_var), draws):
                tensor.copy_(draw + 0.5)
    return model.eval()


def convolved(x, weight, stride=1):
    """A convolution in groups, group by group, with half a kernel of padding."""
    groups = x.shape[1] // weight.shape[1]
    parts = zip(x.chunk(groups, 1), weight.chunk(groups, 0))
    return torch.cat([functional.conv2d(a, w, None, stride, weight.shape[-1] // 2) for a, w in parts], 1)


def transcribed(state, x, *, stem_stride, is_pooled):
    """The published network from its state dict alone: post-activation, the stride at the 3 x 3 convolution."""

    def normed(x, name):
        parts = (state[f"{name}.{s}"].view(-1, 1, 1) for s in ("running_mean", "running_var", "weight", "bias"))
        mean, variance, weight, bias = parts
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    x = normed(convolved(x, state["conv1.weight"], stem_stride), "bn1").clamp(min=0)
    if is_pooled:
        x = functional.unfold(functional.pad(x, (1, 1, 1, 1)), 3, stride=2).unflatten(1, (x.shape[1], 9)).amax(2)
        x = x.unflatten(2, (int(x.shape[-1] ** 0.5), -1))  # zeros of the padding are below no rectified value
    blocks = [".".join(name.split(".")[:2]) for name in state if name.endswith(".conv1.weight")]
    for name in blocks:
        convolutions = [n for n in (1, 2, 3) if f"{name}.conv{n}.weight" in state]
        strided = convolutions[-2]  # the 3 x 3 of a bottleneck, the first of a basic block
        stride = 2 if name[-1] == "0" and name[:6] != "layer1" else 1
        y = x
        for n in convolutions:
            y = normed(convolved(y, state[f"{name}.conv{n}.weight"], stride if n == strided else 1), f"{name}.bn{n}")
            y = y if n == convolutions[-1] else y.clamp(min=0)
        if f"{name}.downsample.0.weight" in state:
            x = normed(convolved(x, state[f"{name}.downsample.0.weight"], stride), f"{name}.downsample.1")
        x = (x + y).clamp(min=0)
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize(
    ("block", "options"),
    [
        ("bottleneck", {}),
        ("bottleneck", {"groups": 8, "group_width": 4, "width": 16}),
        ("basic", {}),
        ("basic", {"stem": "cifar"}),
    ],
)
def test_the_networks_compute_what_is_published(block, options):
    model = tiny(block, **options)
    images = torch.randn(3, 3, 32, 32, generator=stream(0, "imagenet/images"), dtype=torch.float64)
    is_large = options.get("stem") != "cifar"
    expected = transcribed(model.state_dict(), images, stem_stride=2 if is_large else 1, is_pooled=is_large)
    torch.testing.assert_close(model(images), expected, rtol=1e-11, atol=1e-11)


def test_first_weights_are_torchvisions():
    model = build_model("resnet34-cifar", num_classes=10, in_channels=3, image_size=32, width=32)
    kernel = model.layer3[1].conv2.weight.detach()
    # He-normal by fan-out; 5 standard errors of a standard deviation
    assert float(kernel.std()) == pytest.approx((2 / (128 * 9)) ** 0.5, rel=5 / (2 * kernel.numel()) ** 0.5)
    # The stem and the classifier are put in afterwards and keep torch's default: uniform within 1 / sqrt(fan_in).
    for layer, fan_in in ((model.conv1, 27), (model.fc, 256)):
        assert 0.9 * fan_in**-0.5 < float(layer.weight.detach().abs().max()) <= fan_in**-0.5
    large = build_model("resnet50-imagenet", num_classes=10, in_channels=3, image_size=32, width=16)
    assert float(large.conv1.weight.detach().abs().max()) > 2 * (2 / (16 * 49)) ** 0.5  # normal, not uniform


def bbn(**options):
    return build_model("resnet32-bbn", num_classes=10, in_channels=3, image_size=32, **options)


def test_bbn_resnet_is_30_layers_deep_and_two_blocks_are_dead():
    model = bbn()
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    dead = size_of(model.cb_block) + size_of(model.rb_block)
    assert (len(layers), dead) == (34, 147_968)  # four of them in the dead blocks
    images = torch.randn(2, 3, 32, 32, generator=stream(0, "bbn/images"))
    model(images).sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {name for name, _ in model.named_parameters() if name[:3] in ("cb_", "rb_")}
    lean = bbn(unused_blocks=False)
    assert size_of(model) - size_of(lean) == dead
    lean.load_state_dict({name: t for name, t in model.state_dict().items() if name[:3] not in ("cb_", "rb_")})
    assert torch.equal(lean.eval()(images), model.eval()(images))


def test_bbn_resnet_has_the_released_names():
    state = bbn().state_dict()
    owners = {name.rpartition(".")[0] for name in state}
    blocks = [f"layer{s}.{b}" for s, n in ((1, 5), (2, 5), (3, 4)) for b in range(n)] + ["cb_block", "rb_block"]
    expected = {f"{block}.{layer}{i}" for block in blocks for layer in ("conv", "bn") for i in (1, 2)}
    assert owners == expected | {"conv1", "bn1", "classifier.fc"}
    assert state["classifier.fc.weight"].shape == (10, 64)


def test_published_weights_load_under_any_classifier():
    task = {"in_channels": 3, "image_size": 32, "width": 4}
    source = build_model("resnet50-imagenet", num_classes=1000, seed=1, **task)
    model = build_model("resnet50-imagenet", num_classes=5, head="cosine", **task)
    fresh = model.fc.weight.detach().clone()
    wrapped = {f"module.encoder.{name}": tensor for name, tensor in source.state_dict().items()}
    assert load_backbone(model, wrapped) == ("fc.weight", "fc.bias")
    assert torch.equal(model.layer4[2].conv3.weight, source.layer4[2].conv3.weight)
    assert torch.equal(model.layer1[0].bn1.running_var, source.layer1[0].bn1.running_var)
    assert torch.equal(model.fc.weight, fresh)
    headless = {name: t for name, t in source.state_dict().items() if not name.startswith("fc.")}
    assert load_backbone(model, headless) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layer3.5.bn2.weight"), r"\(ImageNetResNet\): missing: layer3.5.bn2.weight$"),
        (lambda state: state.update({"layer5.w": torch.ones(1)}), r"unknown: layer5.w$"),
        (
            lambda state: state.update({"conv1.weight": torch.ones(4, 3, 3, 3)}),
            r"conv1.weight \(4, 3, 3, 3\) instead of",
        ),
    ],
)
def test_weights_of_another_backbone_are_refused_and_nothing_is_copied(change, message):
    model = build_model("resnet50-imagenet", num_classes=5, in_channels=3, image_size=32, width=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = build_model("resnet50-imagenet", num_classes=5, in_channels=3, image_size=32, width=4, seed=1).state_dict()
    change(other)
    with pytest.raises(LandscapeError, match=message):
        load_backbone(model, other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("head", [nn.Linear, NormedLinear])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet32-bbn", {}),
        ("resnet32-bbn", {"unused_blocks": False}),
        ("resnet34-cifar", {}),
        ("resnet50-imagenet", {}),
        ("resnet50-imagenet", {"width": 32}),
        ("resnet152-imagenet", {}),
        ("resnext50-imagenet", {}),
        ("vit-b16", {}),
        ("vit-b16", {"width": 192, "num_heads": 3}),
    ],
)
def test_architectures_are_inferred(name, options, head):
    state = skeleton(name, 7, head=head, **options).state_dict()
    found = infer_architecture(state)
    assert (found.model, found.num_classes, found.in_channels, found.options) == (name, 7, 3, options)
    assert found.head == ("linear" if head is nn.Linear else "cosine")


def test_relatives_are_not_taken_for_them():
    resnet = skeleton("resnet50-imagenet").state_dict()
    vit = skeleton("vit-b16").state_dict()
    assert infer_architecture({name: t for name, t in resnet.items() if name != "fc.weight"}) is None
    assert infer_architecture(resnet | {"layer1.0.se.fc1.weight": torch.zeros(1)}) is None  # squeeze and excitation
    assert infer_architecture({name: t for name, t in resnet.items() if not name.startswith("layer4.2")}) is None
    assert infer_architecture(vit | {"blocks.0.ls1.gamma": torch.zeros(768)}) is None  # layer scale
    assert infer_architecture(vit | {"pre_logits.fc.weight": torch.zeros(768, 768)}) is None
    assert infer_architecture({name: t for name, t in vit.items() if not name.startswith("head")}) is None
    assert infer_architecture(skeleton("vit-b16-gnm").state_dict()) is None  # or VPT's: the same tensors
    with torch.device("meta"):
        sixth = MODELS["resnet20"](lambda features: nn.Linear(features, 7), 3, 32).state_dict()
    fifty = {
        name.replace("layer1.0.", f"layer{s}.{b}."): t for s in (1, 2, 3) for b in range(8) for name, t in sixth.items()
    }
    assert infer_architecture(fifty) is None  # 6 * 8 + 2 layers, but no ResNet-50 of ImageNet
