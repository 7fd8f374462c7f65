"""The classifier layer: a cosine head, and finding the head of any model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from landscape.errors import LandscapeError

HEAD_NAME = "landscape_head"  # attribute of a model whose classifier is not the last linear layer registered
HeadFactory = Callable[[int], nn.Module]  # from the number of features to the classifier


class NormedLinear(nn.Module):
    r"""A cosine classifier: :math:`z_c = \cos(x, w_c)`, without bias and without scale.

    Parameters
    ----------
    in_features, num_classes
        The weight has shape (in_features, num_classes), one column per class.

    Notes
    -----
    The loss on top does not change when a column or a feature vector is rescaled. Columns are drawn from the unit
    sphere by :func:`landscape.models.build_model`; without it they are zero.

    Source: Cao et al., *LDAM-DRW*, NeurIPS 2019, released code (same shape and name in its checkpoints).
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(in_features, num_classes))

    def forward(self, features: Tensor) -> Tensor:  # (B, in_features) -> (B, num_classes), in [-1, 1]
        """Return the cosines."""
        return functional.normalize(features, dim=1) @ functional.normalize(self.weight, dim=0)

    def extra_repr(self) -> str:
        """Return the shape, for ``repr``."""
        return f"in_features={self.weight.shape[0]}, num_classes={self.weight.shape[1]}"


def mark_head(model: nn.Module, name: str) -> None:
    """Record the dotted name of a model's classifier for :func:`find_head`; copies of the model keep it."""
    setattr(model, HEAD_NAME, name)


def is_cosine_head(module: nn.Module) -> bool:
    """Return whether a module is a :class:`NormedLinear`, ours or a class of that name with one matrix as weight."""
    if isinstance(module, NormedLinear):
        return True
    own = dict(module.named_parameters())
    return type(module).__name__ == "NormedLinear" and list(own) == ["weight"] and own["weight"].dim() == 2


def find_head(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the dotted name and the module of the classifier: the last linear or cosine layer that is registered.

    A model of another library may register it earlier; :func:`mark_head` says where it stands.

    Raises
    ------
    LandscapeError
        If the model has neither.

    Examples
    --------
    >>> find_head(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    ('2', Linear(in_features=8, out_features=3, bias=True))
    """
    marked = getattr(model, HEAD_NAME, None)
    if isinstance(marked, str):
        return marked, model.get_submodule(marked)
    heads = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) or is_cosine_head(m)]
    if not heads:
        raise LandscapeError(
            f"no classifier found in {type(model).__name__}: expected a torch.nn.Linear or a NormedLinear layer"
        )
    return heads[-1]
