"""From a checkpoint file to a risk: the network, its data, its loss, as they were trained or as the caller names them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from landscape.checkpoint import Checkpoint, load_weights, read_checkpoint
from landscape.data import Dataset, Split, load_dataset
from landscape.data.augmentation import TRANSFORMS, find_transform, frozen_draws
from landscape.data.decoding import draw_crops
from landscape.errors import LandscapeError, require_whole, unknown_name
from landscape.files import one_line
from landscape.losses import LOSSES, build_loss
from landscape.models import build_model, infer_architecture
from landscape.randomness import stream
from landscape.risk import GroupAverage, LaneChoice, ModelRisk, lanes_of
from landscape.risk.augmented import RedrawnRisk
from landscape.risk.examples import limit_per_class
from landscape.torch_files import Weights
from landscape.training import resolve_device

logger = logging.getLogger(__name__)

# BatchNorm statistics are recomputed over this many training images at most.
CALIBRATION_EXAMPLES = 1000
CalibrationName = Literal["train", "balanced"]
CALIBRATIONS: dict[str, str] = {
    "train": "training images in their own class shares",
    "balanced": "training images, as many of every class (the images of small classes repeated)",
}

SplitName = Literal["train", "test"]
AugmentChoice = Literal["none", "frozen", "redraw"]

# What a checkpoint's record may hold where it is used, and the arguments of load_dataset in it.
RECORD_TYPES: dict[str, type] = {
    "model": str,
    "model_options": dict,
    "head": str,
    "loss": str,
    "loss_options": dict,
}
RECIPE_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("name", "data_dir", "profile", "selection", "group_rule"), str),
    **dict.fromkeys(("train_list", "test_list", "relabel"), str),
    "imbalance_ratio": (int, float),
    "resize": int,
    **dict.fromkeys(("mean", "std"), list),
}
# Where the data lie, which does not change what they are.
PLACES = {"data_dir": "--data-dir", "train_list": "--train-list", "test_list": "--test-list"}


@dataclass(frozen=True)
class CheckpointSource:
    """Where a risk comes from: the file and whatever overrides or replaces what it records.

    Attributes
    ----------
    path
        Checkpoint file.
    model, head, dataset, data_dir, imbalance_ratio, group_rule, mean, std, train_list, test_list, relabel, resize
        Needed (model and dataset) for a file of others; for one of ours they override the record.
    weights
        ``raw`` or ``ema`` where the file holds both, as in :func:`landscape.checkpoint.read_checkpoint`.
    cache_dir, download, allow_outside
        As in :func:`landscape.data.load_dataset`; they are not recorded.
    split, max_per_class
        ``train`` or ``test``; the first N examples of each class in file order.
    loss
        ``"own"`` (the training loss, plain cross-entropy for a file of others), or a name in ``LOSSES``.
    augment, augment_draws, augment_seed
        ``none`` studies the images as stored; ``frozen`` averages the loss over ``augment_draws`` fixed draws of the data
        set's own training augmentation for every image; ``redraw`` draws anew at every evaluation, which imitates the
        published protocol and is no function. ``augment_seed`` is the root of the draws.
    calibration
        Over which training images BatchNorm statistics are recomputed, where they are: ``train``, in their own
        (long-tailed) class shares, or ``balanced``, as many of every class.
    calibration_examples
        How many of these images, at most: every point of a recalibrated surface costs a pass over them.
    params
        A choice of :func:`landscape.layout.choose_parameters`: ``all``, ``trainable``, ``head``, ``backbone``, ``prompts``, a
        regular expression, or several joined by ``+``.
    dtype, device
        ``float32`` or ``float64``; ``auto``, ``cpu`` or ``cuda``.
    """

    path: str | Path
    model: str | None = None
    head: str | None = None
    dataset: str | None = None
    data_dir: str | Path | None = None
    imbalance_ratio: float | None = None
    group_rule: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    train_list: str | Path | None = None
    test_list: str | Path | None = None
    relabel: str | None = None
    resize: int | None = None
    weights: Weights | None = None
    cache_dir: str | Path | None = None
    download: bool = False
    allow_outside: bool = False
    split: SplitName = "train"
    max_per_class: int | None = None
    loss: str = "own"
    augment: AugmentChoice = "none"
    augment_draws: int = 4
    augment_seed: int = 0
    calibration: CalibrationName = "train"
    calibration_examples: int = CALIBRATION_EXAMPLES
    params: str = "all"
    dtype: str = "float32"
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.split not in ("train", "test"):
            raise unknown_name("split", self.split, ("train", "test"))
        if self.augment not in get_args(AugmentChoice):
            raise unknown_name("augment", self.augment, get_args(AugmentChoice))
        if self.calibration not in CALIBRATIONS:
            raise unknown_name("calibration", self.calibration, CALIBRATIONS)
        require_whole("--calibration", self.calibration_examples, 2)
        require_whole("--augment-draws", self.augment_draws, 1)
        for name in ("dtype", "device"):  # torch's own objects, by their names
            object.__setattr__(self, name, str(getattr(self, name)).removeprefix("torch."))
        if self.dtype not in ("float32", "float64"):
            raise unknown_name("dtype", self.dtype, ("float32", "float64"))
        if self.weights not in (None, "raw", "ema"):
            raise unknown_name("weights", str(self.weights), ("raw", "ema"))
        if self.max_per_class is not None:
            require_whole("--max-per-class", self.max_per_class, 1)
        if self.loss != "own" and self.loss not in LOSSES:
            raise unknown_name("loss", self.loss, [*LOSSES, "own"])


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint with its network and data set."""

    checkpoint: Checkpoint
    model: nn.Module
    dataset: Dataset
    spec: dict[str, Any]


