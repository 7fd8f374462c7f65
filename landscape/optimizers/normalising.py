"""Methods that normalise the weights: spectral normalisation."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from landscape.errors import LandscapeError
from landscape.optimizers.companions import Batches
from landscape.optimizers.terms import Batch, Term, check_option


@dataclass(frozen=True)
class SpectralNorm:
    r"""Spectral normalisation: plain descent on weights that are divided by their largest singular value.

    .. math:: W = \bar W / \sigma(\bar W), \qquad \sigma(\bar W) \approx u^\top \bar W v

    for every convolution (its kernel as a matrix with one row per output channel) and every linear layer. The singular
    vectors follow the weights by power iterations in each training pass, and no gradient flows through them. The network
    that is evaluated and saved has the plain weights W. One forward and one backward pass per step.

    Parameters
    ----------
    num_iterations
        Power iterations per forward pass; 1 as in the paper and in BigGAN.
    head
        Whether the classifier is normalised, too, as in BigGAN, where every convolution and linear layer is. A cosine
        head is left out in any case: its outputs do not depend on the length of its weights. A classifier of norm one
        can hardly tell rare classes apart: after 20 epochs on the long-tailed digits the rarest of them has a test accuracy
        of 0 with it and 62 % without.
    eps
        Guard of the vectors' norms, torch's default.

    Notes
    -----
    Source: Miyato et al., *Spectral Normalization for Generative Adversarial Networks*, ICLR 2018; CC-SAM (CVPR 2023)
    compares against it as "SN", by way of BigGAN (Brock et al., ICLR 2019), without public settings. The parametrization is
    torch's. Differs from it in:

    1. The first singular vectors are exact, where the paper, torch and BigGAN start from random ones: no draw is needed.
    """

    num_iterations: int = 1
    head: bool = True
    eps: float = 1e-12
    name: ClassVar[str] = "spectral-norm"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_option(self, "num_iterations", self.num_iterations, minimum=1)
        check_option(self, "eps", self.eps)
        if not isinstance(self.num_iterations, int):
            raise LandscapeError(f"spectral-norm: num_iterations must be a whole number, got {self.num_iterations!r}")
        if self.head not in (True, False):  # 1 and 0 from a command line pass
            raise LandscapeError(f"spectral-norm: head must be true or false (1 or 0), got {self.head!r}")

    def companion(self, model: nn.Module) -> NormalisedLayers:
        """Parametrize the network's layers and return what gives their plain weights."""
        return NormalisedLayers(self, model)

    def terms(self, batch: Batch) -> list[Term]:
        """Return the mean loss at theta."""
        return [Term()]


class NormalisedLayers:
    """The layers of a network under spectral normalisation; see :class:`landscape.optimizers.Companion`.

    Their singular vectors are buffers of the network, so a resumed training finds them in its state.

    Parameters
    ----------
    rule
        Says which layers, and how.
    model
        The network; parametrizations are registered on it, which changes the names and the order of its parameters.

    Raises
    ------
    LandscapeError
        If the network has no layer to normalise.
    """

    def __init__(self, rule: SpectralNorm, model: nn.Module) -> None:
        self.model = model
        self.layers = [name for name, module in _layers(model, with_head=bool(rule.head))]
        if not self.layers:
            raise LandscapeError(
                f"spectral-norm: {type(model).__name__} has no convolution or linear layer in training to normalise"
                + ("" if rule.head else " besides its head: leave head=true")
            )
        # Exports are written into a copy from before: the class of a parametrized layer is made for it and shared with
        # its copies, so that removing the parametrization of a copy would break the layer that is trained.
        self.plain = copy.deepcopy(model)
        for name in self.layers:
            _normalise(model.get_submodule(name), rule)

    def learning_rate(self, scheduled: float, *, epoch: int, num_epochs: int, lr: float) -> float:
        """Return the training's own learning rate."""
        return scheduled

    def end_epoch(self, epoch: int, num_epochs: int) -> None:
        """Do nothing."""

    def export(self, batches: Batches) -> nn.Module:
        """Return a network without parametrizations, with the normalised weights; the same object in every call."""
        state = {
            name: value for name, value in self.model.state_dict().items() if ".parametrizations." not in f".{name}"
        }
        for name in self.layers:
            layer = self.model.get_submodule(name)
            norm = layer.get_submodule("parametrizations.weight.0")
            was_training = norm.training
            norm.eval()  # in training mode the look would be a power iteration
            state[f"{name}.weight" if name else "weight"] = layer.weight.detach()  # type: ignore[operator]
            norm.train(was_training)
        self.plain.load_state_dict(state)
        return self.plain

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the vectors are the network's buffers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load nothing."""


def _layers(model: nn.Module, *, with_head: bool) -> list[tuple[str, nn.Module]]:
    from landscape.models import find_head  # only this rule needs the models

    head = None if with_head else find_head(model)[1]
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, kinds) and m is not head]
    # What is held fixed stays as it is: normalising a frozen backbone would change its features.
    return [(n, m) for n, m in found if not is_parametrized(m, "weight") and m.get_parameter("weight").requires_grad]


def _normalise(module: nn.Module, rule: SpectralNorm) -> None:
    weight = module.get_parameter("weight")
    # torch draws its first vectors from the global generator; they are replaced and its state is put back.
    cuda = [weight.device] if weight.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        spectral_norm(module, n_power_iterations=rule.num_iterations, eps=rule.eps)
    norm = module.get_submodule("parametrizations.weight.0")
    matrix = weight.detach().transpose(0, getattr(norm, "dim")).flatten(1)  # noqa: B009  (the output channels)
    u, _, vh = torch.linalg.svd(matrix.float() if matrix.dtype.itemsize < 4 else matrix, full_matrices=False)
    with torch.no_grad():
        norm.get_buffer("_u").copy_(u[:, 0])
        norm.get_buffer("_v").copy_(vh[0])
