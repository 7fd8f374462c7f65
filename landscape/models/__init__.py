"""Networks by name: a small MLP and conv net, the CIFAR ResNets, linear and cosine heads."""

from landscape.models.heads import NormedLinear, find_head, is_cosine_head
from landscape.models.registry import MODELS, build_model

__all__ = ["MODELS", "NormedLinear", "build_model", "find_head", "is_cosine_head"]