def load_checkpoint(source: CheckpointSource) -> LoadedCheckpoint:
    """Read a checkpoint, rebuild its network and load its data set.

    Raises
    ------
    LandscapeError
        If the file is bad, the model or data set is not named and not recorded, or the two do not fit.
    """
    checkpoint = read_checkpoint(source.path, weights=source.weights)
    with _recorded(source, checkpoint):
        return _load(source, checkpoint)


def _recorded(source: CheckpointSource, checkpoint: Checkpoint) -> AbstractContextManager[None]:
    """Return a border for what is built from the record of a checkpoint, which anyone may have edited."""
    if checkpoint.spec is None:
        return nullcontext()
    return one_line(f"{source.path}: its record cannot be used")


def _load(source: CheckpointSource, checkpoint: Checkpoint) -> LoadedCheckpoint:
    spec = checkpoint.spec or {}
    _require_types(source, spec, RECORD_TYPES)
    dataset = _load_data(source, spec)
    if spec.get("augmentation") in TRANSFORMS and (spec.get("data") or {}).get("name") == dataset.name:
        dataset = replace(dataset, augmentation=spec["augmentation"])
    model = _build(source, checkpoint, spec, dataset)
    load_weights(model, checkpoint)
    return LoadedCheckpoint(checkpoint, model, dataset, spec)


def _load_data(source: CheckpointSource, spec: dict[str, Any]) -> Dataset:
    recorded = spec.get("data")
    if source.dataset is None or (isinstance(recorded, dict) and recorded.get("name") == source.dataset):
        recipe = _recorded_recipe(source, spec)
    else:
        recipe = {"name": source.dataset}
    if not recipe:
        raise LandscapeError(
            f"{source.path} does not record its data: name it with --dataset (and --data-dir), for example --dataset cifar10"
        )
    for key in ("imbalance_ratio", "group_rule", "mean", "std", "relabel", "resize", *PLACES):
        value = getattr(source, key)
        if value is not None:
            recipe[key] = str(value) if key in PLACES else value
    for key, option in PLACES.items():
        place = recipe.get(key)
        if place is not None and getattr(source, key) is None and not Path(place).exists():
            raise LandscapeError(f"the data of {source.path} are no longer at {place}: name their place with {option}")
    return load_dataset(
        **recipe, cache_dir=source.cache_dir, download=source.download, allow_outside=source.allow_outside
    )


