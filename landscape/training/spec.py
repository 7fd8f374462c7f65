"""What a training run is: one frozen record, validated once, that rebuilds everything."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from landscape.data import DATASETS, SAMPLERS, TRANSFORMS, Dataset, build_sampler, load_dataset
from landscape.errors import LARGEST_SEED, MOST, LandscapeError, require_whole, unknown_name
from landscape.losses import LOSSES, build_loss, class_balanced_weights, wants_cosines
from landscape.models import check_model
from landscape.optimizers import OPTIMIZERS, build_optimizer
from landscape.training.defaults import CIFAR_DEFAULTS, DEFAULTS
from landscape.training.methods import METHODS, check_combination, check_method
from landscape.training.schedules import check_schedule

BASES: dict[str, type[torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
HEADS = ("auto", "linear", "cosine")
REWEIGHTINGS = ("none", "cb", "drw")
BN_STATISTICS = ("every-pass", "first-pass")
FROZEN_BATCHNORM = ("update", "frozen")
TAU_BIAS = ("drop", "keep")
PRECISIONS = ("float32", "bfloat16", "float16")

OPTIONS = (
    "model_options", "loss_options", "method_options", "second_options", "optimizer_options", "sampler_options",
    "schedule_options",
)  # fmt: skip
AUTO: Any = None  # stands for the data set's entry in DEFAULTS until the spec is built


@dataclass(frozen=True)
class TrainSpec:
    """A training run: data recipe, network, loss, optimizer, schedule, seed.

    Where the default reads *per data set*, it is the published CIFAR recipe (ResNet-32, 200 epochs, batch 128, lr 0.1,
    weight decay 2e-4, schedule ``ldam``), or on ``digits-lt`` a short one (``DIGITS_DEFAULTS``).

    Attributes
    ----------
    dataset, data_dir, imbalance_ratio, profile, selection, group_rule, mean, std, train_list, test_list, relabel, resize,
    cache_dir, download, allow_outside
        Arguments of :func:`landscape.data.load_dataset`.
    model, model_options
        A name in ``MODELS``, per data set, and its options.
    start
        Checkpoint file whose weights the training starts from, absolute or relative to the run's folder.
    trainable
        Which parameters are trained: ``all`` (that require a gradient), ``head``, ``backbone``, ``prompts``,
        ``head-scale`` (with ``scale_head``) or another choice of :func:`landscape.layout.choose_parameters`. The others
        are held fixed.
    reinitialise_head
        Whether the classifier is drawn anew, with ``start``.
    frozen_batchnorm
        What normalisation layers do whose weights are held fixed: ``update`` normalises with the batch and updates the
        running statistics, which thereby follow the sampler (MiSLAS's shifted BatchNorm; cRT, LWS and CC-SAM as released);
        ``frozen`` keeps and uses the running statistics (GCL, MiSLAS on CIFAR-10-LT). Dropout is active in either case.
    tau, tau_bias
        Power of tau-normalisation of the classifier that was loaded, None for none, and whether its bias is ``drop``
        (as released) or ``keep``; see :mod:`landscape.training.heads`.
    scale_head
        Whether each class's logit has a factor that is trained along, from 1; checkpoints hold it in the classifier's
        weights.
    head_lr_factor
        Learning rate of the classifier's weights and bias, relative to that of the other parameters.
    head
        ``linear``, ``cosine``, or ``auto``: cosine for the losses that are defined on cosines.
    loss, loss_options
        A name in ``LOSSES`` and its options.
    reweight
        ``none``; ``cb``, class-balanced weights throughout; ``drw``, class-balanced weights from ``drw_start`` on.
    reweight_beta
        Of the effective numbers behind the class weights: 0.9999 as released for LDAM-DRW, 0.9998 for GNM.
    drw_start
        Share of the epochs before DRW's weights switch on; 0.8 is the published 160 of 200.
    method, method_options
        How a batch becomes losses: a name in ``METHODS`` and its options.
    mixup
        Parameter of mixup's Beta distribution, as far as the method mixes; 0: no mixup.
    second_stage, second_options
        A name in ``SECOND_STAGES``: a second training that starts from the weights of this one, and the fields of this
        record that differ from that stage's defaults. See :mod:`landscape.training.second_stages`.
    optimizer, optimizer_options
        A name in ``OPTIMIZERS`` and its options. The methods that tell head from tail take the tail group of the data
        set, unless their option ``eta`` is given (or the group is empty): then the classes below eta examples.
    base
        What turns the gradient into a step: ``sgd`` (momentum, no Nesterov) or ``adamw``.
    lr, momentum, weight_decay
        Of the base optimizer; lr and weight_decay per data set. AdamW ignores momentum.
    batch_size, epochs, schedule
        Per data set; the schedule is a name in ``SCHEDULES`` and scales with the epochs. With ``start``, 0 epochs leave the
        weights as they are loaded.
    schedule_options
        Options of the schedules that have some, see :func:`learning_rate`.
    bn_statistics
        Whether every forward pass of a step updates BatchNorm's running statistics, or only the first.
    seed
        Root of every random stream: initial weights, batches, augmentation, noise.
    augment, augmentation
        Whether training augments, and how: a name in ``TRANSFORMS``, by default the data set's own.
    sampler, sampler_options
        Which examples make up an epoch: a name in ``SAMPLERS`` and its options.
    precision
        ``float32``, or automatic mixed precision in ``bfloat16`` or ``float16`` (with loss scaling).
    compile
        Whether the network is compiled (``torch.compile``).
    accumulate
        Pieces that a batch is cut into, whose gradients are summed: the memory of one piece, the step of the batch.
    evaluate_every
        Epochs between two evaluations on the test images; the last epoch is always evaluated.
    test_time_flip
        Whether evaluations report beside the usual accuracy that of the mean logits of each image and its mirror image
        (ImbSAM, SSE-SAM).
    keep_best
        Whether ``best.safetensors`` keeps the weights of the epoch with the best accuracy on the test images: what several
        papers report and start their second stage from, and a selection on the test set.
    stage
        Name of the second stage that this run is; set by :func:`landscape.training.split_stages`.
    snapshot_every
        Epochs between two snapshots ``epoch-0010.safetensors``, complete checkpoints: the first epoch, every N-th and the
        last are kept; 0 keeps none.

    Raises
    ------
    LandscapeError
        If a name is unknown or a number is out of range.

    Examples
    --------
    >>> spec = TrainSpec(optimizer="sam", optimizer_options={"rho": 0.1})
    >>> spec.model, spec.batch_size
    ('convnet', 32)
    """

    dataset: str = "digits-lt"
    data_dir: str | None = None
    imbalance_ratio: float | None = None
    profile: str = "exponential"
    selection: str = "seed0"
    group_rule: str = "auto"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    train_list: str | None = None
    test_list: str | None = None
    relabel: str | None = None
    resize: int | None = None
    cache_dir: str | None = None
    download: bool = False
    allow_outside: bool = False
    model: str = AUTO
    model_options: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    trainable: str = "all"
    reinitialise_head: bool = False
    frozen_batchnorm: Literal["update", "frozen"] = "update"
    tau: float | None = None
    tau_bias: Literal["drop", "keep"] = "drop"
    scale_head: bool = False
    head_lr_factor: float = 1.0
    head: Literal["auto", "linear", "cosine"] = "auto"
    loss: str = "ce"
    loss_options: dict[str, Any] = field(default_factory=dict)
    reweight: Literal["none", "cb", "drw"] = "none"
    reweight_beta: float = 0.9999
    drw_start: float = 0.8
    method: str = "plain"
    method_options: dict[str, Any] = field(default_factory=dict)
    mixup: float = 0.0
    second_stage: str | None = None
    second_options: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "sgd"
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    base: Literal["sgd", "adamw"] = "sgd"
    lr: float = AUTO
    momentum: float = 0.9
    weight_decay: float = AUTO
    batch_size: int = AUTO
    epochs: int = AUTO
    schedule: str = AUTO
    schedule_options: dict[str, Any] = field(default_factory=dict)
    bn_statistics: Literal["every-pass", "first-pass"] = "every-pass"
    seed: int = 0
    augment: bool = True
    augmentation: str | None = None
    sampler: str = "uniform"
    sampler_options: dict[str, Any] = field(default_factory=dict)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    accumulate: int = 1
    evaluate_every: int = 1
    test_time_flip: bool = False
    keep_best: bool = False
    stage: str | None = None
    snapshot_every: int = 0

    def __post_init__(self) -> None:
        known: dict[str, tuple[str, Mapping[str, Any]]] = {
            "dataset": ("data set", DATASETS),
            "head": ("head", dict.fromkeys(HEADS)),
            "loss": ("loss", LOSSES),
            "reweight": ("reweighting", dict.fromkeys(REWEIGHTINGS)),
            "optimizer": ("optimizer", OPTIMIZERS),
            "base": ("base optimizer", BASES),
            "bn_statistics": ("BatchNorm rule", dict.fromkeys(BN_STATISTICS)),
            "frozen_batchnorm": ("rule for frozen BatchNorm", dict.fromkeys(FROZEN_BATCHNORM)),
            "tau_bias": ("rule for the bias", dict.fromkeys(TAU_BIAS)),
            "method": ("method", METHODS),
            "sampler": ("sampler", SAMPLERS),
            "precision": ("precision", dict.fromkeys(PRECISIONS)),
        }
        resolved = dict(DEFAULTS.get(self.dataset, CIFAR_DEFAULTS))
        resolved = {name: value for name, value in resolved.items() if getattr(self, name) is None}
        resolved |= {name: tuple(v) for name in ("mean", "std") if (v := getattr(self, name)) is not None}
        resolved |= {name: dict(getattr(self, name)) for name in OPTIONS}
        places = ("data_dir", "train_list", "test_list", "cache_dir", "start")
        resolved |= {name: str(path) for name in places if (path := getattr(self, name)) is not None}
        for name, value in resolved.items():
            object.__setattr__(self, name, value)
        for name, (kind, registry) in known.items():
            if getattr(self, name) not in registry:
                raise unknown_name(kind, str(getattr(self, name)), registry)
        self._check_numbers()
        self._check_options()

    def _check_numbers(self) -> None:
        least_epochs = 1 if self.start is None else 0
        whole = {
            "epochs": least_epochs,
            "batch_size": 1,
            "evaluate_every": 1,
            "snapshot_every": 0,
            "seed": 0,
            "accumulate": 1,
        }
        for name, least in whole.items():
            require_whole(name, getattr(self, name), least, LARGEST_SEED if name == "seed" else MOST)
        for name in ("reinitialise_head", "scale_head", "test_time_flip", "keep_best"):
            if not isinstance(getattr(self, name), bool):
                raise LandscapeError(f"expected {name} to be true or false, got {getattr(self, name)!r}")
        numbers = ["lr", "momentum", "weight_decay", "drw_start", "mixup", "head_lr_factor"]
        for name in [*numbers, *(["tau"] if self.tau is not None else [])]:
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise LandscapeError(f"expected {name} to be a finite number >= 0, got {value!r}")
        for name in ("drw_start", "momentum"):
            if getattr(self, name) > 1:
                raise LandscapeError(f"expected {name} between 0 and 1, got {getattr(self, name)!r}")
        try:
            json.dumps(self.to_dict(), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise LandscapeError(f"expected options that JSON can hold, got {self!r}: {error}") from None

    def _check_options(self) -> None:
        """Build loss and optimizer once, for two classes, so that a wrong option fails before any data is read."""
        check_schedule(self.schedule, self.schedule_options)
        self._check_head()
        check_model(self.model, self.model_options)
        check_method(self.method, self.method_options)
        loss = build_loss(self.loss, [1, 1], **self.loss_options)
        class_balanced_weights([1, 1], self.reweight_beta)
        build_sampler(self.sampler, **self.sampler_options)
        if self.augmentation is not None and self.augmentation not in TRANSFORMS:
            raise unknown_name("augmentation", self.augmentation, TRANSFORMS)
        model = torch.nn.utils.skip_init(torch.nn.Linear, 1, 2)  # initialising draws from the global generator
        optimizer = build_optimizer(
            self.optimizer,
            model.parameters(),
            base=BASES[self.base],
            base_options=self.base_options,
            model=model,
            criterion=loss,
            class_counts=[1, 1],
            tail_classes=[1],
            **self.optimizer_options,
        )
        check_combination(self.method, vars(self), optimizer=self.optimizer, needs=optimizer.rule.needs)

    def _check_head(self) -> None:
        """Refuse what a cosine head cannot hold and what there is nothing to apply to."""
        if self.tau is not None and self.start is None:
            raise LandscapeError("tau-normalisation needs trained weights: give --start, or --second-stage tau-norm")
        if self.resolved_head == "cosine" and self.tau is not None:
            raise LandscapeError(
                "tau-normalisation of a cosine head changes nothing, it normalises its weights: train with --head linear"
            )
        if self.resolved_head == "cosine" and self.scale_head:
            raise LandscapeError(
                "a cosine head cannot hold a scale per class, it normalises its weights: train with --head linear"
            )
        if self.trainable == "head-scale" and not self.scale_head:
            raise LandscapeError("trainable 'head-scale' needs scale_head, which puts a scale on each class's logit")

    def load_data(self) -> Dataset:
        """Load the data set this run trains on."""
        dataset = load_dataset(
            self.dataset,
            data_dir=self.data_dir,
            imbalance_ratio=self.imbalance_ratio,
            profile=self.profile,  # type: ignore[arg-type]  # load_dataset validates it
            selection=self.selection,  # type: ignore[arg-type]
            group_rule=self.group_rule,
            mean=self.mean,
            std=self.std,
            train_list=self.train_list,
            test_list=self.test_list,
            relabel=self.relabel,  # type: ignore[arg-type]
            resize=self.resize,
            cache_dir=self.cache_dir,
            download=self.download,
            allow_outside=self.allow_outside,
        )
        return dataset if self.augmentation is None else dataclasses.replace(dataset, augmentation=self.augmentation)

    def with_optimizer(self, name: str) -> TrainSpec:
        """Return the same training with another optimizer, which has its default options unless it is the same."""
        options = self.optimizer_options if name == self.optimizer else {}
        return dataclasses.replace(self, optimizer=name, optimizer_options=options)

    @property
    def resolved_head(self) -> Literal["linear", "cosine"]:
        """The kind of classifier, ``auto`` resolved by the loss."""
        if self.head != "auto":
            return self.head
        return "cosine" if wants_cosines(self.loss, **self.loss_options) else "linear"

    @property
    def drw_epoch(self) -> int:
        """The first epoch, counted from 0, with DRW's weights: ceil(drw_start * epochs)."""
        return math.ceil(round(self.drw_start * self.epochs, 9))  # 0.7 * 10 is 7.000000000000001 or so

    def is_snapshot(self, epoch: int) -> bool:
        """Whether a snapshot is kept after ``epoch`` epochs."""
        every = self.snapshot_every
        return every > 0 and (epoch in (1, self.epochs) or epoch % every == 0)

    @property
    def base_options(self) -> dict[str, float]:
        """Keyword arguments of the base optimizer."""
        options = {"lr": self.lr, "weight_decay": self.weight_decay}
        return options | {"momentum": self.momentum} if self.base == "sgd" else options

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as JSON-able values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainSpec:
        """Build a spec from what :meth:`to_dict` returned; unknown names are an error."""
        names = [entry.name for entry in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                raise unknown_name("training option", name, names)
        return cls(**values)
