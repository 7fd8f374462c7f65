"""Recipes on ImageNet-LT, Places-LT and iNaturalist 2018, read from lists of images."""

from __future__ import annotations

from typing import Any

from landscape.recipes.recipe import Published, Recipe, by_groups

SLIDE = "CC-SAM slides (CVPR 2023)"
SADDLE = "Saddle-LongTail README (NeurIPS 2022)"
RERUN = "independent re-run of the SAM family (RDR, NeurIPS 2024)"
RANGWANI = "Rangwani et al., Escaping Saddle Points, NeurIPS 2022"
SADDLE_SCRIPTS = "released run scripts of Saddle-LongTail"
KANG = "Kang et al., Decoupling Representation and Classifier, ICLR 2020"
LDAM: dict[str, Any] = {"loss": "ldam", "loss_options": {"max_margin": 0.3}}
DRW: dict[str, Any] = {"reweight": "drw", "drw_start": 60 / 90}
# Saddle-LongTail: 90 epochs, cosine without warm-up.
IMAGENET: dict[str, Any] = {
    "model": "resnet50-imagenet",
    "epochs": 90,
    "batch_size": 256,
    "lr": 0.2,
    "weight_decay": 2e-4,
    "schedule": "cosine",
}
INATURALIST: dict[str, Any] = {**IMAGENET, "lr": 0.1}
# Decoupling: 90 epochs, batch 512.
DECOUPLING: dict[str, Any] = {
    "model": "resnext50-imagenet",
    "epochs": 90,
    "batch_size": 512,
    "lr": 0.2,
    "weight_decay": 5e-4,
    "schedule": "cosine",
}
MISLAS: dict[str, Any] = {
    "batch_size": 256,
    "lr": 0.1,
    "schedule": "cosine",
    "mixup": 0.2,
    "second_stage": "mislas",
}


def _sam(*rho: float) -> dict[str, Any]:
    """Return SAM with the radii of epochs up to 5, 60, 75 and 90 of 90."""
    # As shares, so that a shorter training keeps the order.
    steps = {"schedule": "step", "rho_steps": rho, "rho_epochs": (5 / 90, 60 / 90, 75 / 90)}
    return {"optimizer": "sam", "optimizer_options": steps}


def _slide(*values: float) -> Published:
    head, medium, tail, everything = values
    return by_groups(SLIDE, (head, medium, tail, everything))


