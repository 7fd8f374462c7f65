"""The network that is evaluated and written: the trained one, or what its method and its head make of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from landscape.training.heads import with_folded_scale
from landscape.training.setup import Run


def deployed(run: Run, inputs: Callable[[], Iterable[Tensor]]) -> nn.Module:
    """Return the network to evaluate, to snapshot and to write, with plain parameters; the trained one is left as it is.

    That is the trained network itself, unless its method makes another of it (averaged weights with recomputed BatchNorm
    statistics, normalised weights) or its head has scales to be folded.

    Parameters
    ----------
    run
        The training.
    inputs
        Gives the batches of inputs of one pass over the training data, for statistics.
    """
    network = run.companion.export(inputs)
    if network is not run.model:
        # A pass over the data for statistics does not know which layers are held fixed.
        own = dict(network.named_modules())
        for name, layer in frozen_layers(run):
            own[name].load_state_dict(layer.state_dict())
    return with_folded_scale(network) if run.spec.scale_head else network


def set_training_mode(run: Run) -> None:
    """Put everything in training mode; normalisation layers whose weights are held fixed as the specification says."""
    run.model.train()
    run.objective.train()
    run.method.train()
    for _, layer in frozen_layers(run):
        layer.eval()


def frozen_layers(run: Run) -> Iterator[tuple[str, nn.Module]]:
    """Yield the normalisation layers, by name, whose running statistics stay as they are."""
    if run.spec.frozen_batchnorm == "update":
        return
    for name, layer in run.model.named_modules():
        own = list(layer.parameters(recurse=False))
        if isinstance(layer, _BatchNorm) and not any(p.requires_grad for p in own):
            yield name, layer
