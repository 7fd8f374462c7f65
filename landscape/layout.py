"""The flat vector theta and the named tensors that it stands for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.errors import LandscapeError

WORDS = ("all", "trainable", "head", "backbone", "prompts")  # choices of parameters that are no regular expressions


@dataclass(frozen=True)
class ParameterLayout:
    """Order, shapes and names of the tensors in a flat parameter vector of length n.

    Attributes
    ----------
    names
        Dotted parameter names, in the order of the flat vector.
    shapes
        Shape of each tensor.
    filter_dims
        What numbers the filters of each tensor: a dimension (0, or 1 for a cosine head), several of them ((0, 1) for
        the tokens of prompts (layers, tokens, d)), or () where the tensor is a shift or scale rather than filters.

    Examples
    --------
    >>> layout = ParameterLayout.of({"w": torch.zeros(2, 3), "b": torch.zeros(2)})
    >>> layout.num_parameters
    8
    >>> theta = torch.arange(8.0)
    >>> bool((layout.flatten(layout.unflatten(theta)) == theta).all())
    True
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    filter_dims: tuple[int | tuple[int, ...], ...]

    @classmethod
    def of(
        cls, named: Mapping[str, Tensor], *, filter_dims: Mapping[str, int | tuple[int, ...]] | None = None
    ) -> ParameterLayout:
        """Return the layout of named tensors, in their order; filters lie along dimension 0 where nothing else is said."""
        dims = filter_dims or {}
        return cls(tuple(named), tuple(t.shape for t in named.values()), tuple(dims.get(name, 0) for name in named))

    @property
    def sizes(self) -> list[int]:
        """Number of entries of each tensor."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def num_parameters(self) -> int:
        """Length n of the flat vector."""
        return sum(self.sizes)

    @property
    def layers(self) -> tuple[str, ...]:
        """The module that owns each tensor: ``features.0`` for its weight and its bias, ``model`` for a lone layer's."""
        owners = [name.rpartition(".")[0] for name in self.names]
        return tuple(o or ("model" if n in ("weight", "bias") else n) for n, o in zip(self.names, owners))

    def unflatten(self, theta: Tensor) -> list[Tensor]:
        """Return views of ``theta`` (n,) in the tensors' shapes; differentiable."""
        return [part.view(shape) for part, shape in zip(theta.split(self.sizes), self.shapes)]

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """Return ``unflatten`` as a dictionary from name to view."""
        return dict(zip(self.names, self.unflatten(theta)))

    def flatten(self, tree: Sequence[Tensor]) -> Tensor:
        """Return the flat vector (n,) of tensors in this layout's order."""
        return torch.cat([tensor.reshape(-1) for tensor in tree])


def choose_parameters(named: Mapping[str, Tensor], choice: str, *, head_name: str | None) -> dict[str, Tensor]:
    """Return the subset of named parameters that ``choice`` selects.

    Parameters
    ----------
    named
        All parameters of a model by dotted name.
    choice
        ``"all"`` (also what training held fixed), ``"trainable"`` (those with ``requires_grad``), ``"head"`` (the
        classifier), ``"backbone"`` (all but classifier and prompts), ``"prompts"``, or a regular expression that is
        searched for in each name; several of these words, and one expression among them, are joined by ``+``:
        ``"prompts+head"``, ``"layer4+head"``.
    head_name
        Dotted name of the classifier module, None where the model has none that is recognised.

    Returns
    -------
    dict
        The chosen ones, in the model's order.

    Raises
    ------
    LandscapeError
        If the choice is malformed or selects nothing.

    Examples
    --------
    >>> named = {name: torch.zeros(1) for name in ("prompts", "blocks.0.weight", "head.weight")}
    >>> list(choose_parameters(named, "head+prompts", head_name="head"))
    ['prompts', 'head.weight']
    """
    chosen = {name for part in _parts(choice) for name in _choose(named, part, choice, head_name)}
    return {name: tensor for name, tensor in named.items() if name in chosen}


def is_prompt(name: str) -> bool:
    """Return whether a parameter of this dotted name holds prompts: ours, GNM-PT's or VPT's."""
    return "prompt" in name.rpartition(".")[2].lower()


def _parts(choice: str) -> list[str]:
    """Return the words of a union, taken off both ends; what is left may be an expression with a ``+`` of its own."""
    first: list[str] = []
    last: list[str] = []
    while True:
        word, plus, rest = choice.partition("+")
        if plus and rest and word in WORDS:
            first, choice = [*first, word], rest
            continue
        rest, plus, word = choice.rpartition("+")
        if plus and rest and word in WORDS:
            last, choice = [word, *last], rest
            continue
        return [*first, choice, *last]


def _choose(named: Mapping[str, Tensor], choice: str, whole: str, head_name: str | None) -> list[str]:
    """Return the names of one part of a choice."""
    if choice == "all":
        return list(named)
    if choice == "trainable":
        trainable = [name for name, t in named.items() if t.requires_grad]
        if not trainable:
            raise LandscapeError(f"--params {whole}: every parameter of the model is frozen; use --params all")
        return trainable
    if choice == "prompts":
        prompts = [name for name in named if is_prompt(name)]
        if not prompts:
            raise LandscapeError(f"--params {whole}: the model has no prompts; choose head, backbone or all")
        return prompts
    if choice in ("head", "backbone"):
        if head_name is None:
            raise LandscapeError(
                f"--params {whole} needs a model whose last layer is linear; give a regular expression instead"
            )
        prefix = f"{head_name}." if head_name else ""  # "": the model is its own classifier
        is_head = {name: name.startswith(prefix) for name in named}
        part = [n for n in named if (is_head[n] if choice == "head" else not is_head[n] and not is_prompt(n))]
        if not part:
            raise LandscapeError(f"--params {whole}: the model has nothing but its head; use --params all")
        return part
    return _matching(named, choice)


def _matching(named: Mapping[str, Tensor], choice: str) -> list[str]:
    try:
        pattern = re.compile(choice)
    except re.error as error:
        raise LandscapeError(f"--params: '{choice}' is not a regular expression ({error})") from None
    chosen = [name for name in named if pattern.search(name)]
    if not chosen:
        shown = ", ".join(list(named)[:4])
        raise LandscapeError(f"--params: '{choice}' matches none of the {len(named)} parameters ({shown}, ...)")
    return chosen
