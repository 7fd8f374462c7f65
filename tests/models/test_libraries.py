"""Networks of torchvision and timm by name, with stand-ins for both packages, which the tests do without.

That the real ones are met is what ``analyses/benchmarks/backbones.py`` shows, which needs them.
"""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from landscape.errors import LandscapeError
from landscape.models import build_model, find_head, is_cosine_head


class Net(nn.Module):
    """A network whose classifier is not the layer registered last, and which draws a parameter of its own."""

    def __init__(self, num_classes, in_channels=3):
        super().__init__()
        self.classifier = nn.Sequential(nn.ReLU(), nn.Linear(6, num_classes))
        self.scale = nn.Parameter(torch.rand(6))
        self.features = nn.Linear(in_channels, 6)

    def forward(self, images):
        return self.classifier(self.features(images.mean((2, 3))) * self.scale)

    def get_classifier(self):
        return self.classifier[1]


class Last(Net):
    """The same, registered as torchvision does: the classifier last."""

    def __init__(self, num_classes, in_channels=3):
        super().__init__(num_classes, in_channels)
        self.classifier = self._modules.pop("classifier")


class Headless(Net):
    """A network whose library names a classifier that is no linear layer."""

    def get_classifier(self):
        return self.classifier


class Aside(Last):
    """With a second classifier for training."""

    aux_logits = True


@pytest.fixture
def asked(monkeypatch):
    """What the stand-ins were asked for."""
    calls = []
    nets = {"net": Last, "vit_net": Last, "aside": Aside, "squeeze": lambda _: nn.Conv2d(3, 1000, 1)}

    def get_model(name, weights=None, **options):
        calls.append((name, weights, options))
        if weights is not None:
            raise OSError("no route to host")
        return nets[name](1000)

    def create_model(name, pretrained=False, num_classes=1000, in_chans=3, **options):
        calls.append((name, pretrained, options))
        return Headless(num_classes) if name == "odd" else Net(num_classes, in_chans)

    models = SimpleNamespace(list_models=lambda module: [*nets], get_model=get_model)
    fixed = SimpleNamespace(fixed_input_size=True, input_size=(3, 224, 224))
    sizes = {"vit": fixed, "net": SimpleNamespace(fixed_input_size=False, input_size=(3, 224, 224))}
    timm = {
        "is_model": lambda name: name in ("net", "vit", "plain", "odd"),
        "list_models": lambda: ["net", "vit", "plain"],
    }
    timm |= {"create_model": create_model, "get_pretrained_cfg": sizes.get}
    for name, members in (("torchvision", {"models": models}), ("timm", timm)):
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def built(name, *, head="linear", seed=0, **options):
    task = {"num_classes": 4, "in_channels": 3, "image_size": 32} | options
    return build_model(name, head=head, seed=seed, **task)


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("name", ["torchvision:net", "timm:net"])
def test_the_classifier_is_replaced_and_found(name, head, asked):
    model = built(name, head=head)
    assert model(torch.ones(2, 3, 8, 8)).shape == (2, 4)
    path, module = find_head(model)
    assert (path, is_cosine_head(module)) == ("classifier.1", head == "cosine")
    assert asked == [("net", None if name.startswith("torchvision") else False, {})]
    if head == "cosine":
        torch.testing.assert_close(torch.linalg.vector_norm(module.weight.detach(), dim=0), torch.ones(4))


@pytest.mark.parametrize("name", ["torchvision:net", "timm:net"])
def test_weights_follow_the_seed_and_leave_the_global_generator(name, asked):
    def weights(seed):
        return torch.cat([p.detach().flatten() for p in built(name, seed=seed).parameters()])

    before = torch.get_rng_state()
    first = weights(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(weights(0), first)
    assert (weights(1) != first).all()


def test_networks_for_one_size_are_built_for_this_one(asked):
    built("torchvision:vit_net")
    built("timm:vit")
    built("timm:vit", image_size=224)
    built("timm:plain", in_channels=1)
    options = [options for _, _, options in asked]
    assert options == [{"image_size": 32}, {"img_size": 32}, {}, {}]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("torchvision:nett", {}, "torchvision has no model 'nett': did you mean one of: net, vit_net"),
        ("torchvision:net", {"in_channels": 1}, "torchvision:net takes images of 3 channels, got 1"),
        ("torchvision:squeeze", {}, "torchvision:squeeze does not end in one linear classifier"),
        ("torchvision:aside", {}, "torchvision:aside does not end in one linear classifier"),
        ("torchvision:net", {"pretrained": True}, "its weights not be had: no route to host$"),
        ("torchvision:net", {"pretraind": True}, "unknown option of model 'torchvision:net' 'pretraind'"),
        ("timm:odd", {}, "timm:odd does not end in one linear classifier"),
        ("timm:nt", {}, "timm has no model 'nt': did you mean one of: net"),
    ],
)
def test_what_cannot_be_built_is_said(name, options, message, asked):
    with pytest.raises(LandscapeError, match=message):
        built(name, **options)


def test_names_of_weights_are_passed_on(asked):
    with pytest.raises(LandscapeError, match="no route"):
        built("torchvision:net", pretrained="IMAGENET1K_V1")
    assert asked == [("net", "IMAGENET1K_V1", {})]


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_missing_package_is_named_with_what_installs_it(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    message = rf"model '{package}:net' needs the package {package}.*pip install 'landscape-longtail\[{package}\]'"
    with pytest.raises(LandscapeError, match=message):
        built(f"{package}:net")