def _recorded_recipe(source: CheckpointSource, spec: dict[str, Any]) -> dict[str, Any]:
    """Return the recorded arguments of ``load_dataset``, after checking them: anyone may have edited the file."""
    recipe = spec.get("data") or {}
    _require_types(source, {"data": recipe}, {"data": dict})
    _require_types(source, recipe, RECIPE_TYPES)
    unknown = [name for name in recipe if name not in RECIPE_TYPES]
    if unknown or (recipe and not recipe.get("name")):
        what = f"entry '{unknown[0]}' is unknown" if unknown else "'name' is missing"
        raise LandscapeError(f"{source.path}: its record of the data cannot be used, {what}: name them with --dataset")
    return dict(recipe)


def _require_types(source: CheckpointSource, record: dict[str, Any], types: Mapping[str, Any]) -> None:
    for name, value in record.items():
        if value is not None and not isinstance(value, types.get(name, object)):
            raise LandscapeError(f"{source.path}: its record cannot be used, '{name}' is {value!r}")


def _build(source: CheckpointSource, checkpoint: Checkpoint, spec: dict[str, Any], dataset: Dataset) -> nn.Module:
    guess = infer_architecture(checkpoint.state_dict)
    name = source.model or spec.get("model") or (guess.model if guess else None)
    if name is None:
        raise LandscapeError(
            f"{source.path} does not record its model: name it with --model, for example --model resnet32"
        )
    head: Any = source.head or spec.get("head") or (guess.head if guess else "linear")
    options: dict[str, Any] = {}
    if name == spec.get("model"):
        options = spec.get("model_options") or {}
    elif guess and name == guess.model:
        options = dict(guess.options)
    return build_model(
        name,
        num_classes=dataset.num_classes,
        in_channels=dataset.test.images.shape[1],
        image_size=dataset.image_size,
        head=head,
        **{name: value for name, value in options.items() if name != "pretrained"},  # the file has the weights
    )


def risk_of(loaded: LoadedCheckpoint, source: CheckpointSource) -> ModelRisk | RedrawnRisk:
    """Return the risk of a loaded checkpoint on the split, with the loss and augmentation that ``source`` names.

    Raises
    ------
    LandscapeError
        If the data do not fit the network, or augmentation is asked for and the data set has none.
    """
    dataset, spec = loaded.dataset, loaded.spec
    split, num_draws, augmentation = _split_under_study(dataset, source)
    with _recorded(source, loaded.checkpoint):
        trained = spec.get("loss", "ce")
        name = trained if source.loss == "own" else source.loss
        options = spec.get("loss_options", {}) if name == trained else {}
        # The margins and offsets of a loss are those it was trained with, also on other data.
        counts = tuple(int(n) for n in spec.get("class_counts") or dataset.train_counts)
        if not all(0 <= n < 2**53 for n in counts):
            raise ValueError("its class counts are no counts of images")
        loss: Any = "ce" if name == "ce" else build_loss(name, counts, **options)
    if loss != "ce":
        loss.name = name
    calibration = dataset.train.take(_calibration_rows(dataset.train.labels, source)).images
    risk = ModelRisk(
        loaded.model,
        split,
        loss=loss,
        params=source.params,
        transform=dataset.normalise,
        dtype=getattr(torch, source.dtype),
        device=resolve_device(source.device),
        class_names=dataset.class_names,
        train_counts=counts,
        groups=dataset.groups.members,
        calibration=calibration,
        draws_per_example=num_draws,
        attributes={
            "checkpoint": Path(source.path).name,
            "checkpoint_sha256": loaded.checkpoint.sha256,
            # Of two sets of weights in one file the results are not the same.
            **({"weights": loaded.checkpoint.container} if loaded.checkpoint.other_container else {}),
            "dataset": dataset.name,
            "data_recipe": {key: value for key, value in dataset.recipe.items() if key not in PLACES},
            "split": source.split,
            "max_per_class": source.max_per_class or 0,
            "group_rule": dataset.groups.rule,
            "augmentation": augmentation,
            "calibration": CALIBRATIONS[source.calibration],
            "optimizer": spec.get("optimizer", "unknown"),
        },
    )
    if source.augment == "redraw":
        return RedrawnRisk(risk, find_transform(dataset).redraw, seed=source.augment_seed)
    return risk