LARGE_RECIPES: dict[str, Recipe] = {
    "imagenet-lt/ce": Recipe(
        "cross-entropy, ResNeXt-50", "decoupling's released code", DECOUPLING, (_slide(65.9, 37.5, 7.0, 44.4),)
    ),
    "imagenet-lt/crt": Recipe(
        KANG, "released code: class-aware sampling, 10 epochs", {**DECOUPLING, "second_stage": "crt"}
    ),
    "imagenet-lt/tau-norm": Recipe(
        KANG,
        "released code; the published row is of a ResNet-50",
        {**DECOUPLING, "model": "resnet50-imagenet", "second_stage": "tau-norm"},
        (_slide(56.6, 44.2, 27.4, 46.7),),
    ),
    "imagenet-lt/lws": Recipe(KANG, "released code", {**DECOUPLING, "second_stage": "lws"}),
    "imagenet-lt/balanced-softmax": Recipe(
        "Ren et al., Balanced Meta-Softmax, NeurIPS 2020",
        "loss only, schedule of decoupling",
        {**DECOUPLING, "loss": "balanced-softmax"},
        (_slide(64.1, 48.2, 33.4, 52.3),),
    ),
    "imagenet-lt/ce-drw+sam": Recipe(
        RANGWANI, SADDLE_SCRIPTS, {**IMAGENET, **DRW, **_sam(0.05, 0.1, 0.5, 0.5)}, (Published(SADDLE, all=47.1),)
    ),
    "imagenet-lt/ldam-drw+sam": Recipe(
        RANGWANI,
        SADDLE_SCRIPTS,
        {**IMAGENET, **LDAM, **DRW, **_sam(0.05, 0.1, 0.5, 0.5)},
        (_slide(62.0, 52.1, 34.8, 53.1), Published(SADDLE, all=53.1)),
    ),
    "imagenet-lt/mislas": Recipe(
        "Zhong et al., MiSLAS, CVPR 2021",
        "released configuration: 180 epochs, mixup 0.2",
        {**MISLAS, "model": "resnet50-imagenet", "epochs": 180, "weight_decay": 5e-4},
        (Published(SLIDE, all=52.7),),
    ),
    "imagenet-lt/gcl": Recipe(
        "Li et al., GCL, CVPR 2022",
        "released code; the authors: 200 epochs on all large sets",
        {
            "model": "resnet50-imagenet",
            "loss": "gcl",
            "epochs": 200,
            "batch_size": 256,
            "lr": 0.1,
            "weight_decay": 5e-4,
            "schedule": "cosine",
            "mixup": 0.2,
            "second_stage": "gcl",
        },
        (Published("GCL README, first stage", all=52.93), Published("GCL README, second stage", all=54.88)),
        ("its issue tracker reports 49.3 without mixup at 90 + 10 epochs",),
    ),
    "imagenet-lt/ce+sam": Recipe(
        "Foret et al., SAM, ICLR 2021; in the re-run of RDR",
        "network and schedule of Saddle-LongTail; rho of the re-run is not public",
        {**IMAGENET, "optimizer": "sam", "optimizer_options": {"rho": 0.05}},
        (by_groups(RERUN, (64.6, 35.8, 10.1, 42.8)),),
        ("rho of the re-run is not public",),
    ),
    "imagenet-lt/ce+imbsam": Recipe(
        "Zhou et al., ImbSAM, ICCV 2023; in the re-run of RDR",
        "network and schedule of Saddle-LongTail; thresholds are not public",
        {**IMAGENET, "optimizer": "imbsam", "optimizer_options": {"eta": 20}},
        (by_groups(RERUN, (62.5, 37.3, 13.9, 43.3)),),
        ("eta on ImageNet-LT is not public",),
    ),
    "imagenet-lt/focal-sam": Recipe(
        "Focal-SAM",
        "released scripts: gamma 0.8, lambda 0.8, rho 0.1, from 80 % of the epochs 0.2",
        {
            "model": "resnet50-imagenet",
            "epochs": 200,
            "batch_size": 256,
            "lr": 0.1,
            "weight_decay": 5e-4,
            "schedule": "cosine",
            "optimizer": "focal-sam",
            "optimizer_options": {
                "gamma": 0.8,
                "lam": 0.8,
                "schedule": "step",
                "rho_steps": (0.1, 0.2),
                "rho_epochs": (159 / 200,),
            },
        },
        (Published("Focal-SAM", all=54.3),),
    ),
    "places-lt/mislas": Recipe(
        "Zhong et al., MiSLAS, CVPR 2021",
        "released configuration: 90 epochs, mixup 0.2, ResNet-152 pre-trained on ImageNet (--start FILE)",
        {**MISLAS, "model": "resnet152-imagenet", "epochs": 90, "weight_decay": 5e-4},
        (Published(SLIDE, all=40.2), by_groups("GNM slides", (39.6, 43.3, 36.1, 40.4))),
        ("released: an extra bottleneck block on a frozen backbone is trained; here the whole network",),
    ),
    "places-lt/ce": Recipe(
        "cross-entropy, ResNet-152",
        "schedule of MiSLAS's first stage",
        {
            "model": "resnet152-imagenet",
            "epochs": 90,
            "batch_size": 256,
            "lr": 0.1,
            "weight_decay": 5e-4,
            "schedule": "cosine",
        },
        (_slide(45.7, 27.3, 8.2, 30.2),),
    ),
    "inaturalist18/ce-drw+sam": Recipe(
        RANGWANI, SADDLE_SCRIPTS, {**INATURALIST, **DRW, **_sam(0.05, 0.1, 0.1, 0.2)}, (Published(SADDLE, all=65.3),)
    ),
    "inaturalist18/ldam-drw+sam": Recipe(
        RANGWANI,
        SADDLE_SCRIPTS,
        {**INATURALIST, **LDAM, **DRW, "weight_decay": 1e-4, **_sam(0.05, 0.1, 0.5, 0.5)},
        (_slide(64.1, 70.5, 71.2, 70.1),),
    ),
    "inaturalist18/ce": Recipe(
        "cross-entropy, ResNet-50",
        "decoupling's released code",
        {**DECOUPLING, "model": "resnet50-imagenet", "weight_decay": 1e-4},
        (_slide(72.2, 63.0, 57.2, 61.7),),
    ),
    "inaturalist18/tau-norm": Recipe(
        KANG,
        "decoupling's released code",
        {**DECOUPLING, "model": "resnet50-imagenet", "weight_decay": 1e-4, "second_stage": "tau-norm"},
        (_slide(65.6, 65.3, 65.9, 65.6),),
    ),
    "inaturalist18/mislas": Recipe(
        "Zhong et al., MiSLAS, CVPR 2021",
        "released configuration: 200 epochs, mixup 0.2",
        {**MISLAS, "model": "resnet50-imagenet", "epochs": 200, "weight_decay": 1e-4},
        (Published(SLIDE, all=71.6), by_groups("GNM slides", (73.2, 72.4, 70.4, 71.6))),
    ),
    "inaturalist18/focal-sam": Recipe(
        "Focal-SAM",
        "released scripts: gamma 2, lambda 1.1, rho 0.2, batch 512",
        {
            "model": "resnet50-imagenet",
            "epochs": 200,
            "batch_size": 512,
            "lr": 0.2,
            "weight_decay": 2e-4,
            "schedule": "cosine",
            "optimizer": "focal-sam",
            "optimizer_options": {"gamma": 2.0, "lam": 1.1, "rho": 0.2},
        },
        (),
        ("number of epochs is not stated for iNaturalist: that of ImageNet-LT",),
    ),
}
