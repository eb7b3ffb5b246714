"""What PyTorch's own test suite asks of its recurrent classes, asked of Cello's."""

import copy
import io
import itertools
import pickle

import pytest
import torch
from cases import CELLS, LAYERS, assert_same, flatten
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

import cello
from cello.nn import GRU, LSTM, RNN, LSTMCell, RNNCell

D = torch.float64


def layer_of(name, *args, **kwargs):
    torch.manual_seed(0)
    return getattr(cello.nn, name)(*args, **kwargs)


def zeros_for(name, *shape, dtype=torch.float32):
    h = torch.zeros(*shape, dtype=dtype)
    return (h, h.clone()) if name == "LSTM" else h


# Cells


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_cells_run_for_several_steps_and_backward(name, bias):
    cell, x = layer_of(name, 10, 20, bias=bias), torch.randn(3, 10)
    hx = None
    for _ in range(6):
        hx = cell(x, hx)
    sum(flatten(hx)).sum().backward()
    assert all(part.shape == (3, 20) for part in flatten(hx))
    assert all(parameter.grad.abs().sum() > 0 for parameter in cell.parameters())


@pytest.mark.parametrize("name", CELLS)
def test_cells_refuse_other_sizes(name):
    cell, x, h = layer_of(name, 10, 20), torch.randn(3, 10), torch.randn(3, 20)

    def hx(h):
        return (h, h) if name == "LSTMCell" else h

    with pytest.raises(RuntimeError, match="inconsistent input_size: got 11 expected 10"):
        cell(torch.randn(3, 11), hx(h))
    with pytest.raises(RuntimeError, match="inconsistent hidden_size: got 21, expected 20"):
        cell(x, hx(torch.randn(3, 21)))
    for batch in (1, 5):  # no broadcasting
        with pytest.raises(
            RuntimeError, match=f"batch size 3 doesn't match hidden0 batch size {batch}"
        ):
            cell(x, hx(torch.randn(batch, 20)))
    with pytest.raises(ValueError, match="1D or 2D, got 4D"):
        cell(x, hx(torch.randn(3, 1, 1, 20)))
    cell(x, hx(h))


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_nonlinearity_of_rnn_cell(nonlinearity):
    cell = RNNCell(10, 20, nonlinearity=nonlinearity)
    h = cell(torch.randn(3, 10) * 10)
    assert bool((h < 0).any()) == (nonlinearity == "tanh")
    assert bool((h > 1).any()) == (nonlinearity == "relu")


def test_only_one_output_of_lstm_cell_may_have_a_gradient():
    for index in range(2):
        cell = LSTMCell(5, 4, dtype=D)
        x = torch.randn(3, 5, dtype=D, requires_grad=True)
        cell(x)[index].sum().backward()
        assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("name", CELLS)
def test_gradients_of_cells(name):
    cell = layer_of(name, 3, 2, dtype=D)
    x, h, c = (torch.randn(2, n, dtype=D, requires_grad=True) for n in (3, 2, 2))
    weights = tuple(cell.parameters())
    states = (h, c) if name == "LSTMCell" else (h,)

    def step(x, *rest):
        hx = rest[: len(states)] if len(states) == 2 else rest[0]
        named = dict(zip(dict(cell.named_parameters()), rest[len(states) :], strict=True))
        return torch.func.functional_call(cell, named, (x, hx))

    assert torch.autograd.gradcheck(step, (x, *states, *weights))
    assert torch.autograd.gradgradcheck(step, (x, *states, *weights))


