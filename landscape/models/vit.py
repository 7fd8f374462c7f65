"""The vision transformer and its deep prompts, in both published placements, with parameter names that load timm's weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from landscape.errors import LandscapeError, unknown_name
from landscape.models.dropout import Dropout
from landscape.models.heads import NormedLinear
from landscape.models.initialisation import draw_columns

Placement = Literal["append", "insert"]
Readout = Literal["cls", "cls+prompts"]
Scheme = Literal["gnm-pt", "vpt"]

EPSILON = 1e-6  # of every layer norm, as in timm and the original code
STD = 0.02  # of the truncated normal weights
MLP_RATIO = 4


@dataclass(frozen=True)
class ViTShape:
    """Sizes of a vision transformer; by default ViT-B/16.

    Raises
    ------
    LandscapeError
        If a size is not a positive whole number, or one does not divide the other.
    """

    image_size: int = 224
    in_channels: int = 3
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require_whole(name, value)
        if self.image_size % self.patch_size:
            raise LandscapeError(
                f"image_size: expected a multiple of patch_size {self.patch_size}, got {self.image_size}: "
                "resize the images (224 for published weights), or choose another patch_size"
            )
        if self.width % self.num_heads:
            raise LandscapeError(f"width: expected a multiple of num_heads {self.num_heads}, got {self.width}")

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class DeepPrompts:
    """Learnt tokens that every block reads beside those of the image.

    Attributes
    ----------
    num
        Prompts of each block.
    placement
        ``"append"``: behind the patches (GNM-PT). ``"insert"``: between the class token and the patches (VPT). Attention
        knows no order and prompts have no position, so that this alone changes no number but by rounding.
    readout
        ``"cls"``: the layer norm of the class token. ``"cls+prompts"``: half of it plus half of the mean of the prompts
        as the last block returns them, without layer norm.
    scheme
        How prompts and classifier are drawn: ``"gnm-pt"`` or ``"vpt"``, see :class:`VisionTransformer`.
    prompt_dropout, head_dropout
        Dropout of the prompts before every block (VPT), and of the features (GNM-PT).
    """

    num: int
    placement: Placement
    readout: Readout
    scheme: Scheme
    prompt_dropout: float = 0.0
    head_dropout: float = 0.0

    def __post_init__(self) -> None:
        require_whole("num_prompts", self.num)
        choices = {"placement": Placement, "readout": Readout, "scheme": Scheme}
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise unknown_name(name, str(getattr(self, name)), get_args(kind))


def require_whole(name: str, value: object) -> None:
    """Raise LandscapeError unless a value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise LandscapeError(f"{name}: expected a whole number of at least 1, got {value!r}")


class PatchEmbedding(nn.Module):
    """Patches as vectors: a convolution whose stride is its size."""

    def __init__(self, shape: ViTShape) -> None:
        super().__init__()
        self.proj = nn.Conv2d(shape.in_channels, shape.width, shape.patch_size, stride=shape.patch_size)

    def forward(self, images: Tensor) -> Tensor:  # (B, in_channels, H, W) -> (B, patches, width)
        """Return one vector per patch, row by row."""
        return self.proj(images).flatten(2).mT


class Attention(nn.Module):
    r"""Multi-head self-attention, :math:`\mathrm{softmax}(q k' / \sqrt{d})\, v` in every head."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # (B, tokens, width) -> (B, tokens, width)
        """Return the mixed tokens."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        mixed = functional.scaled_dot_product_attention(q, k, v)  # (B, heads, tokens, width / heads)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them; the hidden one is four times as wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:  # (B, tokens, width) -> (B, tokens, width)
        """Return the transformed tokens."""
        return self.fc2(functional.gelu(self.fc1(x)))


