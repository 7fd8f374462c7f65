"""Recipes that tune prompts of a vision transformer (GNM-PT); its weights come from ``--start``."""

from __future__ import annotations

from typing import Any

from landscape.recipes.recipe import Published, Recipe, at_ratios, by_groups

SLIDE = "GNM slides (NeurIPS 2024)"
POSTER = "GNM poster, figure 4, groups of MiSLAS"
NET = "NET table of the GNM poster"
GNM_TITLE = "Li et al., GNM, NeurIPS 2024"
RELEASED = "released configuration and README for CIFAR-100-LT"
DIFFERENCES = (
    "needs the weights of ViT-B/16 pre-trained on ImageNet-21k: --start FILE",
    "the release keeps the network in evaluation mode after its first validation; here dropout stays on",
    "released accuracies are means of batch means, of the best epoch on the test set",
)
# 70 epochs, batch 128, lr 0.01 * 128 / 256; re-weighting from epoch 60 on.
PROMPTS: dict[str, Any] = {
    "model": "vit-b16-gnm",
    "resize": 224,
    "epochs": 70,
    "batch_size": 128,
    "lr": 0.005,
    "weight_decay": 1e-3,
    "schedule": "cosine-gnm",
    "augmentation": "crop-flip-autoaugment-cutout",
    "seed": 42,
}
GCL_DRW: dict[str, Any] = {
    "loss": "gcl",
    "loss_options": {"scale": 25, "margin": 0.1, "noise_mul": 1},
    "reweight": "drw",
    "reweight_beta": 0.9998,
    "drw_start": 60 / 70,
}
# The release does not state SAM's radius in this comparison.
SAM: dict[str, Any] = {"optimizer": "sam", "optimizer_options": {"rho": 0.05}}
GNM: dict[str, Any] = {"optimizer": "gnm", "optimizer_options": {"decay_every": 59, "schedule": "described"}}


def _net(value: float) -> Published:
    return Published(NET, all=value, imbalance_ratio=100.0)


def _poster(*values: float) -> Published:
    head, medium, tail = values
    return Published(POSTER, head=head, medium=medium, tail=tail, imbalance_ratio=100.0)


def _recipe(changes: dict[str, Any], *published: Published) -> Recipe:
    return Recipe(GNM_TITLE, RELEASED, {**PROMPTS, **changes}, published, DIFFERENCES)


PROMPT_RECIPES: dict[str, Recipe] = {
    "cifar100-lt/vpt-ce": _recipe({"head": "linear"}, _net(81.02), _poster(92.11, 82.86, 64.83)),
    "cifar100-lt/vpt-ce+sam": _recipe({"head": "linear", **SAM}, _net(82.48), _poster(92.83, 84.31, 66.97)),
    "cifar100-lt/vpt-ce+gnm": _recipe({"head": "linear", **GNM}, _net(82.50), _poster(93.31, 83.74, 67.14)),
    "cifar100-lt/gnm-pt-gcl": _recipe(GCL_DRW, _net(89.58), _poster(89.89, 90.20, 88.28)),
    "cifar100-lt/gnm-pt-gcl+sam": _recipe({**GCL_DRW, **SAM}, _net(89.69), _poster(90.14, 90.57, 87.86)),
    "cifar100-lt/gnm-pt-gcl+gnm": _recipe(
        {**GCL_DRW, **GNM},
        *at_ratios(SLIDE, r200=89.2, r100=90.3, r50=91.2, r10=91.8),
        _net(90.28),
        _poster(90.25, 90.74, 89.62),
    ),
    "places-lt/gnm-pt-gcl+gnm": Recipe(
        GNM_TITLE,
        "settings for Places-LT are not public: those of CIFAR-100-LT",
        {**PROMPTS, **GCL_DRW, **GNM, "resize": None, "augmentation": None},
        (by_groups(SLIDE, (46.6, 53.3, 49.4, 50.1)), by_groups(f"{SLIDE}, second variant", (48.6, 52.1, 47.9, 50.0))),
        DIFFERENCES,
    ),
    "inaturalist18/gnm-pt-gcl+gnm": Recipe(
        GNM_TITLE,
        "settings for iNaturalist are not public: those of CIFAR-100-LT",
        {**PROMPTS, **GCL_DRW, **GNM, "resize": None, "augmentation": None},
        (by_groups(SLIDE, (61.5, 77.1, 79.3, 76.5)), by_groups(f"{SLIDE}, second variant", (76.3, 77.6, 75.0, 76.3))),
        DIFFERENCES,
    ),
}
