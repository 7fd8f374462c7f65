"""What one filter is: by the owner's type where it is known, by shape elsewhere, never "dimension 0" for tokens."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from landscape.models import NormedLinear
from landscape.randomness import stream
from landscape.risk import ModelRisk
from landscape.risk.filters import filter_dims_of
from landscape.surface import random_directions

D, TOKENS = 8, 4


class TinyVit(nn.Module):
    """Patches, a class token, positions, deep prompts, attention, a layer norm over tokens, a layer scale, a head."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(1, D, 2, stride=2)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
        self.pos_embed = nn.Parameter(torch.zeros(1, TOKENS + 1, D))
        self.prompts = nn.Parameter(torch.zeros(3, 2, D))
        self.attention = nn.MultiheadAttention(D, 2, batch_first=True, add_bias_kv=True)
        self.norm = nn.LayerNorm((TOKENS + 1, D))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(TOKENS + 1, 2))
        self.gamma = nn.Parameter(torch.zeros(D, 1, 1))
        self.head = nn.Linear(D, 3)
        generator = stream(0, "tiny vit")
        for parameter in self.parameters():  # unequal norms along every dimension
            scale = torch.rand(parameter.shape, generator=generator) * 3 + 0.05
            parameter.data.normal_(generator=generator).mul_(scale)

    def forward(self, images):
        x = (self.patch(images) * self.gamma).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        x = self.norm(x + self.relative_position_bias_table.mean(1, keepdim=True))
        for prompt in self.prompts:
            tokens = torch.cat([x, prompt.expand(len(x), -1, -1)], 1)
            x = x + self.attention(tokens, tokens, tokens, need_weights=False)[0][:, : TOKENS + 1]
        return self.head(x[:, 0])


def vit_risk(**options):
    images = torch.randn(9, 1, 4, 4, generator=stream(0, "tiny vit/images"))
    return ModelRisk(TinyVit(), (images, torch.arange(9) % 3), **options)


# The axes over which a filter's norm runs, and how many filters there are, written out by hand.
WITHIN = {
    "patch.weight": ((1, 2, 3), D),
    "cls_token": ((2,), 1),
    "pos_embed": ((2,), TOKENS + 1),
    "prompts": ((2,), 6),
    "attention.in_proj_weight": ((1,), 3 * D),
    "attention.out_proj.weight": ((1,), D),
    "attention.bias_k": ((2,), 1),
    "attention.bias_v": ((2,), 1),
    "relative_position_bias_table": ((0,), 2),
    "head.weight": ((1,), 3),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_filter_of_an_attention_network_has_the_norm_of_its_weights(dtype):
    risk = vit_risk(dtype=dtype)
    axes = random_directions(risk, num=2, seed=0, pair=0)
    weights = risk.layout.named(risk.theta)
    for direction in axes:
        for name, part in risk.layout.named(direction).items():
            if name not in WITHIN:
                assert not part.any(), name
                continue
            axis, num = WITHIN[name]
            norms = [t.double().square().sum(axis).sqrt().flatten() for t in (part, weights[name])]
            torch.testing.assert_close(norms[0], norms[1], rtol=1e-5, atol=0)
            assert len(norms[0]) == num
    named = [risk.layout.named(d) for d in axes]
    for name, (axis, _) in WITHIN.items():  # orthogonal filter by filter
        one, other = (d[name].double() for d in named)
        cosines = (one * other).sum(axis) / (one.square().sum(axis) * other.square().sum(axis)).sqrt()
        assert cosines.abs().max() < 1e-5, name


def test_a_prompt_tensor_is_rescaled_per_token_not_per_layer():
    """Either rule gives each layer of prompts its norm; only unequal tokens tell them apart."""
    risk = vit_risk()
    weights = risk.layout.named(risk.theta)["prompts"]
    ours = risk.layout.named(random_directions(risk, num=1, seed=0, pair=0)[0])["prompts"]
    draw = torch.randn(weights.shape, generator=stream(0, "prompts"))
    per_layer = draw * (weights.flatten(1).norm(dim=1) / draw.flatten(1).norm(dim=1))[:, None, None]
    for direction, is_per_token in ((ours, True), (per_layer, False)):
        torch.testing.assert_close(direction.flatten(1).norm(dim=1), weights.flatten(1).norm(dim=1))
        worst = (direction.norm(dim=2) / weights.norm(dim=2) - 1).abs().max()
        assert (worst < 1e-5) == is_per_token


@pytest.mark.parametrize(
    ("module", "name", "dims"),
    [
        (nn.Conv1d(2, 3, 1), "weight", 0),
        (nn.Conv2d(3, 3, 1, groups=3), "weight", 0),
        (nn.ConvTranspose2d(4, 6, 3), "weight", 1),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), "weight", (0, 1)),
        (nn.Bilinear(2, 3, 4), "weight", 0),
        (nn.Embedding(5, 3), "weight", 0),
        (nn.LSTM(3, 4), "weight_hh_l0", 0),
        (nn.Linear(1, 4), "weight", 0),
        (nn.Linear(1, 4), "bias", 0),
        (NormedLinear(6, 3), "weight", 1),
        (nn.LayerNorm((2, 3)), "weight", ()),
        (nn.LayerNorm((2, 3)), "bias", ()),
        (nn.RMSNorm((2, 3)), "weight", ()),
        (nn.ParameterDict({"layer_scale": torch.ones(3, 1, 1)}), "layer_scale", ()),
        (nn.ParameterDict({"tokens": torch.ones(3, 5)}), "tokens", 0),
        (nn.ParameterDict({"prompts": torch.ones(2, 3, 4, 5)}), "prompts", (0, 1, 2)),
        (nn.ParameterDict({"weight": torch.ones(2, 3, 4, 5)}), "weight", 0),
        (nn.ParameterDict({"weight": torch.ones(2, 3, 1, 1)}), "weight", 0),
        (parametrizations.weight_norm(nn.Conv2d(2, 3, 3)), "parametrizations.weight.original0", ()),
        (parametrizations.weight_norm(nn.Conv2d(2, 3, 3)), "parametrizations.weight.original1", 0),
        (parametrizations.spectral_norm(nn.Linear(3, 4)), "parametrizations.weight.original", 0),
        (nn.Sequential(parametrizations.weight_norm(NormedLinear(6, 3))), "0.parametrizations.weight.original1", 1),
    ],
)
def test_the_rule_by_owner_and_shape(module, name, dims):
    assert filter_dims_of(module)[name] == dims
