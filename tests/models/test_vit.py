"""Vision transformers with and without deep prompts: against plain arithmetic, first weights, what trains, published weights."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from landscape.errors import LandscapeError
from landscape.models import (
    MODELS,
    Dropout,
    NormedLinear,
    build_model,
    find_head,
    load_backbone,
    set_dropout_generator,
)
from landscape.models.vit import DeepPrompts, VisionTransformer, ViTShape
from landscape.optimizers import build_optimizer
from landscape.randomness import stream

SIZES = {"patch_size": 4, "width": 8, "depth": 3, "num_heads": 2}
SHAPE = ViTShape(image_size=8, in_channels=2, **SIZES)
PROMPTED = ["vit-b16-gnm", "vit-b16-vpt"]


def tiny(name, *, head="cosine", num_classes=3, **options):
    """A small network whose weights are all drawn, layer norms and biases too."""
    task = {"num_classes": num_classes, "in_channels": 2, "image_size": 8}
    model = build_model(name, head=head, **task, **SIZES, **options).double().eval()
    generator = stream(0, "vit/weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return model


def images(count=4):
    return torch.randn(count, 2, 8, 8, generator=stream(0, "vit/images"), dtype=torch.float64)


# ---- values -------------------------------------------------------------------------------------------------------


def normed(x, state, name):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6) * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x, state, name):
    return state[f"{name}.weight"] @ x + state[f"{name}.bias"]


def block_by_hand(tokens, state, i):
    """One block on a list of tokens, token by token and head by head."""
    width, heads = SIZES["width"], SIZES["num_heads"]
    size = width // heads
    qkv = [linear(normed(t, state, f"blocks.{i}.norm1"), state, f"blocks.{i}.attn.qkv") for t in tokens]
    out = []
    for t, own in zip(tokens, qkv):
        mixed = []
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            scores = np.array([own[:width][part] @ other[width : 2 * width][part] for other in qkv]) / math.sqrt(size)
            shares = np.exp(scores - scores.max())
            mixed.append(sum(s * other[2 * width :][part] for s, other in zip(shares / shares.sum(), qkv)))
        x = t + linear(np.concatenate(mixed), state, f"blocks.{i}.attn.proj")
        hidden = linear(normed(x, state, f"blocks.{i}.norm2"), state, f"blocks.{i}.mlp.fc1")
        hidden = np.array([u * 0.5 * (1 + math.erf(u / math.sqrt(2))) for u in hidden])
        out.append(x + linear(hidden, state, f"blocks.{i}.mlp.fc2"))
    return out


def features_by_hand(model, image, readout):
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    kernel, p = state["patch_embed.proj.weight"], SIZES["patch_size"]
    tokens = [state["cls_token"][0, 0]]
    for row in range(0, 8, p):
        for column in range(0, 8, p):
            patch = image.numpy()[:, row : row + p, column : column + p]
            tokens.append(np.array([(patch * k).sum() for k in kernel]) + state["patch_embed.proj.bias"])
    tokens = [t + position for t, position in zip(tokens, state["pos_embed"][0])]
    num, prompts = len(tokens), state.get("prompts")
    for i in range(SIZES["depth"]):
        own = [] if prompts is None else list(prompts[i])
        returned = block_by_hand(tokens + own, state, i)
        tokens, last = returned[:num], returned[num:]
    features = normed(tokens[0], state, "norm")
    return features if readout == "cls" else (features + np.mean(last, 0)) / 2


@pytest.mark.parametrize(
    ("name", "readout"), [("vit-b16", "cls"), ("vit-b16-vpt", "cls"), ("vit-b16-gnm", "cls+prompts")]
)
def test_a_vision_transformer_is_what_its_formula_says(name, readout):
    """Prompts stand behind the patches by hand: their place is no part of the function."""
    model = tiny(name)
    expected = []
    weight = model.head.weight.detach().numpy()
    for image in images(2):
        x = features_by_hand(model, image, readout)
        expected.append([x @ w / np.linalg.norm(x) / np.linalg.norm(w) for w in weight.T])
    np.testing.assert_allclose(model(images(2)).detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_the_blocks_are_those_of_torch():
    """A second library: torch's own encoder layer, given the same weights."""
    block = tiny("vit-b16").blocks[1]
    peer = nn.TransformerEncoderLayer(
        8, 2, 32, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True, dtype=torch.float64
    )
    names = {
        "attn.qkv.": "self_attn.in_proj_",
        "attn.proj": "self_attn.out_proj",
        "mlp.fc1": "linear1",
        "mlp.fc2": "linear2",
    }
    state = {}
    for name, tensor in block.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[name] = tensor
    peer.load_state_dict(state)
    x = torch.randn(2, 5, 8, generator=stream(0, "vit/tokens"), dtype=torch.float64)
    torch.testing.assert_close(block(x), peer.train()(x), rtol=1e-10, atol=1e-11)


