"""Our ImageNet networks beside those of torchvision and timm: names, shapes, values, derivatives.

    python -m analyses.benchmarks.backbones --out CSV

Needs torchvision and timm, which the tests do without: they check the names and shapes that are found here (by count and
hash), and run on small networks. Every network gets the other's weights by ``load_state_dict`` (strictly) and the same random
images; logits and the gradients of all parameters are compared in float64 and the logits in float32, in evaluation mode. Also
built by name through the registry: each ``torchvision:`` and ``timm:`` name, linear and cosine. About two minutes on one core
and 3 GB.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn

from landscape.models import build_model, load_backbone
from landscape.randomness import stream

NUM_CLASSES = 1000
NUM_IMAGES = 2
SIDE = 224
COLUMNS = ("model", "peer", "parameters", "tensors", "hash", "float64", "gradients", "float32", "versions")


def peers() -> dict[str, tuple[str, Callable[[], nn.Module]]]:
    """Return for each of our names the other library's name and what builds it."""
    import timm
    import torchvision.models as tv

    return {
        "resnet50-imagenet": ("torchvision:resnet50", tv.resnet50),
        "resnet152-imagenet": ("torchvision:resnet152", tv.resnet152),
        "resnext50-imagenet": ("torchvision:resnext50_32x4d", tv.resnext50_32x4d),
        "vit-b16": ("timm:vit_base_patch16_224", lambda: timm.create_model("vit_base_patch16_224")),
    }


def hash_of(model: nn.Module) -> str:
    """Return a hash of names and shapes of the state dict, whatever their order."""
    lines = sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in model.state_dict().items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def ours(name: str) -> nn.Module:
    """Return our network for the task of the comparison."""
    return build_model(name, num_classes=NUM_CLASSES, in_channels=3, image_size=SIDE)


def gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the gradients of the summed squared logits by name."""
    named = dict(model.named_parameters())
    found = torch.autograd.grad(model(images).square().sum(), list(named.values()))
    return dict(zip(named, found))


def relative(first: Tensor, second: Tensor) -> float:
    """Return the largest difference over the largest value."""
    return float((first - second).abs().max() / second.abs().max())


def compare(name: str, peer: str, build: Callable[[], nn.Module]) -> dict[str, object]:
    """Return a row: sizes, hash, and the largest differences."""
    mine, other = ours(name).eval(), build().eval()
    assert hash_of(mine) == hash_of(other), name
    assert [n for n, _ in mine.named_parameters()] == [n for n, _ in other.named_parameters()], name
    other.load_state_dict(mine.state_dict())
    images = torch.randn(NUM_IMAGES, 3, SIDE, SIDE, generator=stream(0, "backbones/images"))
    with torch.no_grad():
        single = relative(mine(images), other(images))
    mine, other, images = mine.double(), other.double(), images.double()
    with torch.no_grad():
        double = relative(mine(images), other(images))
    first, second = gradients(mine, images), gradients(other, images)
    slopes = max(relative(first[n], second[n]) for n in first)
    assert double < 1e-12, (name, double)
    assert slopes < 1e-9, (name, slopes)
    return {
        "model": name,
        "peer": peer,
        "parameters": sum(p.numel() for p in mine.parameters()),
        "tensors": len(mine.state_dict()),
        "hash": hash_of(mine),
        "float64": f"{double:.1e}",
        "gradients": f"{slopes:.1e}",
        "float32": f"{single:.1e}",
        "versions": " ".join(f"{p} {metadata.version(p)}" for p in ("torch", "torchvision", "timm")),
    }


def check_registry(peer: str) -> None:
    """Build a network by the library's name: repeatable, with both classifiers, and the backbone loads into ours."""
    for head in ("linear", "cosine"):
        task = {"num_classes": 7, "in_channels": 3, "image_size": SIDE, "head": head}
        model, again = build_model(peer, **task), build_model(peer, **task)
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values())), peer
        with torch.no_grad():
            assert model.eval()(torch.zeros(1, 3, SIDE, SIDE)).shape == (1, 7), peer
    mine = next(name for name, (other, _) in peers().items() if other == peer)
    left_out = load_backbone(build_model(mine, num_classes=3, in_channels=3, image_size=SIDE), model.state_dict())
    assert len(left_out) == 1, left_out  # the cosine classifier


def main() -> None:
    """Compare and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    with open(out, "w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        for name, (peer, build) in peers().items():
            row = compare(name, peer, build)
            table.writerow(row)
            print(row)
            check_registry(peer)


if __name__ == "__main__":
    main()