# Arguments


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_sizes_of_arguments_are_checked(name, bidirectional, batch_first):
    T, B, F, H, L = 5, 3, 2, 4, 2
    rows = L * (2 if bidirectional else 1)
    layer = layer_of(name, F, H, L, bidirectional=bidirectional, batch_first=batch_first)

    def shape(steps, batch, features):
        return (batch, steps, features) if batch_first else (steps, batch, features)

    good = shape(T, B, F)
    layer(torch.randn(good), zeros_for(name, rows, B, H))
    for x, h in [
        (shape(T, B, F + 1), (rows, B, H)),
        (shape(T, B, F - 1), (rows, B, H)),
        (shape(T, B + 1, F), (rows, B, H)),
        (good, (rows, B + 1, H)),
        (good, (rows, B, H + 1)),
        (good, (rows + 1, B, H)),
        (good, (rows - 1, B, H)),
        (good, (B, rows, H)),
        (good, (rows, H)),
    ]:
        with pytest.raises(RuntimeError):
            layer(torch.randn(x), zeros_for(name, *h))


@pytest.mark.parametrize("part", [0, 1])
def test_sizes_of_projected_states_are_checked(part):
    layer = LSTM(2, 5, 2, proj_size=3)
    x, good = torch.randn(4, 2, 2), [(2, 2, 3), (2, 2, 5)]
    layer(x, tuple(torch.zeros(s) for s in good))
    for bad in [(2, 2, 4), (2, 2, (5, 3)[part]), (1, 2, (3, 5)[part]), (2, 3, (3, 5)[part])]:
        shapes = list(good)
        shapes[part] = bad
        with pytest.raises(RuntimeError, match=f"hx\\[{part}\\]"):
            layer(x, tuple(torch.zeros(s) for s in shapes))


def test_projections_are_for_lstm_alone():
    for build in (RNN, GRU):
        with pytest.raises(ValueError, match="only supported for LSTM"):
            build(10, 20, proj_size=5)
    with pytest.raises(ValueError, match="smaller than hidden_size"):
        LSTM(10, 20, proj_size=20)
    with pytest.raises(ValueError, match="positive integer or zero"):
        LSTM(10, 20, proj_size=-1)


@pytest.mark.parametrize("dropout", [-1, -0.1, 1.1, 2, True, "0.5"])
@pytest.mark.parametrize("name", LAYERS)
def test_probabilities_outside_0_to_1_are_refused(name, dropout):
    with pytest.raises(ValueError, match="dropout"):
        getattr(cello.nn, name)(3, 4, 2, dropout=dropout)


@pytest.mark.parametrize("name", LAYERS)
def test_size_zero_is_refused(name):
    for sizes in [(0, 4, 1), (3, 0, 1), (3, 4, 0), (-1, 4, 1)]:
        with pytest.raises(ValueError, match="must be greater than zero"):
            getattr(cello.nn, name)(*sizes)


@pytest.mark.parametrize("name", LAYERS)
def test_the_dtype_of_the_input_is_checked(name):
    layer = layer_of(name, 3, 4)
    with pytest.raises(ValueError, match=r"torch.float64.*torch.float32"):
        layer(torch.randn(5, 2, 3, dtype=D))
    with pytest.raises(RuntimeError, match="at least one step"):
        layer(torch.randn(0, 2, 3))


# States


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("proj_size", [0, 5])
@pytest.mark.parametrize("name", LAYERS)
def test_absent_states_are_zeros(name, proj_size, bidirectional):
    if proj_size and name != "LSTM":
        return
    options = {"proj_size": proj_size} if proj_size else {}
    layer = layer_of(name, 30, 20, 2, bidirectional=bidirectional, **options)
    x, rows = torch.randn(10, 32, 30), 4 if bidirectional else 2
    hx = torch.zeros(rows, 32, proj_size or 20)
    if name == "LSTM":
        hx = (hx, torch.zeros(rows, 32, 20))
    assert_same(layer(x), layer(x, hx), rtol=0, atol=0)


# Nonlinearities and dropout


def test_nonlinearities_of_rnn():
    tanh, relu = RNN(1, 10), RNN(1, 10, nonlinearity="relu")
    assert tanh.nonlinearity == "tanh"
    assert relu.nonlinearity == "relu"
    with pytest.raises(ValueError, match="garbage"):
        RNN(1, 10, nonlinearity="garbage")
    assert RNN(2, 3, 1, "relu").nonlinearity == "relu"
    x = torch.randn(4, 2, 1) * 10
    assert (tanh(x)[0] < 0).any()
    assert (relu(x)[0] >= 0).all()