def placed(placement, readout):
    model = VisionTransformer(nn.Linear(8, 3), SHAPE, prompts=DeepPrompts(4, placement, readout, "gnm-pt")).double()
    model.draw_weights(stream(0, "vit/placed"))
    return model.eval()


@pytest.mark.parametrize("readout", ["cls", "cls+prompts"])
def test_the_place_of_the_prompts_changes_nothing_and_the_readout_does(readout):
    first, second = (placed(placement, readout)(images()) for placement in ("append", "insert"))
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-14)
    other = placed("append", "cls" if readout != "cls" else "cls+prompts")(images())
    assert (first - other).abs().max() > 1e-3


def test_images_of_another_size_and_unknown_plans_are_refused():
    with pytest.raises(LandscapeError, match="expected images of 8 x 8 pixels, got 4 x 12: resize them"):
        tiny("vit-b16")(torch.zeros(1, 2, 4, 12, dtype=torch.float64))
    with pytest.raises(LandscapeError, match="unknown readout 'mean'"):
        DeepPrompts(4, "append", "mean", "vpt")


# ---- sizes, first weights, what trains ------------------------------------------------------------------------------


def full(name, head=NormedLinear):
    with torch.device("meta"):
        return MODELS[name](lambda features: head(features, 100), 3, 224)


@pytest.mark.parametrize(("name", "num_prompts"), [("vit-b16-gnm", 10), ("vit-b16-vpt", 5)])
def test_only_prompts_and_classifier_train(name, num_prompts):
    model = full(name)
    trained = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"prompts": (12, num_prompts, 768), "head.weight": (768, 100)}
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert total == 12 * num_prompts * 768 + 76_800  # 168,960 in GNM-PT
    everything = build_model(name, num_classes=3, in_channels=2, image_size=8, train_backbone=True, **SIZES)
    assert all(p.requires_grad for p in everything.parameters())
    assert find_head(everything) == ("head", everything.head)


def drawn(name, head="linear", **sizes):
    sizes = {"patch_size": 4, "width": 64, "depth": 2, "num_heads": 2} | sizes
    return build_model(name, num_classes=50, in_channels=3, image_size=16, head=head, **sizes)


def spread(tensor):
    return float(tensor.detach().std())


@pytest.mark.parametrize("name", ["vit-b16", *PROMPTED])
def test_first_weights_of_the_backbone_are_timms(name):
    model = drawn(name)
    # truncated at 2, far beyond 100 standard deviations; 5 standard errors
    for tensor in (model.blocks[1].mlp.fc1.weight, model.blocks[0].attn.qkv.weight):
        assert spread(tensor) == pytest.approx(0.02, rel=5 / (2 * tensor.numel()) ** 0.5)
    assert not model.blocks[0].attn.proj.bias.any()
    assert spread(model.pos_embed) == pytest.approx(0.02, rel=0.15)
    assert float(model.cls_token.detach().abs().max()) < 1e-5
    assert 0.13 < float(model.patch_embed.proj.weight.detach().abs().max()) <= 48**-0.5
    assert (model.norm.weight == 1).all()


def test_first_weights_of_prompts_and_classifiers():
    gnm, vpt = drawn("vit-b16-gnm", num_prompts=20), drawn("vit-b16-vpt", num_prompts=20)
    assert spread(gnm.prompts) == pytest.approx(0.02, rel=0.1)
    bound = math.sqrt(6 / (3 * 4**2 + 64))
    assert 0.99 * bound < float(vpt.prompts.detach().abs().max()) <= bound
    assert spread(vpt.prompts) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert spread(gnm.head.weight) == pytest.approx(0.02, rel=0.1)
    assert 0.1 < float(gnm.head.bias.detach().abs().max()) <= 1 / 8
    assert spread(vpt.head.weight) == pytest.approx(math.sqrt(2 / 50), rel=0.1)
    torch.testing.assert_close(vpt.head.bias.detach(), torch.full((50,), -math.log(0.99 / 0.01)))
    plain = drawn("vit-b16")
    assert spread(plain.head.weight) == pytest.approx(0.02, rel=0.1)
    assert not plain.head.bias.any()
    norms = torch.linalg.vector_norm(drawn("vit-b16-gnm", "cosine").head.weight.detach(), dim=0)
    assert float(norms.mean()) == pytest.approx(0.02 * 8, rel=0.05)  # short columns, as released
    norms = torch.linalg.vector_norm(drawn("vit-b16", "cosine").head.weight.detach(), dim=0)
    torch.testing.assert_close(norms, torch.ones(50))


