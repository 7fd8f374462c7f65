"""The options that papers and released code used, by name: ``loss, options = PUBLISHED_LOSSES[name]``."""

from __future__ import annotations

from typing import Any

# One row per published setting; the docstring of the loss gives the source. The options are spelt out even where they are
# the defaults: a default may change, a published setting may not.
PUBLISHED_LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "focal/ldam-repository": ("focal", {"gamma": 1.0, "weights_inside": True, "beta": 0.9999}),
    "ldam/cifar": ("ldam", {"max_margin": 0.5, "scale": 30.0}),
    "ldam/large-scale": ("ldam", {"max_margin": 0.3, "scale": 30.0}),
    "ldam/sse-sam": ("ldam", {"max_margin": 0.5, "scale": 30.0, "logits_scaled": True}),
    "vs/released-default": ("vs", {"gamma": 0.3, "tau": 1.0}),
    "vs/released-example": ("vs", {"gamma": 0.2, "tau": 1.2}),
    "vs/cifar10-lt": ("vs", {"gamma": 0.15, "tau": 1.25}),
    "vs/cifar100-lt": ("vs", {"gamma": 0.05, "tau": 0.75}),
    "vs/sse-sam": ("vs", {"gamma": 0.05, "tau": 0.75}),
    "logit-adjusted/sse-sam": ("logit-adjusted", {"tau": 0.75}),
    "gcl/stage1": ("gcl", {"scale": 30.0, "margin": 0.0, "noise_mul": 0.5, "gamma": 0.0}),
    "gcl/stage2": ("gcl", {"scale": 20.0, "margin": 0.1, "noise_mul": 0.5, "gamma": 1.0}),
    "gcl/gnm-pt": ("gcl", {"scale": 25.0, "margin": 0.1, "noise_mul": 1.0, "gamma": 0.0}),
    "gcl-angular/released-default": ("gcl-angular", {"scale": 30.0, "margin": 0.5, "epsilon": 0.1}),
    "asymmetric-gcl/balanced": (
        "asymmetric-gcl",
        {"scale": 20.0, "margin": 0.1, "noise_mul": 0.5, "gamma_pos": 0.0, "gamma_neg": 4.0, "smoothing": 0.1},
    ),
    "asymmetric-gcl/instance": (
        "asymmetric-gcl",
        {"scale": 20.0, "margin": 0.1, "noise_mul": 0.5, "gamma_pos": 0.5, "gamma_neg": 8.0, "smoothing": 0.1},
    ),
    "label-aware/cifar10-lt-100": ("label-aware", {"smooth_head": 0.3, "smooth_tail": 0.0}),
    "label-aware/cifar10-lt-50": ("label-aware", {"smooth_head": 0.2, "smooth_tail": 0.0}),
    "label-aware/cifar10-lt-10": ("label-aware", {"smooth_head": 0.1, "smooth_tail": 0.0}),
    "label-aware/cifar100-lt-100": ("label-aware", {"smooth_head": 0.4, "smooth_tail": 0.1}),
    "label-aware/cifar100-lt-50": ("label-aware", {"smooth_head": 0.3, "smooth_tail": 0.0}),
    "label-aware/cifar100-lt-10": ("label-aware", {"smooth_head": 0.2, "smooth_tail": 0.0}),
    "label-aware/imagenet-lt": ("label-aware", {"smooth_head": 0.3, "smooth_tail": 0.0}),
    "label-aware/inaturalist18": ("label-aware", {"smooth_head": 0.3, "smooth_tail": 0.0}),
    "label-aware/places-lt": ("label-aware", {"smooth_head": 0.4, "smooth_tail": 0.1}),
}
