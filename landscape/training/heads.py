r"""What second stages do to a classifier: tau-normalisation, and a trained scale per class.

With the weight :math:`w_c` and the bias :math:`b_c` of class c and the features x,

.. math::

    \text{tau-normalisation} \quad z_c = \frac{w_c^\top x}{\|w_c\|_2^\tau}, \qquad
    \text{learnable weight scaling} \quad z_c = s_c\, (w_c^\top x + b_c)

Source: Kang et al., *Decoupling Representation and Classifier for Long-Tailed Recognition*, ICLR 2020, section 4, and its
released code, in which tau-normalised logits drop the bias and scales multiply it. MiSLAS (Zhong et al., CVPR 2021) trains
the scales together with the classifier.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError
from landscape.models import find_head

SCALE = "scale"


def tau_normalise(head: nn.Module, tau: float, *, bias: Literal["drop", "keep"] = "drop") -> None:
    """Divide each class's weights by the power ``tau`` of their norm, in place.

    Parameters
    ----------
    head
        A linear layer with the weight (C, d).
    tau
        0 leaves the weights, 1 makes all classes' norms 1. Published: chosen on a validation set among 0, 0.1, ..., 2; here it
        is an option, because there is no such set. The accuracy on the test images must not choose it.
    bias
        ``drop`` sets the bias to 0, as released; ``keep`` leaves it.

    Raises
    ------
    LandscapeError
        If the head is not linear, or the weights of a class are all 0.

    Examples
    --------
    >>> head = nn.Linear(2, 1)
    >>> head.weight.data = torch.tensor([[3.0, 4.0]])
    >>> tau_normalise(head, 1.0)
    >>> head.weight.tolist(), head.bias.item()
    ([[0.6000000238418579, 0.800000011920929]], 0.0)
    """
    _require_linear(head, "tau-normalisation")
    weight, offset = head.get_parameter("weight"), dict(head.named_parameters()).get("bias")
    norms = torch.linalg.vector_norm(weight.detach(), dim=1, keepdim=True)
    if not (norms > 0).all():
        raise LandscapeError(
            f"tau-normalisation: the weights of class {int((norms == 0).nonzero()[0, 0])} are all 0: train the first stage"
        )
    with torch.no_grad():
        weight.div_(norms**tau)
        if offset is not None and bias == "drop":
            offset.zero_()


def add_scale(head: nn.Module) -> None:
    """Multiply the logits of a linear head by a new parameter ``scale`` (C,), which starts at 1."""
    _require_linear(head, "learnable weight scaling")
    weight = head.get_parameter("weight")
    head.register_parameter(SCALE, nn.Parameter(torch.ones_like(weight[:, 0])))
    head.register_forward_hook(_scale_logits)


def with_folded_scale(model: nn.Module) -> nn.Module:
    """Return a copy of a network whose head has its scale in the weight and the bias, as a plain linear layer."""
    model = copy.deepcopy(model)
    head = find_head(model)[1]
    scale = getattr(head, SCALE).detach()
    with torch.no_grad():
        head.get_parameter("weight").mul_(scale[:, None])
        if "bias" in dict(head.named_parameters()):
            head.get_parameter("bias").mul_(scale)
    delattr(head, SCALE)
    for key in [key for key, hook in head._forward_hooks.items() if hook is _scale_logits]:
        del head._forward_hooks[key]
    return model


def _scale_logits(head: nn.Module, args: Any, logits: Tensor) -> Tensor:
    scaled: Tensor = logits * getattr(head, SCALE)  # an attribute: functional_call puts other tensors in its place
    return scaled


def _require_linear(head: nn.Module, what: str) -> None:
    if not isinstance(head, nn.Linear):
        raise LandscapeError(f"{what} needs a linear head, got {type(head).__name__}: train with --head linear")