@pytest.mark.parametrize("optimizer", ["sgd", "sam", "gnm"])
@pytest.mark.parametrize("name", PROMPTED)
def test_a_step_moves_prompts_and_classifier_and_nothing_else(name, optimizer):
    model = tiny(name).train()
    before = copy.deepcopy(model.state_dict())
    labels = torch.tensor([0, 1, 2, 2])
    options = {"base_options": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}}
    stepper = build_optimizer(optimizer, model.parameters(), **options)
    stepper.start_epoch(1, 70)
    stepper.step(lambda: nn.functional.cross_entropy(model(images()), labels, reduction="none"), labels)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"prompts", "head.weight"}
    assert all(p.grad is None for p in model.parameters())
    assert all((before["prompts"][i] != model.prompts[i]).any() for i in range(3))  # fresh ones in every block


def kept_bytes(model, batch):
    sizes = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.update({t.data_ptr(): t.nbytes}) or t, lambda t: t):
        loss = model(batch).square().sum()
    chosen = [p for p in model.parameters() if p.requires_grad]
    return sum(sizes.values()), torch.autograd.grad(loss, chosen)


@pytest.mark.parametrize("name", ["vit-b16", *PROMPTED])
def test_blocks_computed_again_give_the_same_gradients_from_less_memory(name):
    keeping, recomputing = (tiny(name, recompute=recompute).train() for recompute in (False, True))
    (much, first), (little, second) = (kept_bytes(model, images()) for model in (keeping, recomputing))
    assert little < much / 2
    assert all(torch.equal(a, b) for a, b in zip(first, second))


# ---- dropout --------------------------------------------------------------------------------------------------------


def test_dropout_scales_what_it_keeps_and_repeats_with_its_generator():
    layer = Dropout(0.25)
    ones = torch.ones(4000, dtype=torch.float64)
    with pytest.raises(LandscapeError, match="dropout draws masks in training mode: assign its generator"):
        layer(ones)
    layer.generator = stream(0, "dropout")
    first = layer(ones)
    assert set(first.tolist()) == {0.0, 1 / 0.75}
    assert float(first.mean()) == pytest.approx(1, abs=5 * math.sqrt(0.25 / 0.75 / 4000))
    assert not torch.equal(layer(ones), first)
    layer.generator = stream(0, "dropout")
    assert torch.equal(layer(ones), first)
    assert layer.eval()(ones) is ones
    assert "p=0.25" in repr(layer)


def test_masks_come_from_the_model_and_not_from_the_global_generator():
    state = torch.get_rng_state()
    first, second = tiny("vit-b16-gnm", head_dropout=0.5).train(), tiny("vit-b16-gnm", head_dropout=0.5).train()
    assert torch.equal(first(images()), second(images()))
    assert not torch.equal(first(images()), first(images()))
    set_dropout_generator(first, stream(3, "epoch"))
    set_dropout_generator(second, stream(3, "epoch"))
    assert torch.equal(first(images()), second(images()))
    assert torch.equal(torch.get_rng_state(), state)
    plain = tiny("vit-b16-vpt").train()
    assert torch.equal(plain(images()), plain(images()))  # VPT's prompts are not dropped by default
    dropped = tiny("vit-b16-vpt", prompt_dropout=0.5).train()
    assert not torch.equal(dropped(images()), dropped(images()))


# ---- published weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROMPTED)
def test_weights_with_any_classifier_load_under_the_prompts(name):
    source = tiny("vit-b16", head="linear", num_classes=21).state_dict()
    older = source | {"pre_logits.fc.weight": torch.ones(8, 8), "pre_logits.fc.bias": torch.ones(8)}
    model = tiny(name)
    prompts, head = model.prompts.detach().clone(), model.head.weight.detach().clone()
    assert set(load_backbone(model, older)) == set(older) - set(model.state_dict()) | {"head.weight"}
    assert torch.equal(model.blocks[2].attn.qkv.weight, source["blocks.2.attn.qkv.weight"])
    assert torch.equal(model.pos_embed, source["pos_embed"])
    assert torch.equal(model.prompts, prompts)
    assert torch.equal(model.head.weight, head)


def test_weights_for_another_image_size_are_refused():
    source = tiny("vit-b16").state_dict()
    model = build_model("vit-b16-vpt", num_classes=3, in_channels=2, image_size=12, **SIZES)
    with pytest.raises(LandscapeError, match=r"of another shape: pos_embed \(1, 5, 8\) instead of \(1, 10, 8\)"):
        load_backbone(model, source)
