"""Sources and settings that several recipes on CIFAR share."""

from __future__ import annotations

from typing import Any

from landscape.recipes.recipe import Published, Recipe

SLIDE = "CC-SAM slides (CVPR 2023)"
SADDLE = "Saddle-LongTail README (NeurIPS 2022)"
WITHOUT = "Saddle-LongTail, baselines without SAM, as recollected in its comparison"
RERUN = "independent re-run of the SAM family with a cosine schedule (RDR, NeurIPS 2024, table 2)"
TUNED = "Wang et al. (NeurIPS 2023) README, weight decay tuned"
MISLAS_README = "MiSLAS README, second stage"
IMBSAM_README = "ImbSAM README"
SSE_README = "SSE-SAM README"

SADDLE_SCRIPTS = "released run scripts of Saddle-LongTail (those of LDAM-DRW with rho constant)"
LDAM: dict[str, Any] = {"loss": "ldam", "reweight": "drw"}
COSINE: dict[str, Any] = {"schedule": "cosine"}
# ImbSAM and SSE-SAM: a ResNet-34 with a 3 x 3 stem; the first images of each class; flips averaged at the final test.
IMBSAM: dict[str, Any] = {
    "model": "resnet34-cifar",
    "batch_size": 64,
    "lr": 0.01,
    "weight_decay": 1e-3,
    "schedule": "cosine-shifted",
    "selection": "first",
    "test_time_flip": True,
    "seed": 9826,
}
CCSAM: dict[str, Any] = {
    "batch_size": 64,
    "schedule": "ccsam",
    "selection": "seed42",
    "mixup": 1.0,
    "optimizer": "ccsam",
    "second_stage": "ccsam",
}
FOCAL: dict[str, Any] = {"batch_size": 64, "schedule": "cosine", "optimizer": "focal-sam"}
GCL: dict[str, Any] = {
    "loss": "gcl",
    "batch_size": 64,
    "schedule": "multistep",
    "mixup": 1.0,
    "seed": 123,
    "second_stage": "gcl",
}
MISLAS: dict[str, Any] = {"schedule": "multistep", "mixup": 1.0, "second_stage": "mislas"}
BEST = "published accuracies are of the best epoch on the test set; ours are of the last"


def sam(rho: float) -> dict[str, Any]:
    """Return the fields of SAM with a constant radius."""
    return {"optimizer": "sam", "optimizer_options": {"rho": rho}}


def saddle(title: str, changes: dict[str, Any], published: tuple[Published, ...]) -> Recipe:
    """Return a recipe of the Saddle-LongTail scripts."""
    return Recipe(title, SADDLE_SCRIPTS, changes, published, (BEST,))


RANGWANI = "Rangwani et al., Escaping Saddle Points, NeurIPS 2022"
KINI = "Kini et al., Label-Imbalanced and Group-Sensitive Classification, NeurIPS 2021"
CAO = "Cao et al., LDAM-DRW, NeurIPS 2019"
SYNTHETIC_TAIL = "the tail is the data set's tail group; set eta=20 or eta=100 for the released thresholds"
