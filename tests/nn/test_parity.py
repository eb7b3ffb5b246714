"""Values and gradients equal to torch.nn's over the whole grid of options and forms of input."""

import pytest
import torch
from cases import (
    ENGINES,
    EVERY_ENGINE,
    FORMS,
    OPTIONS,
    Case,
    distance,
    grid,
    make_pair,
    values_and_gradients,
)
from torch import nn

import cello

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

SINGLE_EPS = torch.finfo(torch.float32).eps

EXACT = grid(
    kind=tuple(OPTIONS),
    num_layers=(1, 2, 3),
    bidirectional=(False, True),
    bias=(True, False),
    batch_first=(False, True),
    form=FORMS,
    has_state=(True, False),
)
SINGLE = grid(
    kind=tuple(OPTIONS),
    num_layers=(1, 2),
    bidirectional=(False, True),
    form=FORMS,
    steps=(24,),
    batch_size=(5,),
    width=(8,),
)
LONG = grid(  # lengths that repeat over many steps, where float32 LSTMs leave torch's packed kernel
    kind=("LSTM", "LSTM-proj", "GRU"),
    bidirectional=(False, True),
    form=("packed", "unsorted"),
    steps=(80,),
    batch_size=(4,),
    width=(32,),
)


@pytest.mark.parametrize("engine", EVERY_ENGINE)
@pytest.mark.parametrize("case", EXACT, ids=str)
def test_float64_equals_torch(case, engine):
    theirs, ours = case.make(nn), case.make(cello.nn)
    expected = values_and_gradients(case, theirs, case.inputs())
    with cello.engine(engine):
        got = values_and_gradients(case, ours, case.inputs())
    assert got.keys() == expected.keys()
    for name, reference in expected.items():
        assert got[name].shape == reference.shape, name
        assert distance(got[name], reference) <= 1e-12, name


@pytest.mark.parametrize("engine", EVERY_ENGINE)
@pytest.mark.parametrize("case", SINGLE + LONG, ids=lambda c: f"{c}-T={c.steps}")
def test_float32_is_as_accurate_as_torch(case, engine):
    exact = case.make(nn, torch.float32).double()
    inputs = case.inputs(torch.float32)
    doubles = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    truth = values_and_gradients(case, exact, doubles)
    theirs = values_and_gradients(case, case.make(nn, torch.float32), inputs)
    with cello.engine(engine):
        ours = values_and_gradients(case, case.make(cello.nn, torch.float32), inputs)
    for name, reference in truth.items():
        allowed = 2 * max(distance(theirs[name], reference), 2 * SINGLE_EPS)
        assert distance(ours[name], reference) <= allowed, name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", OPTIONS)
def test_layout_of_results_equals_torch(kind, bidirectional, form):
    for batch_first in (False, True):
        case = Case(kind, 2, bidirectional, batch_first=batch_first, form=form)
        ours, theirs = (case.call(case.make(n), case.inputs()) for n in (cello.nn, nn))
        for name, expected in theirs.items():
            if expected.numel():
                assert ours[name].stride() == expected.stride(), name
            assert ours[name].dtype == expected.dtype