def ones_network(dropout):
    """Two layers that count: every weight is 1, so layer one outputs 1000 everywhere it may."""
    layer = RNN(10, 1000, 2, bias=False, dropout=dropout, nonlinearity="relu")
    with torch.no_grad():
        layer.weight_ih_l0.fill_(1)
        layer.weight_hh_l0.fill_(1)
        layer.weight_ih_l1.fill_(1)
        layer.weight_hh_l1.fill_(1)
    return layer


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("probability", [0, 0.25, 0.75, 1])
def test_dropout_between_layers_of_ones(probability, training):
    torch.manual_seed(0)
    layer = ones_network(probability).train(training)
    output, h = layer(torch.ones(1, 1, 10), torch.zeros(2, 1, 1000))
    assert (h[0] == 10).all()  # not dropped: dropout is between the layers, not on the state
    assert torch.equal(output[0], h[1])
    value = float(output.detach()[0, 0, 0])
    assert (output == value).all()  # all units of layer two see the same dropped input
    if probability == 1 and training:
        assert value == 0
    elif probability == 0 or not training:
        assert value == 10 * 1000
    else:
        kept = value * (1 - probability) / 10
        assert kept == pytest.approx(round(kept), abs=1e-2)  # a whole number of units survived
        assert abs(kept - 1000 * (1 - probability)) < 100  # seven standard deviations


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_may_change_and_follows_the_mode(name):
    layer, x = layer_of(name, 100, 100, 2, dropout=0), torch.ones(3, 2, 100)

    def outputs():
        return torch.stack([layer(x)[0] for _ in range(2)])

    a = outputs()
    assert torch.equal(a[0], a[1])
    layer.dropout = 0.5
    b = outputs()
    assert not torch.equal(b[0], b[1])
    layer.dropout = 1
    c = outputs()
    assert torch.equal(c[0], c[1])
    assert not torch.equal(a[0], c[0])
    layer.dropout = 0.5
    layer.eval()
    assert torch.equal(outputs()[0], a[0])
    layer.train()
    torch.manual_seed(3)
    first = layer(x)[0]
    torch.manual_seed(3)
    assert torch.equal(first, layer(x)[0])
    assert not torch.equal(first, layer(x)[0])


# Packed sequences


@pytest.mark.parametrize("lengths", [[7, 5, 4, 4, 1], [3, 3, 3], [2, 6, 1, 6]])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_sequences_of_different_lengths(lengths, bidirectional, with_state):
    """A packed batch equals its sequences one by one, in values and gradients."""
    layer = layer_of("LSTM", 3, 4, 2, bidirectional=bidirectional, dtype=D)
    sequences = [torch.randn(n, 3, dtype=D, requires_grad=True) for n in lengths]
    rows = 4 if bidirectional else 2
    state = torch.randn(2, rows, len(lengths), 4, dtype=D)
    packed = pack_sequence(sequences, enforce_sorted=False)
    output, (h, c) = layer(packed, (state[0], state[1]) if with_state else None)
    padded, given = pad_packed_sequence(output)
    assert given.tolist() == lengths
    together = torch.autograd.grad(padded.sum() + (h * c).sum(), [*sequences, layer.weight_hh_l0])
    total = 0
    for k, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
        hx = (state[0, :, k].contiguous(), state[1, :, k].contiguous()) if with_state else None
        alone, (h_k, c_k) = layer(sequence, hx)
        assert_same(padded[:length, k], alone)
        assert not padded[length:, k].any()
        assert_same((h[:, k], c[:, k]), (h_k, c_k))
        total = total + alone.sum() + (h_k * c_k).sum()
    apart = torch.autograd.grad(total, [*sequences, layer.weight_hh_l0])
    assert_same(together, apart)


