"""Models: parameter names and sizes of the released networks, reproducible weights, heads."""

import pytest
import torch
from torch import nn

from landscape.errors import LandscapeError
from landscape.losses import build_loss
from landscape.models import (
    MODELS,
    NormedLinear,
    build_model,
    check_model,
    find_head,
    is_cosine_head,
    model_options,
)
from landscape.randomness import stream

SHAPES = [(1, 8), (3, 32)]
VIT = {"patch_size": 4, "width": 8, "depth": 2, "num_heads": 2}
# Options that make the large networks small.
SMALL = {"resnet34-cifar": {"width": 4}, "resnet50-imagenet": {"width": 4}, "resnet152-imagenet": {"width": 2}}
SMALL |= {"resnext50-imagenet": {"width": 16}, "vit-b16": VIT, "vit-b16-gnm": VIT, "vit-b16-vpt": VIT}
HEADS = {"resnet32-bbn": "classifier.fc", "vit-b16": "head", "vit-b16-gnm": "head", "vit-b16-vpt": "head"}
HEADS |= dict.fromkeys((name for name in SMALL if name.startswith("resne")), "fc")


def images(channels, size, count=4):
    return torch.randn(count, channels, size, size, generator=stream(0, "images"))


@pytest.mark.parametrize(("channels", "size"), SHAPES)
@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_maps_images_to_logits(name, head, channels, size):
    options = SMALL.get(name, {})
    model = build_model(name, num_classes=7, in_channels=channels, image_size=size, head=head, **options)
    with torch.no_grad():
        logits = model(images(channels, size))
    assert logits.shape == (4, 7)
    assert logits.isfinite().all()
    assert model.training
    assert (logits.abs() <= 1 + 1e-6).all() or head == "linear"
    head_name, module = find_head(model)
    assert head_name == HEADS.get(name, "linear")
    assert is_cosine_head(module) == (head == "cosine")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
    ],
)
def test_resnets_have_the_published_sizes(name, parameters):
    model = build_model(name, num_classes=10, in_channels=3, image_size=32)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_resnet32_has_the_released_state_dict():
    state = build_model("resnet32", num_classes=10, in_channels=3, image_size=32).state_dict()
    # released before the batch counters were introduced; 466,426 entries in 157 tensors
    released = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert (sum(tensor.numel() for tensor in released.values()), len(released)) == (466_426, 157)
    prefixed = {f"module.{name}": tensor for name, tensor in released.items()}
    other = build_model("resnet32", num_classes=10, in_channels=3, image_size=32, seed=1)
    other.load_state_dict({name.removeprefix("module."): tensor for name, tensor in prefixed.items()})
    assert torch.equal(other.layer3[4].conv2.weight, state["layer3.4.conv2.weight"])
    statistics = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = ["conv1.weight", *(f"bn1.{s}" for s in statistics)]
    for stage in (1, 2, 3):
        for block in range(5):
            for i in (1, 2):
                expected.append(f"layer{stage}.{block}.conv{i}.weight")
                expected += [f"layer{stage}.{block}.bn{i}.{s}" for s in statistics]
    assert list(state) == [*expected, "linear.weight", "linear.bias"]
    assert state["layer2.0.conv1.weight"].shape == (32, 16, 3, 3)
    assert state["linear.weight"].shape == (10, 64)


def test_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides():
    block = build_model("resnet20", num_classes=10, in_channels=3, image_size=32).layer2[0].eval()
    with torch.no_grad():
        block.bn2.weight.zero_()
        x = torch.rand(2, 16, 6, 6, generator=stream(0, "x"))
        out = block(x)
    assert out.shape == (2, 32, 3, 3)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("name", ["mlp", "convnet", "resnet20", "resnet32-bbn", *SMALL])
def test_weights_follow_the_seed_and_leave_the_global_generator(name, head):
    def weights(seed):
        options = SMALL.get(name, {})
        model = build_model(name, num_classes=10, in_channels=1, image_size=8, head=head, seed=seed, **options)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    before = torch.get_rng_state()
    first = weights(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)


def test_initial_scales():
    model = build_model("resnet20", num_classes=100, in_channels=3, image_size=32)
    kernel = model.layer3[2].conv2.weight.detach()
    # He-normal by fan-in; 5 standard errors of a standard deviation over 36,864 draws
    assert float(kernel.std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=5 / (2 * kernel.numel()) ** 0.5)
    assert 0.1 < float(model.linear.bias.detach().abs().max()) <= 1 / 8
    assert (model.bn1.weight == 1).all()
    cosine = build_model("mlp", num_classes=10, in_channels=1, image_size=8, head="cosine").linear
    torch.testing.assert_close(torch.linalg.vector_norm(cosine.weight, dim=0), torch.ones(10))


@pytest.mark.parametrize("size", [(1, 8), (3, 32)])
def test_convnet_is_small(size):
    model = build_model("convnet", num_classes=10, in_channels=size[0], image_size=size[1])
    assert 5000 < sum(p.numel() for p in model.parameters()) < 8000


def cosine_problem():
    head = build_model("mlp", num_classes=5, in_channels=1, image_size=8, head="cosine").linear.double()
    with torch.no_grad():
        head.weight.mul_(torch.linspace(0.5, 3, 5))
    features = torch.randn(6, 32, generator=stream(0, "features"), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 4, 4])
    criterion = build_loss("ldam", [50, 20, 10, 5, 2])

    def loss(weight, inputs):
        return criterion(torch.func.functional_call(head, {"weight": weight}, inputs), labels).mean()

    return head, features, loss