@pytest.mark.parametrize("engine", [None, "vendor", "reference"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", OPTIONS)
def test_batch_of_size_zero(kind, bidirectional, batch_first, engine):
    case = Case(kind, 2, bidirectional, batch_first=batch_first, batch_size=0)
    expected = values_and_gradients(case, case.make(nn), case.inputs())
    with cello.engine(engine):
        got = values_and_gradients(case, case.make(cello.nn), case.inputs())
    for name, reference in expected.items():
        assert torch.equal(got[name], reference), name


@pytest.mark.parametrize("engine", EVERY_ENGINE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", OPTIONS)
def test_dropout_draws_the_same_masks(kind, bidirectional, form, dtype, engine):
    case = Case(kind, 3, bidirectional, form=form, batch_first=True)
    results = []
    for namespace in (nn, cello.nn):
        layer = case.make(namespace, dtype)
        layer.dropout = 0.4
        torch.manual_seed(5)
        with cello.engine(engine):
            results.append(values_and_gradients(case, layer, case.inputs(dtype)))
        results[-1]["next random number"] = torch.rand(1)
    expected, got = results
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    for name, reference in expected.items():
        assert distance(got[name], reference) <= tolerance, name


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", OPTIONS)
def test_half_precision_is_as_accurate_as_torch(kind, form, dtype, engine):
    case = Case(kind, 2, True, form=form, steps=8, width=8)
    inputs = case.inputs(dtype)
    doubles = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    truth = values_and_gradients(case, case.make(nn, dtype).double(), doubles)
    theirs = values_and_gradients(case, case.make(nn, dtype), inputs)
    with cello.engine(engine):
        ours = values_and_gradients(case, case.make(cello.nn, dtype), inputs)
    for name, reference in truth.items():
        assert ours[name].dtype == theirs[name].dtype, name
        allowed = 2 * max(distance(theirs[name], reference), torch.finfo(dtype).eps)
        assert distance(ours[name], reference) <= allowed, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", OPTIONS)
def test_autocast_equals_torch(kind, form, dtype):
    case = Case(kind, 2, True, form=form, steps=8, width=8)
    inputs = case.inputs(torch.float32)
    with torch.autocast("cpu", dtype):
        ours = values_and_gradients(case, case.make(cello.nn, torch.float32), inputs)
        try:
            theirs = values_and_gradients(case, case.make(nn, torch.float32), inputs)
        except RuntimeError:  # torch has no such kernel on this processor
            assert ours["output"].dtype == dtype
            return
    truth = values_and_gradients(case, case.make(nn, torch.float32), inputs)
    for name, reference in truth.items():
        assert ours[name].dtype == theirs[name].dtype, name
        if kind == "RNN-relu" and name.startswith("gradient"):
            continue  # rounding takes a unit to the other side of the kink
        allowed = 2 * max(distance(theirs[name], reference), torch.finfo(dtype).eps)
        assert distance(ours[name], reference) <= allowed, name


@pytest.mark.parametrize("engine", EVERY_ENGINE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("form", ["padded", "unsorted"])
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_second_derivatives_equal_torch(kind, form, dtype, engine):
    """float32 of vendor runs through oneDNN's kernel, whose gradient is differentiable as well."""
    case = Case(kind, 1, True, form=form)
    gradients = []
    for namespace in (nn, cello.nn):
        layer, leaves = case.make(namespace, dtype), case.inputs(dtype)
        with cello.engine(engine if namespace is cello.nn else None):
            results = case.call(layer, leaves).values()
        loss = sum(r.pow(2).sum() for r in results if r.requires_grad)
        (first,) = torch.autograd.grad(loss, leaves["input"], create_graph=True)
        variables = [leaves["input"], *layer.parameters()]
        gradients.append(torch.autograd.grad(first.pow(2).sum(), variables))
    for expected, got in zip(*gradients, strict=True):
        assert distance(got, expected) <= (1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_complex_layers_equal_torch(name, form, engine):
    case = Case(name, 2, True, form=form, has_state=False)
    x = torch.complex(case.inputs()["input"], case.inputs()["input"].flip(0)).detach()
    theirs = case.call(case.make(nn, torch.complex128), {"input": x})
    with cello.engine(engine):
        ours = case.call(case.make(cello.nn, torch.complex128), {"input": x})
    for result in ("output", "h_n"):
        assert ours[result].is_complex()
        difference = (ours[result] - theirs[result]).abs().max()
        assert difference <= 1e-12 * theirs[result].abs().max(), result


@pytest.mark.parametrize("engine", EVERY_ENGINE)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_evaluation_mode_differentiates_too(name, train, engine):
    ours, theirs = make_pair(name, 3, 4, 2, dropout=0.5, dtype=torch.float64)
    gradients = []
    for layer in (ours.train(train), theirs.train(train)):
        torch.manual_seed(3)
        with cello.engine(engine if layer is ours else None):
            layer(torch.ones(4, 2, 3, dtype=torch.float64))[0].sum().backward()
        gradients.append(layer.weight_hh_l0.grad)
    assert distance(*gradients) <= 1e-12
