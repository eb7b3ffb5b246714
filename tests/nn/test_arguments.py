"""Arguments of other types than the usual ones, and weights that are taken away: as torch's layers do."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import cello

X = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
KINDS = ["RNN", "GRU", "LSTM"]


def pair(kind, *arguments, **options):
    layers = []
    for namespace in (nn, cello.nn):
        torch.manual_seed(0)
        layers.append(getattr(namespace, kind)(*arguments, **options))
    return layers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("given", "means"),
    [
        ({"bidirectional": 1}, {"bidirectional": True}),
        ({"bidirectional": 0}, {"bidirectional": False}),
        ({"bidirectional": np.bool_(True)}, {"bidirectional": True}),
        ({"bidirectional": torch.tensor(True)}, {"bidirectional": True}),
        ({"num_layers": np.int64(2)}, {"num_layers": 2}),
        ({"num_layers": torch.tensor(2)}, {"num_layers": 2}),
        ({"num_layers": 2, "dropout": 1}, {"num_layers": 2, "dropout": 1.0}),
        ({"num_layers": 2, "dropout": np.float32(0.5)}, {"num_layers": 2, "dropout": 0.5}),
    ],
)
def test_what_torch_takes(kind, given, means):
    theirs, ours = pair(
        kind, 3, 4, **given
    )  # the constructor takes them, whatever its calls do then
    assert list(ours.state_dict()) == list(theirs.state_dict())
    usual, _ = pair(kind, 3, 4, **means)
    assert repr(ours) == repr(usual)
    for layer in (ours, usual):
        layer.eval()
    torch.testing.assert_close(ours(X)[0], usual(X)[0])
    assert all(type(getattr(ours, name)) is type(value) for name, value in means.items())
    copied = cello.Recurrent(lambda f: nn.GRUCell(f, 4), 3, **given)
    assert all(getattr(copied, name) == value for name, value in means.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bias": 1}, "bias should be of type bool, got: int"),
        ({"bias": torch.tensor(True)}, "bias should be of type bool, got: Tensor"),
        ({"batch_first": 1}, "batch_first should be of type bool, got: int"),
        ({"batch_first": np.bool_(True)}, "batch_first should be of type bool, got: bool"),
        ({"batch_first": None}, "batch_first should be of type bool, got: NoneType"),
    ],
)
def test_what_torch_refuses(kind, given, message):
    for layer in (getattr(nn, kind), getattr(cello.nn, kind)):
        with pytest.raises(TypeError, match=message):
            layer(3, 4, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_layers": True}, "num_layers should be of type int, got: bool"),
        ({"num_layers": torch.tensor(2.0)}, "num_layers should be of type int, got: Tensor"),
        ({"num_layers": 2.0}, "num_layers should be of type int, got: float"),
        ({"bidirectional": 2}, "bidirectional should be of type bool, got: int"),
        ({"bidirectional": None}, "bidirectional should be of type bool, got: NoneType"),
        ({"proj_size": True}, "proj_size should be of type int, got: bool"),
        ({"proj_size": 1.0}, "proj_size should be of type int, got: float"),
    ],
)
def test_what_torch_takes_and_cannot_run_is_refused(given, message):
    with pytest.raises((TypeError, ValueError)):
        nn.LSTM(3, 4, **given)(X)
    with pytest.raises(TypeError, match=message):
        cello.nn.LSTM(3, 4, **given)


# weights that are taken away and set again

NAME = "weight_hh_l0"


def delete_move_set(layer):
    weight = layer.weight_hh_l0
    del layer.weight_hh_l0
    layer.double()
    layer.weight_hh_l0 = nn.Parameter(weight.double())
    return layer


def delete_set_move(layer):
    weight = layer.weight_hh_l0
    del layer.weight_hh_l0
    layer.weight_hh_l0 = nn.Parameter(weight)
    return layer.double()


def none_move_set(layer):
    weight = layer.weight_hh_l0
    layer.register_parameter(NAME, None)
    layer.double()
    layer.weight_hh_l0 = nn.Parameter(weight.double())
    return layer


def a_plain_tensor(layer):
    weight = layer.weight_hh_l0.detach()
    del layer.weight_hh_l0
    layer.double()
    layer.weight_hh_l0 = weight.double()
    return layer


def delete_copy_set(layer):
    weight = layer.weight_hh_l0
    del layer.weight_hh_l0
    layer = copy.deepcopy(layer).double()
    layer.weight_hh_l0 = nn.Parameter(weight.double())
    return layer


def delete_pickle_set(layer):
    weight = layer.weight_hh_l0
    del layer.weight_hh_l0
    layer = pickle.loads(pickle.dumps(layer.double()))
    layer.weight_hh_l0 = nn.Parameter(weight.double())
    return layer


def delete_set_parametrize_move(layer):
    weight = layer.weight_hh_l0
    del layer.weight_hh_l0
    layer.to("cpu", torch.float64)
    layer.weight_hh_l0 = nn.Parameter(weight.double())
    parametrize.register_parametrization(layer, NAME, nn.Identity())
    layer.double()
    return layer


def parametrize_remove_move(layer):
    parametrize.register_parametrization(layer, NAME, nn.Identity())
    parametrize.remove_parametrizations(layer, NAME)
    return layer.double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change",
    [
        delete_move_set,
        delete_set_move,
        none_move_set,
        a_plain_tensor,
        delete_copy_set,
        delete_pickle_set,
        delete_set_parametrize_move,
        parametrize_remove_move,
    ],
)
def test_a_weight_that_is_taken_away_and_set_again(kind, change):
    theirs, ours = map(change, pair(kind, 3, 4))
    x = X.double()
    for (output, _), (expected, _) in ((ours(x), theirs(x)), (ours(x), theirs(x))):
        torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_is_missing(kind):
    for layer in pair(kind, 3, 4):
        del layer.weight_hh_l0
        layer.flatten_parameters()
        layer.reset_parameters()
        layer.float()
        assert list(layer.state_dict()) == ["weight_ih_l0", "bias_ih_l0", "bias_hh_l0"]
        assert repr(layer) == f"{kind}(3, 4)"
    with pytest.raises(AttributeError, match="has no attribute 'weight_hh_l0'"):
        layer(X)
    for name in (NAME, "bias_ih_l0"):
        theirs, ours = pair(kind, 3, 4)
        for layer in (theirs, ours):
            layer.register_parameter(name, None)
            layer.float()
            with pytest.raises(TypeError, match="None"):
                layer(X)
        with pytest.raises(TypeError, match=f"{name} must be a tensor, got None"):
            ours.step(X[0])