def test_cosine_head_is_the_cosine():
    head, features, _ = cosine_problem()
    for c in range(5):
        expected = torch.cosine_similarity(features, head.weight[:, c].expand_as(features), dim=1)
        torch.testing.assert_close(head(features)[:, c], expected)
    assert "in_features=32, num_classes=5" in repr(head)


def test_cosine_loss_ignores_the_length_of_columns_and_features():
    head, features, loss = cosine_problem()
    weight = head.weight.detach().requires_grad_()
    value = loss(weight, features)
    scales = torch.tensor([0.1, 3.0, 1.0, 7.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(loss(weight * scales, 4.2 * features), value, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(value, weight)
    # Euler: along each column w_c' grad_c = 0
    assert (weight * gradient).sum(0).abs().max() < 1e-14 * gradient.norm() * weight.norm() * 10
    # and a column twice as long has half the gradient
    doubled = (2 * weight.detach()).requires_grad_()
    (half,) = torch.autograd.grad(loss(doubled, features), doubled)
    torch.testing.assert_close(half, gradient / 2, rtol=1e-12, atol=1e-16)


def test_cosine_hessian_falls_with_the_squared_length():
    head, features, loss = cosine_problem()
    weight = head.weight.detach()
    hessians = [torch.autograd.functional.hessian(lambda w: loss(w, features), s * weight) for s in (1, 2)]
    torch.testing.assert_close(hessians[1], hessians[0] / 4, rtol=1e-10, atol=1e-14)


def test_find_head_takes_the_last_linear_layer():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 3), nn.Dropout()))
    assert find_head(model) == ("2.0", model[2][0])
    foreign = type("NormedLinear", (nn.Module,), {})()
    foreign.weight = nn.Parameter(torch.ones(4, 3))
    wrapped = nn.ModuleDict({"fc": nn.Linear(4, 4), "cosine": foreign})
    assert find_head(wrapped) == ("cosine", foreign)
    assert not is_cosine_head(nn.Linear(4, 3))
    assert find_head(NormedLinear(4, 3))[0] == ""


def test_no_head_is_reported():
    with pytest.raises(LandscapeError, match=r"no classifier found in Conv2d: expected a torch.nn.Linear"):
        find_head(nn.Conv2d(3, 4, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "resnet21"}, "unknown model 'resnet21': did you mean 'resnet"),
        ({"head": "cosin"}, "unknown head 'cosin': did you mean 'cosine'"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"in_channels": -1}, "in_channels must be at least 1, got -1"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"name": "resnet50"}, "unknown model 'resnet50': did you mean 'resnet50-imagenet'"),
        ({"name": "torchvison:resnet50"}, "unknown model 'torchvison:resnet50': did you mean 'torchvision:NAME'"),
        ({"width": 3}, r"unknown option of model 'mlp' 'width': known: \(none\)"),
        ({"name": "resnet20", "num_blocks": 5}, r"unknown option of model 'resnet20' 'num_blocks': known: \(none\)"),
        (
            {"name": "resnext50-imagenet", "width": 8},
            "width: expected a multiple of 16 for groups of 4 channels, got 8",
        ),
        ({"name": "resnet50-imagenet", "width": 0}, "width: expected a whole number of at least 1, got 0"),
        ({"name": "resnet32-bbn", "unused_blocks": 1}, "unused_blocks: expected true or false, got 1"),
        ({"name": "vit-b16", "promts": 3}, "unknown option of model 'vit-b16' 'promts'"),
        ({"name": "vit-b16"}, "image_size: expected a multiple of patch_size 16, got 8: resize the images"),
        ({"name": "vit-b16", **VIT, "num_heads": 3}, "width: expected a multiple of num_heads 3, got 8"),
        ({"name": "vit-b16", **VIT, "depth": 0.5}, "depth: expected a whole number of at least 1, got 0.5"),
        ({"name": "vit-b16-vpt", **VIT, "num_prompts": 0}, "num_prompts: expected a whole number of at least 1, got 0"),
        (
            {"name": "vit-b16-gnm", **VIT, "head_dropout": 1},
            "dropout: expected a share of at least 0 and below 1, got 1",
        ),
        ({"name": "vit-b16-gnm", **VIT, "train_backbone": "yes"}, "train_backbone: expected true or false, got 'yes'"),
    ],
)
def test_bad_requests_are_refused(changes, message):
    arguments = {"name": "mlp", "num_classes": 10, "in_channels": 1, "image_size": 8} | changes
    with pytest.raises(LandscapeError, match=message):
        build_model(arguments.pop("name"), **arguments)


def test_options_are_known_without_building():
    assert model_options("resnet32") == ()
    assert model_options("resnext50-imagenet") == ("width",)
    assert model_options("timm:vit_base_patch16_224") == ("pretrained",)  # whether or not timm is installed
    assert {"num_prompts", "head_dropout", "depth"} <= set(model_options("vit-b16-gnm"))
    assert "prompt_dropout" not in model_options("vit-b16-gnm")
    check_model("vit-b16-gnm", {"num_prompts": 10})
    with pytest.raises(LandscapeError, match="did you mean 'num_prompts'"):
        check_model("vit-b16-gnm", {"prompts": 10})
