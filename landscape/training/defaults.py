"""What a training run is by default, per data set."""

from __future__ import annotations

from typing import Any

# CIFAR: LDAM-DRW, Saddle-LongTail and VS, released scripts. Digits: ours, chosen so that plain SGD at ratio 20 fits the
# head and not the tail, in under a minute on two cores.
CIFAR_DEFAULTS: dict[str, Any] = {
    "model": "resnet32",
    "epochs": 200,
    "batch_size": 128,
    "lr": 0.1,
    "weight_decay": 2e-4,
    "schedule": "ldam",
}
DIGITS_DEFAULTS: dict[str, Any] = {
    "model": "convnet",
    "epochs": 60,
    "batch_size": 32,
    "lr": 0.05,
    "weight_decay": 5e-4,
    "schedule": "cosine",
}
DEFAULTS: dict[str, dict[str, Any]] = {"digits-lt": DIGITS_DEFAULTS}  # every other data set: CIFAR_DEFAULTS