def held_out_risk(
    loaded: LoadedCheckpoint,
    source: CheckpointSource,
    lanes: LaneChoice | None = None,
    *,
    group_average: GroupAverage = "examples",
) -> ModelRisk | None:
    """Return the risk of the split that ``source`` does not name, everything else being equal.

    None where it does not have the lanes (a split of one's own may lack a class), which is logged as a warning, and where
    augmentation is drawn anew at every evaluation.
    """
    other: SplitName = "test" if source.split == "train" else "train"
    try:
        risk = risk_of(loaded, replace(source, split=other))
        lanes_of(risk, lanes, group_average=group_average)
    except LandscapeError as error:
        logger.warning("held-out %s images left out: %s", other, error)
        return None
    return risk if isinstance(risk, ModelRisk) else None


def _calibration_rows(labels: torch.Tensor, source: CheckpointSource) -> torch.Tensor:
    """Return the training rows (M,) over which statistics are recomputed, the same at every point and for every model."""
    if source.calibration == "train":
        num = min(source.calibration_examples, len(labels))
        order = torch.argsort(labels, stable=True)  # evenly spread over this order: every class in its share
        return order[(torch.arange(num) * len(labels)) // num].sort().values
    present = torch.unique(labels)
    most = min(-(-source.calibration_examples // len(present)), int(torch.bincount(labels).max()))
    rows = [torch.nonzero(labels == c)[:, 0] for c in present.tolist()]
    return torch.cat([own[torch.arange(most) % len(own)] for own in rows])


def _split_under_study(dataset: Dataset, source: CheckpointSource) -> tuple[Split, int, str]:
    """Return the images, how many draws there are of each, and the augmentation in words."""
    split = dataset.train if source.split == "train" else dataset.test
    kept = torch.arange(len(split))
    if source.max_per_class is not None:
        kept = limit_per_class(split.labels, source.max_per_class)
    if source.augment == "none":
        return split.take(kept), 1, "none"
    transform = find_transform(dataset)
    transform = transform.after_decoding() if dataset.has_random_parts else transform
    if transform == TRANSFORMS["none"] and not dataset.has_random_parts:
        raise LandscapeError(
            f"--augment {source.augment}: the data set {dataset.name} is trained without augmentation; choose --augment none"
        )
    if source.augment == "redraw":
        if dataset.has_random_parts:
            raise LandscapeError(
                f"--augment redraw: {dataset.name} is trained on random parts of whole images, which are not kept; "
                "choose --augment frozen"
            )
        return split.take(kept), 1, f"redraw, {dataset.augmentation}"
    num_draws, seed = source.augment_draws, source.augment_seed
    # Of the whole split, so that an image keeps its draws whatever --max-per-class says.
    name = f"augment/frozen/{source.split}"
    draws = transform.draw(len(split) * num_draws, stream(seed, name)).view(-1, len(split), num_draws)[:, kept]
    if not dataset.has_random_parts:
        frozen = frozen_draws(split.take(kept), transform, draws)
        return frozen, num_draws, f"frozen, {num_draws} draws of {dataset.augmentation}, seed {seed}"
    crops = draw_crops(len(split) * num_draws, stream(seed, f"{name}/parts")).view(len(split), num_draws, -1)[kept]
    parts = split.take(kept).random_parts(crops)
    frozen = Split(transform.apply(parts.pixels(), draws.flatten(1)), parts.labels)
    return frozen, num_draws, f"frozen, {num_draws} draws of random parts and {dataset.augmentation}, seed {seed}"


def load_risk(path: str | Path, **overrides: Any) -> ModelRisk | RedrawnRisk:
    """Load a checkpoint as a risk: weights, network, data and loss in one call.

    Parameters
    ----------
    path
        One of our checkpoints, or a torch or safetensors file of others.
    **overrides
        The fields of :class:`CheckpointSource`, such as ``model="resnet20", dataset="cifar10", data_dir=...``,
        ``split="test"``, ``max_per_class=50``, ``dtype="float64"``.

    Returns
    -------
    ModelRisk
        Ready for the measurements; a :class:`landscape.risk.augmented.RedrawnRisk` for ``augment="redraw"``.

    Raises
    ------
    LandscapeError
        If the file is bad, or model and data are neither named nor recorded, or do not fit.
    """
    source = CheckpointSource(path, **overrides)
    return risk_of(load_checkpoint(source), source)
