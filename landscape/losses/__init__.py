r"""Per-example losses for long-tailed classification, and class re-weighting.

Every loss is a module: ``loss(logits (B, C), labels (B,)) -> (B,)``. The class constants are float64 buffers that are
cast to the type of the logits. Losses do not average and do not weight; :class:`Reweighting` does the latter.

Notation: :math:`n_c` training examples of class c, :math:`N` of all, :math:`\pi_c = n_c / N`, logits z, label y,
:math:`\text{CE}(z) = -\log \text{softmax}(z)_y`.
"""

from landscape.losses.adjustment import BalancedSoftmax, LogitAdjusted, VectorScaling
from landscape.losses.clouded import GCL
from landscape.losses.entropy import CrossEntropy, Focal
from landscape.losses.inputs import Counts
from landscape.losses.margins import LDAM
from landscape.losses.registry import COSINE_LOSSES, LOSSES, build_loss
from landscape.losses.weighting import Reweight, Reweighting, class_balanced_weights

__all__ = [
    "COSINE_LOSSES",
    "GCL",
    "LDAM",
    "LOSSES",
    "BalancedSoftmax",
    "Counts",
    "CrossEntropy",
    "Focal",
    "LogitAdjusted",
    "Reweight",
    "Reweighting",
    "VectorScaling",
    "build_loss",
    "class_balanced_weights",
]