class TransformerBlock(nn.Module):
    """Attention, then a small network for each token, each behind a layer norm and with a shortcut."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:  # (B, tokens, width) -> (B, tokens, width)
        """Return the tokens after the block."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    r"""A vision transformer that reads the class token, with or without deep prompts.

    With prompts :math:`P_i`, block i sees class token, patches and :math:`P_i`; what it returns for the prompts is dropped,
    except that the last block's may enter the readout.

    Parameters
    ----------
    head
        The classifier, from ``shape.width`` features; stored as ``head``.
    shape
        Sizes.
    prompts
        Deep prompts, or None. They are one parameter ``prompts`` (depth, num, width).
    recompute
        Whether the backward pass of training computes every block again instead of keeping what it made: a third more time,
        and for ViT-B/16 20 MB an image instead of 120.

    Notes
    -----
    Sources: Dosovitskiy et al., *An Image is Worth 16x16 Words*, ICLR 2021, with names, sizes and initial weights of timm
    (``vit_base_patch16_224``: truncated normal weights of standard deviation 0.02, zero biases, torch's default for the
    patches, a class token of 1e-6); Jia et al., *Visual Prompt Tuning*, ECCV 2022, and Li et al., *Gaussian Neighborhood
    Minimization* (GNM-PT), NeurIPS 2024, both as released.

    Scheme ``"gnm-pt"``: prompts and classifier truncated normal of standard deviation 0.02 (a cosine classifier's columns too,
    which decides how large noise and steps are for it). Scheme ``"vpt"``: prompts uniform within
    :math:`\sqrt{6 / (3 p^2 + d)}` for patches of side p and width d (the 3 channels are part of the formula), a linear
    classifier He-normal by fan-out with biases :math:`-\log 99`, a cosine classifier (not in VPT) with unit columns.

    1. Differs from VPT in: prompts of all blocks are one parameter; in its code the first block's are ``prompt_embeddings`` and
       the others' ``deep_prompt_embeddings``.
    2. Differs from VPT in: the backbone has no dropout, which its code holds in evaluation mode.
    3. Differs from GNM-PT in: prompts are stored once, not under two names.
    """

    def __init__(
        self, head: nn.Module, shape: ViTShape, *, prompts: DeepPrompts | None = None, recompute: bool = False
    ) -> None:
        super().__init__()
        self.shape, self.plan, self.recompute = shape, prompts, recompute
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + shape.num_patches, shape.width))
        if prompts is not None:
            self.prompts = nn.Parameter(torch.zeros(shape.depth, prompts.num, shape.width))
            self.prompt_dropout = Dropout(prompts.prompt_dropout)
            self.head_dropout = Dropout(prompts.head_dropout)
        self.patch_embed = PatchEmbedding(shape)
        self.blocks = nn.Sequential(*(TransformerBlock(shape.width, shape.num_heads) for _ in range(shape.depth)))
        self.norm = nn.LayerNorm(shape.width, eps=EPSILON)
        self.head = head

    def forward(self, images: Tensor) -> Tensor:  # (B, in_channels, image_size, image_size) -> (B, num_classes)
        """Return the logits.

        Raises
        ------
        LandscapeError
            If the images are not of the network's size.
        """
        side = self.shape.image_size
        if images.shape[-2:] != (side, side):
            raise LandscapeError(
                f"expected images of {side} x {side} pixels, got {images.shape[-2]} x {images.shape[-1]}: "
                f"resize them, or build the model with image_size={images.shape[-1]}"
            )
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), self.patch_embed(images)], 1) + self.pos_embed
        if self.plan is None:
            for block in self.blocks:
                tokens = self._through(block, tokens)
            return self.head(self.norm(tokens[:, 0]))
        return self.head(self.head_dropout(self._prompted(tokens, self.plan)))

    def _through(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """Return what a block makes of the tokens; it draws no random numbers, so that it may do so twice."""
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(block, tokens, use_reentrant=False, preserve_rng_state=False)
        return block(tokens)

    def _prompted(self, tokens: Tensor, plan: DeepPrompts) -> Tensor:  # (B, 1 + patches, width) -> (B, width)
        """Return the features that the readout gives after all blocks."""
        first = 1 if plan.placement == "insert" else tokens.shape[1]  # where the prompts stand
        sizes = [first, plan.num, tokens.shape[1] - first]
        for block, prompts in zip(self.blocks, self.prompts):
            own = self.prompt_dropout(prompts.expand(len(tokens), -1, -1))
            mixed = self._through(block, torch.cat([tokens[:, :first], own, tokens[:, first:]], 1))
            before, returned, behind = mixed.split(sizes, 1)
            tokens = torch.cat([before, behind], 1)
        features = self.norm(tokens[:, 0])
        return features if plan.readout == "cls" else (features + returned.mean(1)) / 2

    @torch.no_grad()
    def draw_weights(self, generator: torch.Generator) -> None:
        """Draw the weights as timm does, prompts and classifier as their scheme says."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=STD, generator=generator)
                layer.bias.zero_()
        fan_in = self.patch_embed.proj.weight[0].numel()
        for tensor in self.patch_embed.proj.parameters():
            tensor.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
        nn.init.trunc_normal_(self.pos_embed, std=STD, generator=generator)
        self.cls_token.normal_(std=1e-6, generator=generator)
        self._draw_head(generator)
        if self.plan is None:
            return
        if self.plan.scheme == "gnm-pt":
            nn.init.trunc_normal_(self.prompts, std=STD, generator=generator)
        else:
            bound = math.sqrt(6 / (3 * self.shape.patch_size**2 + self.shape.width))
            self.prompts.uniform_(-bound, bound, generator=generator)

    def _draw_head(self, generator: torch.Generator) -> None:
        """Draw the classifier; a linear one has been drawn like the other linear layers, as timm and GNM-PT want it."""
        scheme = None if self.plan is None else self.plan.scheme
        if isinstance(self.head, NormedLinear):
            if scheme == "gnm-pt":
                nn.init.trunc_normal_(self.head.weight, std=STD, generator=generator)
            else:
                draw_columns(self.head, generator)
        elif scheme is not None:
            assert isinstance(self.head, nn.Linear)
            if scheme == "vpt":
                nn.init.kaiming_normal_(self.head.weight, mode="fan_out", generator=generator)
                nn.init.constant_(self.head.bias, -math.log(99))
            else:
                bound = self.shape.width**-0.5
                self.head.bias.uniform_(-bound, bound, generator=generator)
