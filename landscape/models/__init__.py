"""Networks by name: small ones, residual networks of CIFAR and ImageNet, vision transformers with prompts, other libraries'."""

from landscape.models.backbone import load_backbone
from landscape.models.dropout import Dropout, set_dropout_generator
from landscape.models.heads import NormedLinear, find_head, is_cosine_head
from landscape.models.recognition import Architecture, infer_architecture, infer_model
from landscape.models.registry import MODELS, build_model, check_model, model_options

__all__ = [
    "MODELS",
    "Architecture",
    "Dropout",
    "NormedLinear",
    "build_model",
    "check_model",
    "find_head",
    "infer_architecture",
    "infer_model",
    "is_cosine_head",
    "load_backbone",
    "model_options",
    "set_dropout_generator",
]
