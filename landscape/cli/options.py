"""The options that commands share, and what they are turned into."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli import checks
from landscape.errors import LandscapeError

if TYPE_CHECKING:
    from landscape.loading import CheckpointSource
    from landscape.pipeline import AnalysisSpec
    from landscape.training import TrainSpec

DATA = "Data"
MODEL = "Model and training"
ANALYSIS = "Analysis"
# Whose options --KIND-option sets: the field that names the owner.
OWNERS = {
    "model": "model",
    "loss": "loss",
    "sampler": "sampler",
    "method": "method",
    "second": "second_stage",
    "schedule": "schedule",
    "optimizer": "optimizer",
}

Out = Annotated[Path, typer.Option("--out", help="Where to write.")]
Checkpoint = Annotated[
    Path, typer.Argument(metavar="CKPT", help="One of our checkpoints, or a torch or safetensors file of others.")
]


def option(flag: str, text: str, panel: str | None = None, check: Callable[[Any], Any] | None = None) -> Any:
    """Return an option with its help, the panel it stands in, and what checks it."""
    return typer.Option(flag, help=text, rich_help_panel=panel, callback=check)


def data_options(
    dataset: Annotated[
        str | None,
        option(
            "--dataset",
            "digits-lt, cifar10-lt, cifar100-lt, cifar10, cifar100, arrays, imagenet-lt, places-lt, inaturalist18, "
            "image-list or image-folder.",
            DATA,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, option("--data-dir", "Folder of the official files or images, or the .npz file.", DATA)
    ] = None,
    train_list: Annotated[
        Path | None, option("--train-list", "List of training images, lines 'relative/path label'.", DATA)
    ] = None,
    test_list: Annotated[Path | None, option("--test-list", "List of test images.", DATA)] = None,
    relabel: Annotated[
        str | None, option("--relabel", "Number the classes by falling count: count, or none.", DATA)
    ] = None,
    resize: Annotated[
        int | None, option("--resize", "Side of the network's input, in pixels; 224 for images on disk.", DATA)
    ] = None,
    cache_dir: Annotated[Path | None, option("--cache-dir", "Keep decoded images there, for later runs.", DATA)] = None,
    download: Annotated[
        bool, option("--download", "Let torchvision download CIFAR into the data folder.", DATA)
    ] = False,
    allow_outside: Annotated[
        bool, option("--allow-outside", "Let lists name images that are not below the data folder.", DATA)
    ] = False,
    imbalance_ratio: Annotated[
        float | None,
        option("--imbalance-ratio", "Largest over smallest training class count, >= 1.", DATA, checks.finite_ratio),
    ] = None,
    group_rule: Annotated[str | None, option("--group-rule", "Rule for head, medium and tail.", DATA)] = None,
    mean: Annotated[str | None, option("--mean", "Input mean per channel, such as 0.49,0.48,0.45.", DATA)] = None,
    std: Annotated[str | None, option("--std", "Input standard deviation per channel.", DATA)] = None,
    model: Annotated[
        str | None,
        option(
            "--model", "Such as convnet, resnet32, resnet50-imagenet, vit-b16-gnm, torchvision:NAME, timm:NAME.", MODEL
        ),
    ] = None,
    head: Annotated[str | None, option("--head", "linear or cosine.", MODEL)] = None,
    device: Annotated[str, option("--device", "auto, cpu or cuda.", check=checks.known_device)] = "auto",
    as_json: Annotated[bool, option("--json", "Print machine-readable output.")] = False,
) -> None:
    """Options of every command that reads data."""


def training_options(
    recipe: Annotated[
        str | None,
        option("--recipe", "A published setting, see 'landscape recipes'; other options override it.", MODEL),
    ] = None,
    profile: Annotated[str | None, option("--profile", "exponential or step.", DATA)] = None,
    selection: Annotated[
        str | None, option("--selection", "Examples a class keeps: seed0, seed42 or first.", DATA)
    ] = None,
    loss: Annotated[
        str | None,
        option(
            "--loss",
            "ce, focal, label-aware, ldam, balanced-softmax, logit-adjusted, cdt, vs, gcl, gcl-angular or asymmetric-gcl.",
            MODEL,
        ),
    ] = None,
    loss_option: Annotated[list[str] | None, option("--loss-option", "NAME=VALUE; may be repeated.", MODEL)] = None,
    reweight: Annotated[str | None, option("--reweight", "none, cb, or drw (deferred).", MODEL)] = None,
    base: Annotated[str | None, option("--base", "Base optimizer: sgd or adamw.", MODEL)] = None,
    bn_statistics: Annotated[str | None, option("--bn-statistics", "every-pass or first-pass.", MODEL)] = None,
    epochs: Annotated[int | None, option("--epochs", "By default the data set's recipe.", MODEL)] = None,
    batch_size: Annotated[int | None, option("--batch-size", "Examples per step.", MODEL)] = None,
    lr: Annotated[float | None, option("--lr", "Initial learning rate.", MODEL, checks.positive_rate)] = None,
    weight_decay: Annotated[float | None, option("--weight-decay", "L2 weight decay.", MODEL)] = None,
    schedule: Annotated[
        str | None, option("--schedule", "ldam, multistep, ccsam, steps, cosine, constant and more.", MODEL)
    ] = None,
    schedule_option: Annotated[
        list[str] | None, option("--schedule-option", "NAME=VALUE such as milestones=160,180; may be repeated.", MODEL)
    ] = None,
    head_lr_factor: Annotated[
        float | None, option("--head-lr-factor", "Learning rate of the classifier over that of the rest.", MODEL)
    ] = None,
    test_time_flip: Annotated[
        bool, option("--test-time-flip", "Also report the accuracy averaged over mirror images.", MODEL)
    ] = False,
    keep_best: Annotated[
        bool, option("--keep-best", "Keep OUT/best.safetensors, the best epoch on the test images.", MODEL)
    ] = False,
    model_option: Annotated[list[str] | None, option("--model-option", "NAME=VALUE; may be repeated.", MODEL)] = None,
    start: Annotated[Path | None, option("--start", "Checkpoint whose weights training starts from.", MODEL)] = None,
    trainable: Annotated[
        str | None, option("--trainable", "all, head, backbone, prompts or a regular expression.", MODEL)
    ] = None,
    augmentation: Annotated[str | None, option("--augmentation", "Name of the training transform.", DATA)] = None,
    sampler: Annotated[str | None, option("--sampler", "Which examples make up an epoch.", DATA)] = None,
    sampler_option: Annotated[
        list[str] | None, option("--sampler-option", "NAME=VALUE; may be repeated.", DATA)
    ] = None,
    mixup: Annotated[float | None, option("--mixup", "Parameter of mixup's Beta distribution; 0: none.", MODEL)] = None,
    method: Annotated[
        str | None, option("--method", "How a batch becomes losses: plain, m2m, paco, gpaco, glmc.", MODEL)
    ] = None,
    method_option: Annotated[list[str] | None, option("--method-option", "NAME=VALUE; may be repeated.", MODEL)] = None,
    second_stage: Annotated[
        str | None, option("--second-stage", "crt, tau-norm, lws, mislas, gcl, ccsam, deferred.", MODEL)
    ] = None,
    second_option: Annotated[
        list[str] | None,
        option("--second-option", "NAME=VALUE of the second stage: epochs=20, optimizer_options.rho=0.1.", MODEL),
    ] = None,
    precision: Annotated[str | None, option("--precision", "float32, bfloat16 or float16 (mixed).", MODEL)] = None,
    compile: Annotated[bool, option("--compile", "Compile the network.", MODEL)] = False,
    accumulate: Annotated[int | None, option("--accumulate", "Pieces a batch is cut into.", MODEL)] = None,
    seed: Annotated[
        int | None, option("--seed", "Root of every random stream: 0, or the recipe's.", check=checks.seed)
    ] = None,
    dry_run: Annotated[bool, option("--dry-run", "Print the estimated time and memory, and stop.")] = False,
) -> None:
    """Options of the commands that train."""


def checkpoint_options(
    weights: Annotated[
        str | None, option("--weights", "raw or ema (a moving average), where a checkpoint holds both.", MODEL)
    ] = None,
) -> None:
    """Options that choose among the weights of a checkpoint."""


def examples_options(
    split: Annotated[str, option("--split", "train or test.", ANALYSIS)] = "train",
    max_per_class: Annotated[
        int | None, option("--max-per-class", "The first N examples of each class.", ANALYSIS)
    ] = None,
    objective: Annotated[str, option("--objective", "own (the training loss), ce or another loss.", ANALYSIS)] = "own",
) -> None:
    """Options that choose the examples and the loss under study."""


def augment_options(
    augment: Annotated[
        str,
        option("--augment", "none, frozen (mean over fixed draws) or redraw (as published, no verdict).", ANALYSIS),
    ] = "none",
    augment_draws: Annotated[int, option("--augment-draws", "Fixed draws of each image for frozen.", ANALYSIS)] = 4,
) -> None:
    """Options that choose the augmentation of the images under study."""


def lanes_options(
    preset: Annotated[str, option("--preset", "quick, standard or full.", ANALYSIS)] = "quick",
    lanes: Annotated[
        str | None, option("--lanes", "classes, groups, all, or names such as 0,9,tail; default everything.", ANALYSIS)
    ] = None,
    group_average: Annotated[
        str, option("--group-average", "examples (pooled) or classes (equal weights).", ANALYSIS)
    ] = "examples",
) -> None:
    """Options that choose the lanes and the effort."""


def weights_options(
    params: Annotated[
        str,
        option(
            "--params",
            "all, trainable, head, backbone, prompts, a regular expression, or several joined by +.",
            ANALYSIS,
        ),
    ] = "all",
    dtype: Annotated[str, option("--dtype", "float32 or float64.", ANALYSIS)] = "float32",
    seed: Annotated[int, option("--seed", "Root of every random stream.", check=checks.seed)] = 0,
    dry_run: Annotated[bool, option("--dry-run", "Print the estimated time and memory, and stop.")] = False,
) -> None:
    """Options of the analyses of one checkpoint."""


def reconstruction_options(
    points: Annotated[int | None, option("--points", "Per axis; by default as published, else 21.", ANALYSIS)] = None,
    batchnorm: Annotated[str, option("--batchnorm", "frozen, or recalibrate at every point.", ANALYSIS)] = "frozen",
) -> None:
    """Options of the published plots."""


ANALYSES = (data_options, checkpoint_options, examples_options, augment_options, lanes_options, weights_options)


def takes(*templates: Callable[..., None], **defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of some templates; it receives them together as the keyword ``given``.

    ``defaults`` replace the templates' own.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "given"]
        shared: dict[str, inspect.Parameter] = {}
        for template in templates:
            for name, parameter in inspect.signature(template, eval_str=True).parameters.items():
                shared[name] = parameter.replace(default=defaults.get(name, parameter.default))

        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            given = {name: values.pop(name) for name in shared}
            command(**values, given=given)

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *shared.values())]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        del wrapper.__wrapped__
        return wrapper

    return decorate


def parse_numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """Return comma-separated numbers as a tuple; None for no text."""
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(map(math.isfinite, numbers)):
        raise LandscapeError(f"{option}: expected comma-separated finite numbers such as 0.49,0.48,0.45, got '{text}'")
    return numbers


def parse_names(text: str, option: str) -> tuple[str, ...]:
    """Return comma-separated names as a tuple."""
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise LandscapeError(f"{option}: expected comma-separated names, none of them empty, got '{text}'")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise LandscapeError(f"{option}: '{twice}' is named twice in '{text}': name it once")
    return names


def parse_settings(pairs: list[str] | None, option: str) -> dict[str, Any]:
    """Return ``["rho=0.1", "variant=official"]`` as a dictionary.

    Numbers become numbers, none, true and false what they say; what has commas becomes a list.
    """
    settings: dict[str, Any] = {}
    for pair in pairs or []:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise LandscapeError(f"{option}: expected NAME=VALUE such as rho=0.1, got '{pair}'")
        # What has commas is a list.
        parts = [_number(part.strip()) for part in value.split(",") if part.strip() or "," not in value]
        if any(isinstance(part, float) and not math.isfinite(part) for part in parts):
            raise LandscapeError(f"{option}: expected a finite number, got '{pair}'")
        settings[key.strip().replace("-", "_")] = parts if "," in value else parts[0]
    return settings


def _number(text: str) -> Any:
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def checkpoint_source(path: Path, given: dict[str, Any]) -> CheckpointSource:
    """Return the source that the options name."""
    from landscape.loading import CheckpointSource

    fields = ["model", "head", "dataset", "data_dir", "imbalance_ratio", "group_rule"]
    fields += ["train_list", "test_list", "relabel", "resize", "cache_dir", "download", "allow_outside"]
    fields += ["split", "max_per_class", "augment", "augment_draws", "params", "dtype", "device", "weights"]
    return CheckpointSource(
        path,
        mean=parse_numbers(given.get("mean"), "--mean"),
        std=parse_numbers(given.get("std"), "--std"),
        loss=given.get("objective", "own"),
        augment_seed=given.get("seed", 0),
        **{name: given[name] for name in fields if name in given},
    )


def analysis_spec(given: dict[str, Any]) -> AnalysisSpec:
    """Return the analysis that the options describe."""
    from landscape.pipeline import AnalysisSpec

    names = ("preset", "lanes", "group_average", "max_per_class")
    return AnalysisSpec(seed=given["seed"] or 0, **{name: given[name] for name in names})


def train_spec(given: dict[str, Any], **more: Any) -> TrainSpec:
    """Return the training run that the options describe; what was not given is the recipe's, else the data set's."""
    from landscape.training import TrainSpec

    names = ["dataset", "imbalance_ratio", "profile", "selection", "group_rule", "model", "head", "loss", "reweight"]
    names += ["base", "bn_statistics", "epochs", "batch_size", "lr", "weight_decay", "schedule", "seed", "optimizer"]
    names += ["trainable", "augmentation", "sampler", "mixup", "method", "second_stage", "precision", "accumulate"]
    names += ["relabel", "resize", "head_lr_factor"]
    chosen = {name: given[name] for name in names if given.get(name) is not None}
    flags = ("compile", "download", "allow_outside", "test_time_flip", "keep_best")
    chosen |= {name: True for name in flags if given[name]}
    paths = ("data_dir", "train_list", "test_list", "cache_dir", "start")
    chosen |= {name: str(given[name]) for name in paths if given[name] is not None}
    chosen |= {name: numbers for name in ("mean", "std") if (numbers := parse_numbers(given[name], f"--{name}"))}
    for kind in OWNERS:
        options = parse_settings(given.get(f"{kind}_option"), f"--{kind}-option")
        chosen |= {f"{kind}_options": options} if options else {}
    return TrainSpec(**_on_recipe(given["recipe"], chosen), **more)


def _on_recipe(name: str | None, chosen: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's fields with those that were chosen instead; options stay with what they belong to."""
    if name is None:
        return chosen
    from landscape.recipes import recipe_changes

    fields = recipe_changes(name)
    if chosen.get("dataset", fields["dataset"]) != fields["dataset"]:
        raise LandscapeError(
            f"--recipe {name} is for {fields['dataset']}: leave --dataset out, or choose another recipe"
        )
    for kind, owner in OWNERS.items():
        key = f"{kind}_options"
        of_recipe = fields.pop(key, {})
        kept = of_recipe if chosen.get(owner) in (None, fields.get(owner)) else {}
        if options := {**kept, **chosen.pop(key, {})}:
            fields[key] = options
    return {**fields, **chosen}
