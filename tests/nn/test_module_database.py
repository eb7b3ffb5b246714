"""torch's own database of module inputs, run with Cello's classes in the place of torch.nn's."""

import functools
import re
import warnings

import pytest
import torch
from cases import CELLS, LAYERS, assert_same, distance, flatten
from torch import nn

import cello


@functools.cache
def database():
    """The entries of the recurrent classes by name; importing the database takes seconds."""
    frozen = torch.backends.flags_frozen()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they concern packages that torch's other tests need
        from torch.testing._internal.common_modules import module_db
    # That import forbids to set backend flags outside of a `with`; other tests do set them.
    torch.backends.__allow_nonbracketed_mutation_flag = not frozen
    infos = {info.module_cls: info for info in module_db}
    return {name: infos[getattr(nn, name)] for name in LAYERS + CELLS}


def inputs_of(name, dtype, requires_grad, training, **options):
    info = database()[name]
    options |= {"device": "cpu", "dtype": dtype, "requires_grad": requires_grad}
    torch.manual_seed(0)
    return info.module_inputs_func(info, training=training, **options)


def make(namespace, name, given, dtype):
    torch.manual_seed(1)
    arguments = given.constructor_input
    return getattr(namespace, name)(*arguments.args, **(arguments.kwargs | {"dtype": dtype}))


def leaves_of(given):
    arguments = given.forward_input
    tensors = flatten([*arguments.args, *arguments.kwargs.values()])
    return [tensor for tensor in tensors if tensor.requires_grad]


def assert_alike(ours, theirs):
    """In float32 as a whole: inputs of the database reach 9, and single sums of gradients cancel."""
    for a, b in zip(flatten(ours), flatten(theirs), strict=True):
        if a.dtype == torch.float64:
            assert_same(a, b)
        else:
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            assert distance(a, b) <= 5e-6


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_inputs_of_the_database(name, dtype, training):
    options = {"with_packed_sequence": True} if name in ("RNN", "GRU") else {}
    samples = inputs_of(name, dtype, True, training, **options)
    assert len(samples) >= 2
    for given in samples:
        ours = make(cello.nn, name, given, dtype).train(training)
        theirs = make(nn, name, given, dtype).train(training)
        arguments = given.forward_input
        results = []
        for module in (ours, theirs):
            returned = module(*arguments.args, **arguments.kwargs)
            total = sum(tensor.sum() for tensor in flatten(returned))
            variables = [*leaves_of(given), *module.parameters()]
            results.append((returned, torch.autograd.grad(total, variables)))
        assert_alike(*results)
        is_tensors = all(isinstance(a, torch.Tensor) for a in arguments.args[:1])
        if given.reference_fn is not None and is_tensors:
            expected = given.reference_fn(ours, *arguments.args, **arguments.kwargs)
            assert_alike(results[0][0], expected)


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_error_inputs_of_the_database(name):
    info = database()[name]
    samples = info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=False, training=True
    )
    assert len(samples) >= 4
    for sample in samples:
        given = sample.module_error_input
        build = getattr(cello.nn, name)
        with pytest.raises(sample.error_type) as raised:  # noqa: PT012 - which line is the sample's
            module = build(*given.constructor_input.args, **given.constructor_input.kwargs)
            module(*given.forward_input.args, **given.forward_input.kwargs)
        assert re.search(sample.error_regex, str(raised.value))
