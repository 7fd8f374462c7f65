"""The flat vector and the tensors it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from landscape.errors import LandscapeError
from landscape.layout import ParameterLayout, choose_parameters

SHAPES = {"conv.weight": (2, 3, 1, 1), "scale": (), "fc.weight": (4, 2), "fc.bias": (4,)}


def tensors():
    total = torch.arange(19.0)
    parts = total.split([6, 1, 8, 4])
    return {name: part.view(shape) for (name, shape), part in zip(SHAPES.items(), parts)}


def test_round_trip_in_order():
    layout = ParameterLayout.of(tensors(), filter_dims={"fc.weight": 1})
    assert layout.num_parameters == 19
    assert layout.sizes == [6, 1, 8, 4]
    assert layout.names == tuple(SHAPES)
    assert layout.filter_dims == (0, 0, 1, 0)
    flat = layout.flatten(list(tensors().values()))
    assert torch.equal(flat, torch.arange(19.0))
    named = layout.named(flat)
    assert all(torch.equal(named[name], tensor) for name, tensor in tensors().items())


def test_views_share_memory_and_carry_gradients():
    layout = ParameterLayout.of(tensors())
    flat = torch.zeros(19, requires_grad=True)
    parts = layout.unflatten(flat)
    assert parts[2].data_ptr() == flat.data_ptr() + 7 * 4
    (3 * parts[3].sum() + parts[1]).backward()
    assert flat.grad.tolist() == [0] * 6 + [1] + [0] * 8 + [3] * 4


def test_flattening_takes_strided_tensors_in_logical_order():
    layout = ParameterLayout.of({"w": torch.zeros(2, 3)})
    transposed = torch.arange(6.0).view(3, 2).T
    assert layout.flatten([transposed]).tolist() == [0, 2, 4, 1, 3, 5]


def test_a_vector_of_another_length_is_not_accepted():
    with pytest.raises(RuntimeError, match="split_with_sizes"):
        ParameterLayout.of(tensors()).unflatten(torch.zeros(18))


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("all", list(SHAPES)),
        ("head", ["fc.weight", "fc.bias"]),
        ("backbone", ["conv.weight", "scale"]),
        (r"\.weight$", ["conv.weight", "fc.weight"]),
        ("conv|scale", ["conv.weight", "scale"]),
    ],
)
def test_choices(choice, names):
    assert list(choose_parameters(tensors(), choice, head_name="fc")) == names


PROMPTED = ["cls_token", "prompts", "blocks.0.weight", "blocks.1.weight", "prompt_learner.weight", "head.weight"]


@pytest.mark.parametrize(
    ("choice", "numbers"),
    [
        ("prompts", [1]),
        ("head", [5]),
        ("backbone", [0, 2, 3, 4]),
        ("prompts+head", [1, 5]),
        ("head+prompts", [1, 5]),
        ("head+head", [5]),
        ("backbone+head+prompts", [0, 1, 2, 3, 4, 5]),
        ("blocks.1+head", [3, 5]),
        ("prompts+blocks.1+head", [1, 3, 5]),
        (r"head+blocks\.\d+\.w", [2, 3, 5]),  # an expression may have a plus of its own
        (r"blocks\.\d+\.w", [2, 3]),
        ("hea+d", [5]),
        ("head+", [5]),  # nothing to join: an expression
        ("trainable+prompts", [1, 5]),
    ],
)
def test_unions_of_choices(choice, numbers):
    """In the model's order, whatever theirs."""
    named = {name: torch.zeros(1, requires_grad=name == "head.weight") for name in PROMPTED}
    chosen = choose_parameters(named, choice, head_name="head")
    assert list(chosen) == [PROMPTED[number] for number in numbers]
    assert all(chosen[name] is named[name] for name in chosen)


@pytest.mark.parametrize("name", ["prompts", "Prompt_Tokens", "enc.prompt_embeddings", "deep_prompt_embeddings"])
def test_prompts_of_released_codes_are_prompts(name):
    named = {name: torch.zeros(1), "prompt_proj.weight": torch.zeros(1), "head.weight": torch.zeros(1)}
    assert list(choose_parameters(named, "prompts", head_name="head")) == [name]


def test_a_union_that_cannot_be_is_named_whole():
    with pytest.raises(LandscapeError, match=r"--params prompts\+head: the model has no prompts"):
        choose_parameters(tensors(), "prompts+head", head_name="fc")
    with pytest.raises(LandscapeError, match="'nothing' matches none of the 4 parameters"):
        choose_parameters(tensors(), "head+nothing", head_name="fc")


def test_a_prefix_is_not_the_head():
    """A layer called fc2 is not part of a head called fc."""
    named = {"fc.weight": torch.zeros(1), "fc2.weight": torch.zeros(1)}
    assert list(choose_parameters(named, "head", head_name="fc")) == ["fc.weight"]


def test_a_model_that_is_its_own_classifier():
    named = dict(nn.Linear(2, 3).named_parameters())
    assert list(choose_parameters(named, "head", head_name="")) == ["weight", "bias"]
    with pytest.raises(LandscapeError, match="--params backbone: the model has nothing but its head"):
        choose_parameters(named, "backbone", head_name="")


@pytest.mark.parametrize(
    ("choice", "head_name", "message"),
    [
        ("head", None, "--params head needs a model whose last layer is linear"),
        ("backbone", None, "--params backbone needs a model"),
        ("fc.(", "fc", r"'fc.\(' is not a regular expression"),
        ("layer9", "fc", r"'layer9' matches none of the 4 parameters \(conv.weight, scale"),
    ],
)
def test_bad_choices_name_the_offence(choice, head_name, message):
    with pytest.raises(LandscapeError, match=message):
        choose_parameters(tensors(), choice, head_name=head_name)
