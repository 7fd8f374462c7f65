r"""Per-example losses for long-tailed classification, and class re-weighting.

Every loss is a module: ``loss(logits (B, C), labels (B,)) -> (B,)``. The class constants are float64 buffers that are
cast to the type of the logits. Losses do not average, and but for the released focal loss they do not weight;
:class:`Reweighting` does the latter.

Notation: :math:`n_c` training examples of class c, :math:`N` of all, :math:`\pi_c = n_c / N`, logits z, label y,
:math:`\text{CE}(z) = -\log \text{softmax}(z)_y`.
"""

from landscape.class_weights import CLASS_WEIGHTS, Counts, class_balanced_weights, class_weights
from landscape.losses.adjustment import BalancedSoftmax, ClassDependentTemperatures, LogitAdjusted, VectorScaling
from landscape.losses.clouded import GCL, AngularGCL, AsymmetricGCL
from landscape.losses.entropy import SMOOTHING_SHAPES, CrossEntropy, Focal, LabelAwareSmoothing
from landscape.losses.likelihood import cross_entropy, surprises
from landscape.losses.margins import LDAM
from landscape.losses.published import PUBLISHED_LOSSES
from landscape.losses.registry import COSINE_LOSSES, LOSSES, build_loss, wants_cosines
from landscape.losses.weighting import Reweight, Reweighting

__all__ = [
    "CLASS_WEIGHTS",
    "COSINE_LOSSES",
    "GCL",
    "LDAM",
    "LOSSES",
    "PUBLISHED_LOSSES",
    "SMOOTHING_SHAPES",
    "AngularGCL",
    "AsymmetricGCL",
    "BalancedSoftmax",
    "ClassDependentTemperatures",
    "Counts",
    "CrossEntropy",
    "Focal",
    "LabelAwareSmoothing",
    "LogitAdjusted",
    "Reweight",
    "Reweighting",
    "VectorScaling",
    "build_loss",
    "class_balanced_weights",
    "class_weights",
    "cross_entropy",
    "surprises",
    "wants_cosines",
]
