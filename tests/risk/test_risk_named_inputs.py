"""Inputs by name, as language models take them, and several inputs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from risk_cases import smooth_mlp
from test_risk_coverage import TOKENS, Language, X, Y, built, dense_hessians, require_dense_products
from torch import nn

from landscape.errors import LandscapeError
from landscape.risk import ModelRisk

MASK = (torch.arange(12) < 12 - torch.arange(16)[:, None] % 5).long()
NAMED = {"input_ids": TOKENS, "attention_mask": MASK}
OUTPUTS = {
    "object": lambda logits: SimpleNamespace(logits=logits, hidden=None),
    "dictionary": lambda logits: {"loss": None, "logits": logits},
    "first entry of a dictionary": lambda logits: {"scores": logits, "hidden": logits[:0]},
    "tuple": lambda logits: (logits, None),
    "tensor": lambda logits: logits,
}


@pytest.mark.parametrize("output", list(OUTPUTS))
def test_named_inputs_and_wrapped_logits(output):
    model = built(Language)
    hessians = dense_hessians(model, NAMED)
    risk = ModelRisk(built(lambda: Language(OUTPUTS[output])), (NAMED, Y), chunk_size=3)
    require_dense_products(risk, hessians)
    assert risk.inputs_per_example == 24
    assert torch.isfinite(risk.restricted(torch.arange(8)).losses(risk.theta)[0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: {**NAMED, "labels": Y},
        lambda: {**{name: t.tolist() for name, t in NAMED.items()}, "label": Y.numpy()},
        lambda: [
            {"input_ids": TOKENS[a:b], "attention_mask": MASK[a:b], "labels": Y[a:b]} for a, b in ((0, 9), (9, 16))
        ],
        lambda: [({"input_ids": TOKENS[a:b], "attention_mask": MASK[a:b]}, Y[a:b]) for a, b in ((0, 9), (9, 16))],
    ],
    ids=["labels inside", "lists", "batches with labels inside", "batches"],
)
def test_every_form_of_named_data_gives_the_same_numbers(make):
    model = built(Language)
    expected, risk = ModelRisk(model, (NAMED, Y)), ModelRisk(model, make())
    assert torch.equal(risk.losses(risk.theta), expected.losses(expected.theta))


def test_integer_inputs_without_names():
    model = built(Language)
    hessians = dense_hessians(model, TOKENS)
    require_dense_products(ModelRisk(model, (TOKENS, Y), chunk_size=3), hessians)


def test_a_transform_and_a_calibration_set_may_be_named_too():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = smooth_mlp()

        def forward(self, pixels):
            return self.net(pixels)

    plain = ModelRisk(smooth_mlp(), (X, Y), calibration=X[:8])
    stored = {"pixels": ((X + 1) * 8).round().to(torch.uint8)}
    named = ModelRisk(
        Named(),
        (stored, Y),
        transform=lambda given, dtype: {"pixels": given["pixels"].to(dtype) / 8 - 1},
        calibration={"pixels": stored["pixels"][:8]},
    )
    assert torch.equal(named.losses(named.theta), plain.losses(plain.theta))
    a, b = named.with_batchnorm("recalibrate"), plain.with_batchnorm("recalibrate")
    assert torch.equal(a.losses(a.theta), b.losses(b.theta))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"input_ids": TOKENS}, "labels beside named inputs, got only input_ids: .* add the entry 'labels'"),
        (({"input_ids": TOKENS, "attention_mask": MASK[:9]}, Y), r"same number .* attention_mask \(9, 12\)"),
        (({"input_ids": ["some", "words"]}, Y), "input 'input_ids': expected a tensor .* got list"),
        (({}, Y), "inputs are an empty mapping"),
        (({"input_ids": TOKENS[:9]}, Y), r"labels \(16,\) .* input_ids \(9, 12\)"),
        (({"tokens": TOKENS}, Y), r"does not accept inputs of shape tokens \(1, 12\)"),
    ],
)
def test_bad_named_data_name_the_offence(data, message):
    with pytest.raises(LandscapeError, match=message):
        ModelRisk(built(Language), data)