@pytest.mark.parametrize("name", LAYERS)
def test_packed_results_keep_the_indices(name):
    layer = layer_of(name, 3, 4, batch_first=True)
    padded = torch.randn(3, 6, 3)
    for lengths, is_sorted in [([6, 4, 1], True), ([1, 6, 4], False)]:
        packed = pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=is_sorted)
        output, _ = layer(packed)
        assert isinstance(output, PackedSequence)
        assert torch.equal(output.batch_sizes, packed.batch_sizes)
        assert output.sorted_indices is packed.sorted_indices
        assert output.unsorted_indices is packed.unsorted_indices


# Weights


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("parametrized", [False, True])
def test_weight_norm(parametrized):
    names = ["weight_ih_l0", "weight_hh_l1"]
    layer, x = layer_of("LSTM", 3, 4, 2, dtype=D), torch.randn(4, 3, 3, dtype=D)
    before = layer(x)
    apply = nn.utils.parametrizations.weight_norm if parametrized else nn.utils.weight_norm
    for name in names:
        apply(layer, name=name)
        assert not isinstance(getattr(layer, name), nn.Parameter)
    assert_same(layer(x), before)
    total = layer(x)[0].sum()
    gradients = torch.autograd.grad(total, list(layer.parameters()))
    assert len(gradients) == 8 + len(names)
    assert all(g is not None for g in gradients)
    with torch.no_grad():
        for key, parameter in layer.named_parameters():
            if key.endswith(("_g", "original0")):
                parameter.mul_(2)
    assert not torch.equal(layer(x)[0], before[0])
    for name in names:
        if parametrized:
            nn.utils.parametrize.remove_parametrizations(layer, name)
        else:
            nn.utils.remove_weight_norm(layer, name)
        assert isinstance(getattr(layer, name), nn.Parameter)
    layer(x)


@pytest.mark.parametrize("name", LAYERS)
def test_spectral_norm(name):
    layer = layer_of(name, 3, 4, dtype=D)
    nn.utils.parametrizations.spectral_norm(layer, "weight_hh_l0", n_power_iterations=50)
    layer(torch.randn(4, 2, 3, dtype=D))[0].sum().backward()
    largest = torch.linalg.matrix_norm(layer.eval().weight_hh_l0.detach(), 2)
    assert largest == pytest.approx(1, abs=1e-6)
    assert layer.parametrizations.weight_hh_l0.original.grad.abs().sum() > 0


@pytest.mark.parametrize("name", LAYERS)
def test_pruning(name):
    layer, x = layer_of(name, 32, 32, dtype=D), torch.randn(3, 2, 32, dtype=D)
    before = layer(x)[0]
    prune.l1_unstructured(layer, "weight_ih_l0", amount=0.5)
    pruned = layer(x)[0]
    assert (layer.weight_ih_l0 == 0).double().mean() == 0.5
    assert not torch.equal(before, pruned)
    pruned.sum().backward()
    assert layer.weight_ih_l0_orig.grad[layer.weight_ih_l0_mask == 0].abs().sum() == 0
    prune.remove(layer, "weight_ih_l0")
    assert_same(layer(x)[0], pruned)
    with torch.no_grad():  # the pruned weight is gone from the memory that the layer reads
        layer.weight_ih_l0.zero_()
    assert not torch.equal(layer(x)[0], pruned)


def test_weights_may_be_tied_between_directions():
    layer = LSTM(5, 4, bidirectional=True, dtype=D)
    layer.weight_hh_l0_reverse = layer.weight_hh_l0
    layer.weight_ih_l0_reverse = layer.weight_ih_l0
    assert len(list(layer.parameters())) == 6
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x = torch.randn(7, 3, 5, dtype=D)
    before = layer(x)[0]
    before.sum().backward()
    optimizer.step()
    assert layer.weight_hh_l0_reverse is layer.weight_hh_l0
    after = layer(x)[0]
    assert not torch.equal(before, after)
    layer.flatten_parameters()
    assert torch.equal(layer(x)[0], after)
    untied = LSTM(5, 4, bidirectional=True, dtype=D)
    untied.load_state_dict(layer.state_dict())
    assert torch.equal(untied(x)[0], after)


