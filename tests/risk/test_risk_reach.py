"""What a model's output, graph and data really are, before anything is believed of them."""

import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from landscape import ModelRisk, measure_spectrum
from landscape.errors import LandscapeError
from landscape.spectrum import SpectrumOptions

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0] * 12 + [1] * 8 + [2] * 4)
QUICK = SpectrumOptions(num_probes=1, num_steps=2, context=False, num_bootstrap=0)


class Two(nn.Module):
    """A backbone and a head; what is asked of them is passed in."""

    def __init__(self, forward=None, width=8):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.b, self.h = nn.Sequential(nn.Linear(6, width), nn.Tanh()), nn.Linear(width, 3)
        self.double()
        self._how = forward or (lambda m, x: m.h(m.b(x)))

    def forward(self, x):
        return self._how(self, x)


def losses_of(how, **options):
    risk = ModelRisk(Two(how), (X, Y), **options)
    return risk.losses(risk.theta)


@pytest.mark.parametrize(
    "how",
    [
        lambda m, x: (m.b(x), m.h(m.b(x))),
        lambda m, x: (m.h(m.b(x)), m.b(x)),
        lambda m, x: {"features": m.b(x), "logits": m.h(m.b(x))},
        lambda m, x: {"features": m.b(x), "scores": m.h(m.b(x))},
        lambda m, x: [m.h(m.b(x))],
        lambda m, x: (m.h(m.b(x)), None),
    ],
    ids=["features first", "logits first", "by name", "by width", "alone", "with none"],
)
def test_the_logits_are_found_among_outputs(how):
    torch.testing.assert_close(losses_of(how), losses_of(None), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda m, x: [m.h(m.b(x)), m.h(m.b(x)) + 1], r"0: tensor \(2, 3\), 1: tensor \(2, 3\)"),
        (lambda m, x: {"a": m.b(x), "b": m.b(x)}, r"'a': tensor \(2, 8\), 'b': tensor \(2, 8\)"),
    ],
    ids=["experts", "features only"],
)
def test_outputs_that_do_not_fit_are_listed(how, words):
    with pytest.raises(LandscapeError, match=words):
        ModelRisk(Two(how), (X, Y))


def hidden_by_no_grad(m, x):
    with torch.no_grad():
        hidden = m.b(x)
    return m.h(hidden)


CUTS = {
    "no_grad": hidden_by_no_grad,
    "detach": lambda m, x: m.h(m.b(x).detach()),
    "numpy": lambda m, x: m.h(torch.as_tensor(m.b(x).detach().numpy())),
    "data": lambda m, x: m.h(torch.tanh(nn.functional.linear(x, m.b[0].weight.data, m.b[0].bias))),
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_graph_is_refused_by_the_names_that_it_hides(cut):
    risk = ModelRisk(Two(CUTS[cut]), (X, Y))
    torch.testing.assert_close(risk.losses(risk.theta), losses_of(None), rtol=1e-12, atol=0)  # losses are right
    with pytest.raises(LandscapeError, match=r"the graph from the loss to 'b\.0\.weight'.* is cut"):
        measure_spectrum(risk, "all", options=QUICK)
    head = ModelRisk(Two(CUTS[cut]), (X, Y), params="head")
    assert np.isfinite(measure_spectrum(head, "all", options=QUICK).lambda_max).all()


def test_weights_that_the_loss_does_not_depend_on_are_named(caplog):
    model = Two()
    model.spare = nn.Linear(3, 2).double()
    risk = ModelRisk(model, (X, Y))
    assert risk.attributes["unused_parameters"] == "spare.weight, spare.bias"
    assert "'spare.weight'" in caplog.text
    assert "unused_parameters" not in ModelRisk(Two(), (X, Y)).attributes


def test_a_part_that_only_some_examples_reach_is_reached():
    def routed(m, x):
        gate = (x[:, :1] > 1.0).double()  # few examples
        return m.h(m.b(x)) + gate * m.late(x)

    model = Two(routed)
    model.late = nn.Linear(6, 3).double()
    assert "unused_parameters" not in ModelRisk(model, (X, Y)).attributes


def keeps_its_activations(m, x):
    m.kept = {"hidden": [m.b(x)]}
    return m.h(m.kept["hidden"][0])


def test_what_cannot_be_copied_is_no_obstacle():
    model = Two(keeps_its_activations)
    model(X)  # leaves a graph behind
    model.lock, model.generator = threading.Lock(), (n for n in range(3))
    risk = ModelRisk(model, (X, Y))
    torch.testing.assert_close(risk.losses(risk.theta), losses_of(None), rtol=1e-12, atol=0)
    assert model.kept["hidden"][0].requires_grad  # the caller's is as it was


@pytest.mark.parametrize("ignored", [-1, -100, 255])
def test_labels_to_ignore_are_called_that(ignored):
    labels = torch.where(torch.arange(24) % 7 == 0, ignored, Y)
    with pytest.raises(LandscapeError, match=rf"4 labels are {ignored}, as for ignored .* leave these examples out"):
        ModelRisk(Two(), (X, labels))


def test_labels_come_as_lists_and_columns():
    plain = losses_of(None)
    for labels in (Y.tolist(), Y[:, None], Y.numpy()[:, None]):
        risk = ModelRisk(Two(), (X, labels))
        torch.testing.assert_close(risk.losses(risk.theta), plain, rtol=0, atol=0)
    with pytest.raises(LandscapeError, match=r"expected integer labels .* got str: number the classes"):
        ModelRisk(Two(), (X, ["cat"] * 24))


def test_counts_of_drawn_examples_are_said_to_be_such():
    sampler = WeightedRandomSampler(torch.ones(24), 24, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(X, Y)
    with pytest.warns(UserWarning, match="class counts are those of the examples .* WeightedRandomSampler draws them"):
        ModelRisk(Two(), DataLoader(data, batch_size=8, sampler=sampler), loss="balanced-softmax")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in ({}, {"shuffle": True}):
            assert ModelRisk(Two(), DataLoader(data, batch_size=8, **options)).train_counts == (12, 8, 4)


def test_batch_norm_without_statistics_is_one_line():
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Tanh(), nn.Linear(8, 3)
    ).double()
    with pytest.raises(LandscapeError, match="BatchNorm '1' keeps no running statistics; batchnorm='batch'"):
        ModelRisk(model, (X, Y))


def test_default_lanes_leave_out_what_has_no_examples(caplog):
    some = Y != 2
    risk = ModelRisk(Two(), (X[some], Y[some]), groups={"head": [0], "tail": [1, 2]})
    found = measure_spectrum(risk, options=QUICK)
    assert found.lane.values.tolist() == ["0", "1", "head", "tail", "all"]
    assert "classes without examples in this split are left out: 2" in caplog.text
    with pytest.raises(LandscapeError, match="lane '2' has no examples"):
        measure_spectrum(risk, [2], options=QUICK)
