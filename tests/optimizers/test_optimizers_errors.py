"""Every error message names the offending value and says what to do."""

from __future__ import annotations

import pytest
import torch
from optimizer_cases import CLASS_COUNTS, SGD_OPTIONS, build, closure_of, criterion, make_batch, make_model, weights

from landscape.errors import LandscapeError
from landscape.optimizers import OPTIMIZERS, build_optimizer

every_method = pytest.mark.parametrize("name", OPTIMIZERS)


@every_method
def test_every_rule_rejects_a_closure_that_averages(name):
    model, (x, y) = make_model(), make_batch()
    with pytest.raises(LandscapeError, match=r'per-example losses of shape \(B,\), got shape \(\).*reduction="none"'):
        build(name, model).step(lambda: criterion(model(x), y).mean(), labels=y)


@every_method
def test_every_rule_rejects_losses_without_a_graph(name):
    model, (x, y) = make_model(), make_batch()
    with pytest.raises(LandscapeError, match="needs no gradient"):
        build(name, model).step(lambda: criterion(model(x), y).detach(), labels=y)


def test_bad_calls_are_named():
    model, (x, y) = make_model(), make_batch()
    closure = closure_of(model, x, y)
    with pytest.raises(LandscapeError, match="imbsam needs the labels"):
        build("imbsam", model).step(closure)
    with pytest.raises(LandscapeError, match=r"one class index per loss, \(12,\), got \(11,\)"):
        build("imbsam", model).step(closure, labels=y[1:])
    with pytest.raises(LandscapeError, match=r"class indices of shape \(B,\), got torch.float64 of shape \(12, 4\)"):
        build("imbsam", model).step(closure, labels=torch.eye(4).double().repeat(3, 1))
    with pytest.raises(LandscapeError, match="got float"):
        build("sam", model).step(lambda: 1.0)
    with pytest.raises(LandscapeError, match="sam: step needs a closure"):
        build("sam", model).step(None)
    with pytest.raises(LandscapeError, match="got epoch 4 of 4"):
        build("sam", model).start_epoch(4, 4)
    with pytest.raises(LandscapeError, match="state of 'sam' into 'gnm'"):
        build("gnm", model).load_state_dict(build("sam", model).state_dict())
    optimizer = build_optimizer("ssesam", model.parameters(), tail_classes=[3])
    with pytest.raises(LandscapeError, match="ssesam changes during training"):
        optimizer.step(closure, labels=y)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("smm", {}, "unknown optimizer 'smm': did you mean 'sam'"),
        ("sam", {"rh": 0.1}, "unknown option of sam 'rh': did you mean 'rho'"),
        ("sam", {"rho": -0.1}, "sam: rho must be a finite number >= 0, got -0.1"),
        ("sam", {"rho": float("nan")}, "got nan"),
        ("sam", {"rho": "big"}, "got 'big'"),
        ("asam", {"eta": -1.0}, "asam: eta .* got -1.0"),
        ("asam", {"variant": "other"}, "asam: variant must be one of official, all-parameters, got 'other'"),
        ("imbsam", {"tail_weight": -2}, "tail_weight .* got -2"),
        ("imbsam", {"tail_classes": []}, "tail_classes is empty"),
        ("imbsam", {"tail_classes": None, "eta": 5}, r"no class has fewer than eta = 5 examples \(the rarest has 5\)"),
        ("imbsam", {"tail_classes": None, "class_counts": None}, "got neither tail_classes nor class_counts"),
        ("ssesam", {"gamma": 1.5}, "gamma must be a finite number >= 0 and <= 1, got 1.5"),
        ("ssesam", {"rho_head": -1}, "rho_head .* got -1"),
        ("ssesam", {"rho_tail": -1}, "rho_tail .* got -1"),
        ("gnm", {"sigma": -1}, "sigma .* got -1"),
        ("gnm", {"clip": -1}, "clip .* got -1"),
        ("gnm", {"decay_every": 0}, "decay_every .* >= 1, got 0"),
        ("gnm", {"schedule": "x"}, "schedule must be one of described, released, got 'x'"),
        ("ccsam", {"flat_ratio": 2.0}, "flat_ratio .* got 2.0"),
        ("ccsam", {"noise_ratio": -1.0}, "noise_ratio .* got -1.0"),
        ("ccsam", {"max_relative_radius": -1.0}, "max_relative_radius .* got -1.0"),
        ("ccsam", {"model": None}, "ccsam needs model, got none"),
        ("ccsam", {"criterion": None}, "ccsam needs criterion, got none"),
        ("ccsam", {"class_counts": None}, "ccsam needs class_counts, got none"),
        ("ccsam", {"perturbation": "both"}, "perturbation must be one of full, dir, mag, got 'both'"),
        ("ccsam", {"norms": "all"}, "norms must be one of per-tensor, joint, got 'all'"),
        ("focal-sam", {"class_counts": None}, "focal-sam needs class_counts, got none"),
        ("focal-sam", {"lam": -1.0}, "lam .* got -1.0"),
        ("focal-sam", {"gamma": -1.0}, "gamma .* got -1.0"),
        ("gnp", {"r": -1.0}, "gnp: r .* got -1.0"),
        ("gnp", {"alpha": -1.0}, "alpha .* got -1.0"),
        ("gnp", {"variant": "x"}, "variant must be one of paper, released, got 'x'"),
        ("lpf", {"gamma": -1.0}, "lpf: gamma .* got -1.0"),
        ("lpf", {"num_parts": 0}, "num_parts .* >= 1, got 0"),
        ("lpf", {"num_parts": 1.5}, "num_parts must be a whole number, got 1.5"),
        ("mp", {"random_times": 0}, "random_times .* >= 1, got 0"),
        ("mp", {"num_layers": 2.5}, "num_layers must be a whole number, got 2.5"),
        ("mp", {"std_weight": -1}, "std_weight .* got -1"),
        ("mp", {"bound": -1}, "bound .* got -1"),
        ("mp", {"distribution": "x"}, "distribution must be one of discrete-beta, .* got 'x'"),
        ("mp", {"layers": "x"}, "layers must be one of last-convs, .* got 'x'"),
        ("perturbed-gd", {"radius": -1}, "radius .* got -1"),
        ("perturbed-gd", {"threshold": -1}, "threshold .* got -1"),
        ("perturbed-gd", {"wait": -1}, "wait .* got -1"),
        ("perturbed-gd", {"wait": 2.5}, "wait must be a whole number, got 2.5"),
        ("perturbed-gd", {"gradient_at": "x"}, "gradient_at must be one of after, before, got 'x'"),
        ("perturbed-gd", {"variant": "x"}, "variant must be one of ball, stochastic, got 'x'"),
        ("sam", {"bn_statistics": "first-pass", "model": None}, "bn_statistics='first-pass' needs the model"),
        ("sam", {"bn_statistics": "never"}, "every-pass or first-pass, got 'never'"),
    ],
)
def test_bad_options_are_named(name, changes, message):
    model = make_model()
    settings = {"model": model, "criterion": criterion, "class_counts": CLASS_COUNTS, "tail_classes": [3], **changes}
    with pytest.raises(LandscapeError, match=message):
        build_optimizer(name, model.parameters(), base_options=SGD_OPTIONS, **settings)