def test_writing_into_a_weight_shows_at_the_next_call():
    layer, x = GRU(3, 4, dtype=D), torch.randn(4, 2, 3, dtype=D)
    for change in (lambda w: w.data.mul_(2), lambda w: setattr(w, "data", w.data + 1)):
        before = layer(x)[0]
        change(layer.weight_hh_l0)
        assert not torch.equal(layer(x)[0], before)


# Gradients


@pytest.mark.parametrize("name", LAYERS)
def test_the_graph_may_be_walked_twice(name):
    layer, x = layer_of(name, 2, 3, 2), torch.randn(6, 5, 2, requires_grad=True)
    output = layer(x)[0]
    output.sum().backward(retain_graph=True)
    first = [p.grad.clone() for p in layer.parameters()]
    for _ in range(4):
        layer.zero_grad()
        output.sum().backward(retain_graph=True)
        assert_same([p.grad for p in layer.parameters()], first, rtol=0, atol=0)
    with torch.no_grad():
        layer.weight_ih_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_first_and_second_derivatives(name, bidirectional):
    layer = layer_of(name, 2, 2, bidirectional=bidirectional, dtype=D)
    x = torch.randn(3, 2, 2, dtype=D, requires_grad=True)
    keys = list(dict(layer.named_parameters()))

    def run(x, *weights):
        named = dict(zip(keys, weights, strict=True))
        return tuple(flatten(torch.func.functional_call(layer, named, (x,))))

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))
    assert torch.autograd.gradgradcheck(run, (x, *layer.parameters()), fast_mode=True)


def test_second_derivative_in_single_precision():
    """oneDNN's kernel has a backward pass of its own, which has to be differentiable again."""
    layer, x = LSTM(3, 5, 2, bidirectional=True), torch.randn(4, 2, 3)
    total = layer(x)[0].sum()
    gradients = torch.autograd.grad(total, list(layer.parameters()), create_graph=True)
    sum(g.pow(2).sum() for g in gradients).backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    assert layer.weight_hh_l0.grad.abs().sum() > 0


def test_gradients_of_a_frozen_layer_reach_its_input():
    layer, x = LSTM(3, 4).requires_grad_(False), torch.randn(4, 2, 3, requires_grad=True)
    layer(x)[0].sum().backward()
    assert x.grad.abs().sum() > 0


# Files and copies


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_pickled_layers_are_the_same(name):
    layer = layer_of(name, 3, 4)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    others = pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)
    x = torch.randn(2, 3)
    for other in (*others, copy.deepcopy(layer)):
        assert_same(other(x), layer(x), rtol=0, atol=0)
        assert repr(other) == repr(layer)


def test_copied_layers_are_apart():
    layer = LSTM(3, 4, 2, bidirectional=True)
    other = copy.deepcopy(layer)
    pointers = [{p.data_ptr() for p in m.parameters()} for m in (layer, other)]
    assert len(pointers[0] & pointers[1]) == 0
    assert all(a is b for a, b in zip(other._flat_weights, other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("bias", "bidirectional", "layers"),
    list(itertools.product([True, False], [True, False], [1, 2])),
)
@pytest.mark.parametrize("name", LAYERS)
def test_unbatched_input_equals_a_batch_of_one(name, bias, bidirectional, layers):
    layer = layer_of(name, 3, 4, layers, bias=bias, bidirectional=bidirectional, dtype=D)
    x = torch.randn(5, 3, dtype=D)
    output, hx = layer(x)
    batched, batched_hx = layer(x.unsqueeze(1))
    assert_same(output, batched.squeeze(1))
    assert_same(hx, [part.squeeze(1) for part in flatten(batched_hx)])
    again, _ = layer(x, hx)
    expected, _ = layer(x.unsqueeze(1), batched_hx)
    assert_same(again, expected.squeeze(1))