def test_what_only_the_step_can_know_is_named_there():
    model, (x, y) = make_model(), make_batch(2)
    with pytest.raises(LandscapeError, match="lpf needs the labels of the batch"):
        build("lpf", model, num_parts=3).step(closure_of(model, x, y))
    with pytest.raises(LandscapeError, match="cannot cut a batch of 2 examples into 3 parts"):
        build("lpf", model, num_parts=3).step(closure_of(model, x, y), labels=y)
    with pytest.raises(LandscapeError, match=r"mp needs the names of all parameters.*named_parameters\(\)$"):
        build_optimizer("mp", model.parameters()).step(closure_of(model, x, y))
    with pytest.raises(LandscapeError, match="no trainable parameter is meant by layers='convs'"):
        build("mp", model, layers="convs").step(closure_of(model, x, y))


def test_asam_takes_names_from_the_model_or_the_parameters():
    x, y = make_batch()
    results = []
    for named in (False, True):
        model = make_model()
        params = model.named_parameters() if named else model.parameters()
        optimizer = build_optimizer("asam", params, base_options=SGD_OPTIONS, model=None if named else model)
        optimizer.step(closure_of(model, x, y))
        results.append(weights(model))
    assert results[0].equal(results[1])
    model = make_model()
    with pytest.raises(LandscapeError, match="asam needs the names of all parameters"):
        build_optimizer("asam", model.parameters()).step(closure_of(model, x, y))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base": torch.optim.LBFGS}, "base: expected an optimizer that steps on a gradient, got LBFGS"),
        ({"base": "adam"}, "base: expected a class of optimizers such as torch.optim.SGD, got 'adam'"),
        ({"base_options": {"momentun": 0.9}}, "base: SGD does not take these parameters and base_options: .*momentun"),
        ({"base_options": {"lr": -1.0}}, "base: SGD does not take .*Invalid learning rate"),
        ({"model": lambda x: x}, "model: expected a torch.nn.Module, got function"),
        ({"criterion": 3}, r"criterion: expected a callable .* got int"),
        ({"class_counts": [100, 50, -2, 5]}, r"class_counts: expected whole numbers \(K,\), at least 0"),
        ({"class_counts": [100, 50.5, 2, 5]}, "class_counts: expected whole numbers"),
        ({"class_counts": "many"}, "class_counts: expected whole numbers, got 'many'"),
        ({"tail_classes": [4]}, r"tail_classes: classes run from 0 to 3, got \[4\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_an_optimizer_cannot_be_built_from_is_one_line(settings, words):
    model = make_model()
    options = {"model": model, "class_counts": CLASS_COUNTS, "base_options": SGD_OPTIONS, **settings}
    with pytest.raises(LandscapeError, match=words):
        build_optimizer("imbsam", model.parameters(), **options)


def test_options_of_another_rule_are_not_ignored_in_a_group():
    model = make_model()
    groups = [{"params": [model[0].weight], "adaptive": True}, {"params": [model[0].bias]}]
    with pytest.raises(LandscapeError, match="'adaptive' is no option of imbsam nor of SGD, got one for a group"):
        build("imbsam", model, params=groups)


def test_closures_and_labels_are_what_they_are_taken_for():
    model, (x, y) = make_model(), make_batch()
    closure = closure_of(model, x, y)
    optimizer = build("imbsam", model)
    with pytest.raises(LandscapeError, match="step needs a closure that returns per-example losses, got Tensor"):
        optimizer.step(closure().mean(), labels=y)
    with pytest.raises(LandscapeError, match="got none: step\\(closure, labels\\)"):
        optimizer.step(labels=y)
    with pytest.raises(LandscapeError, match="labels run from -1 to 3, class_counts are those of 4 classes"):
        optimizer.step(closure, labels=torch.where(y == 0, -1, y))
    optimizer.step(closure, labels=y.tolist())
    other = make_model(1)
    with pytest.raises(LandscapeError, match="the losses depend on none of the optimizer's parameters"):
        optimizer.step(closure_of(other, x, y), labels=y)

    def differentiated():
        losses = closure()
        losses.sum().backward()
        return losses

    with pytest.raises(
        LandscapeError, match="graph of the closure's losses is gone: return them without calling backward"
    ):
        optimizer.step(differentiated, labels=y)
