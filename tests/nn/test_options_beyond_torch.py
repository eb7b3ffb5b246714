"""Options that torch.nn does not have, compared with torch.nn and with loops written by hand."""

import math

import pytest
import torch
from cases import (
    CELLS,
    ENGINES,
    EVERY_ENGINE,
    LAYERS,
    OPTIONS,
    assert_same,
    distance,
    flatten,
    make_pair,
)
from torch import nn

import cello
from cello.engines.native import engine as native_engine

D = torch.float64
T, B, F, H = 6, 4, 3, 5


def inputs(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


X = inputs(T, B, F)


def layer_of(name, *args, **options):
    torch.manual_seed(0)
    return getattr(cello.nn, name)(*args, **({"dtype": D} | options))


def state_of(name, rows, batch=B, width=H):
    parts = inputs(2, rows, batch, width, seed=2)
    return (parts[0], parts[1]) if name == "LSTM" else parts[0]


def by_hand(weights, x, states, phi=torch.tanh, sigma=torch.sigmoid):
    """One layer, one direction, step by step, with one matrix for each gate: LSTM or GRU or RNN.

    Returns the states after every step, each (T, B, H).
    """
    w_ih, w_hh, b_ih, b_hh = weights
    gates = w_ih.shape[0] // w_hh.shape[1]
    input_gate = list(zip(w_ih.chunk(gates), b_ih.chunk(gates), strict=True))
    state_gate = list(zip(w_hh.chunk(gates), b_hh.chunk(gates), strict=True))
    history = []
    for step in x:
        a = [step @ w.T + b for w, b in input_gate]
        r = [states[0] @ w.T + b for w, b in state_gate]
        if gates == 4:
            i, f, o = (sigma(a[k] + r[k]) for k in (0, 1, 3))
            c = f * states[1] + i * phi(a[2] + r[2])
            states = (o * phi(c), c)
        elif gates == 3:
            reset, z = sigma(a[0] + r[0]), sigma(a[1] + r[1])
            states = ((1 - z) * phi(a[2] + reset * r[2]) + z * states[0],)
        else:
            states = (phi(a[0] + r[0]),)
        history.append(states)
    return [torch.stack(parts) for parts in zip(*history, strict=True)]


# Lengths

LENGTHS = [[6, 3, 1, 4], [0, 6, 2, 0], [6, 6, 6, 6], [2, 2, 2, 2], [0, 0, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("engine", EVERY_ENGINE)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("has_state", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_lengths_equal_each_sequence_alone(
    name, batch_first, has_state, bidirectional, lengths, engine
):
    ours, theirs = make_pair(
        name, F, H, 2, bidirectional=bidirectional, batch_first=batch_first, dtype=D
    )
    rows = 4 if bidirectional else 2
    x = X.clone().requires_grad_()
    hx = state_of(name, rows) if has_state else None
    with cello.engine(engine):
        output, state = ours(x.transpose(0, 1) if batch_first else x, hx, lengths=lengths)
    output = output.transpose(0, 1) if batch_first else output
    assert output.shape == (T, B, (2 if bidirectional else 1) * H)
    total = torch.zeros((), dtype=D)
    starts = flatten(state_of(name, rows))
    for row, length in enumerate(lengths):
        alone = [p[:, row] if has_state else torch.zeros_like(p[:, row]) for p in starts]
        if length:
            start = tuple(alone) if name == "LSTM" else alone[0]
            expected, alone = theirs(x[:length, row], start)
            assert_same(output[:length, row], expected)
            total = total + expected.pow(2).sum()
        assert not output[length:, row].any()
        assert_same([p[:, row] for p in flatten(state)], flatten(alone))
        total = total + sum(p.pow(2).sum() for p in flatten(alone))
    if total.requires_grad:
        got = output.pow(2).sum() + sum(p.pow(2).sum() for p in flatten(state))
        assert_same(torch.autograd.grad(got, x), torch.autograd.grad(total, x))


@pytest.mark.parametrize("name", LAYERS)
def test_what_lies_past_the_end_does_not_matter(name):
    layer, lengths = layer_of(name, F, H, 2, bidirectional=True), [6, 3, 0, 1]
    x = X.clone()
    for row, length in enumerate(lengths):
        x[length:, row] = math.nan
    assert_same(layer(x, lengths=lengths), layer(X, lengths=lengths), rtol=0, atol=0)
    leaf = x.requires_grad_()
    layer(leaf, lengths=lengths)[0].sum().backward()
    for row, length in enumerate(lengths):
        assert not leaf.grad[length:, row].any()
        assert leaf.grad[:length, row].abs().sum() > 0 or length == 0


@pytest.mark.parametrize(
    "lengths",
    [torch.tensor([6, 3, 1, 4]), torch.tensor([6, 3, 1, 4], dtype=torch.int32), (6, 3, 1, 4)],
    ids=["int64", "int32", "tuple"],
)
def test_lengths_may_be_tensors(lengths):
    layer = layer_of("GRU", F, H)
    assert_same(layer(X, lengths=lengths), layer(X, lengths=[6, 3, 1, 4]), rtol=0, atol=0)


def test_lengths_equal_a_packed_sequence():
    ours, theirs = make_pair("LSTM", F, H, 2, bidirectional=True, dtype=D)
    packed = nn.utils.rnn.pack_padded_sequence(X, [2, 6, 1, 4], enforce_sorted=False)
    expected, state = theirs(packed)
    padded, _ = nn.utils.rnn.pad_packed_sequence(expected)
    assert_same(ours(X, lengths=[2, 6, 1, 4]), (padded, state))


# The states of all steps


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", LAYERS)
def test_states_of_all_steps(name, engine):
    layer = layer_of(name, F, H, 2, bidirectional=True)
    hx = state_of(name, 4)
    with cello.engine(engine):
        output, final, states = layer(X, hx, return_states="all")
        assert_same((output, final), layer(X, hx))
        _, _, last = layer(X, hx, return_states=True)
        assert_same(layer(X, hx, return_states="last")[2]["h"], last["h"])
    names = ["h", "c"] if name == "LSTM" else ["h"]
    places = ["l0", "l0_reverse", "l1", "l1_reverse"]
    assert list(states) == [f"{n}_{p}" for p in places for n in names]
    assert list(last) == names
    x = X
    for depth in range(2):
        halves = []
        for direction in range(2):
            row = 2 * depth + direction
            weights = layer.all_weights[row]
            start = [part[row] for part in flatten(hx)]
            history = by_hand(weights, x.flip(0) if direction else x, start)
            history = [part.flip(0) if direction else part for part in history]
            for n, expected in zip(names, history, strict=True):
                assert_same(states[f"{n}_{places[row]}"], expected)
            halves.append(history)
        x = torch.cat([halves[0][0], halves[1][0]], dim=-1)
    for k, n in enumerate(names):
        assert_same(last[n], torch.cat([halves[0][k], halves[1][k]], dim=-1))
    assert_same(output, last["h"])


@pytest.mark.parametrize("form", ["batch_first", "unbatched", "packed", "lengths"])
def test_states_of_all_steps_have_the_form_of_the_output(form):
    layer = layer_of("LSTM", F, H, batch_first=form == "batch_first", proj_size=2)
    x, options = {
        "batch_first": (X.transpose(0, 1), {}),
        "unbatched": (X[:, 0], {}),
        "packed": (nn.utils.rnn.pack_padded_sequence(X, [2, 6, 1, 4], enforce_sorted=False), {}),
        "lengths": (X, {"lengths": [2, 6, 0, 4]}),
    }[form]
    output, (_, c), states = layer(x, return_states=True, **options)
    assert_same(states["h"], output)
    assert type(states["c"]) is type(output)
    cells = states["c"]
    if form == "packed":
        cells, lengths = nn.utils.rnn.pad_packed_sequence(cells)
        assert_same(cells[lengths - 1, torch.arange(B)], c[0])
    elif form == "lengths":
        assert_same(cells[5, 1], c[0, 1])
        assert not cells[2:, 0].any()
    else:
        assert cells.shape == (*output.shape[:-1], H)
        last = cells[:, -1] if form == "batch_first" else cells[-1]
        assert_same(last, c[0])


# Activations

FUNCTIONS = {
    "relu": (torch.relu, torch.sigmoid),
    "softsign": (nn.functional.softsign, nn.functional.hardsigmoid),
    "identity": (lambda x: x, torch.sigmoid),
}


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_with_other_activations(name, activation):
    phi, sigma = FUNCTIONS[activation]
    options = {} if name == "RNN" else {"gate_activation": sigma}
    layer = layer_of(name, F, H, activation=activation, **options)
    hx = state_of(name, 1)
    _, final, states = layer(X, hx, return_states=True)
    expected = by_hand(layer.all_weights[0], X, [p[0] for p in flatten(hx)], phi, sigma)
    assert_same(list(states.values()), expected)
    assert_same([p[0] for p in flatten(final)], [part[-1] for part in expected])


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("name", CELLS)
def test_cells_with_other_activations(name, activation):
    phi, sigma = FUNCTIONS[activation]
    options = {} if name == "RNNCell" else {"gate_activation": sigma}
    cell = layer_of(name, F, H, activation=activation, **options)
    weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    h, c = inputs(2, B, H)
    state = (h, c) if name == "LSTMCell" else h
    expected = [part[0] for part in by_hand(weights, X[:1], flatten(state), phi, sigma)]
    assert_same(flatten(cell(X[0], state)), expected)
    assert_same(
        flatten(cell(X[0, 0], [h[0], c[0]] if name == "LSTMCell" else h[0])),
        [part[0] for part in expected],
    )
    zeros = torch.zeros(B, H, dtype=D)
    zero_state = (zeros, zeros) if name == "LSTMCell" else zeros
    assert_same(cell(X[0]), cell(X[0], zero_state), rtol=0, atol=0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_the_usual_activations_given_as_functions_change_nothing(name, bias):
    """lambdas are not recognised, so this runs the equations; torch's kernel gives the expected numbers."""
    given = {"activation": lambda x: torch.tanh(x)}
    if name != "RNNCell":
        given["gate_activation"] = lambda x: torch.sigmoid(x)
    ours, theirs = layer_of(name, F, H, bias, **given), getattr(nn, name)(F, H, bias, dtype=D)
    theirs.load_state_dict(ours.state_dict())
    assert_same(ours(X[0]), theirs(X[0]))
    layer = layer_of(name[:-4], F, H, 2, bidirectional=True, bias=bias, **given)
    stock = getattr(nn, name[:-4])(F, H, 2, bidirectional=True, bias=bias, dtype=D)
    stock.load_state_dict(layer.state_dict())
    assert_same(layer(X), stock(X))


def test_activations_with_parameters_are_trained():
    layer = layer_of("GRU", F, H, activation=nn.PReLU(dtype=D))
    assert "activation.weight" in layer.state_dict()
    layer(X)[0].sum().backward()
    assert layer.activation.weight.grad.abs() > 0


def test_piecewise_linear_activations_equal_the_hard_functions_by_name():
    options = {"num_layers": 2, "bidirectional": True}
    knots = layer_of(
        "LSTM", F, H, **options,
        activation=cello.PiecewiseLinear.hard_tanh(),
        gate_activation=cello.PiecewiseLinear.hard_sigmoid(),
    )  # fmt: skip
    names = layer_of("LSTM", F, H, **options, activation="hardtanh", gate_activation="hardsigmoid")
    assert_same(knots(X), names(X))
    by_knots, by_names = (
        torch.autograd.grad(m(X)[0].sum(), list(m.parameters())) for m in (knots, names)
    )
    assert_same(by_knots, by_names, rtol=1e-6, atol=1e-7)  # the slope 1/6 of torch is a float32


# Initial values


@pytest.mark.parametrize("value", [1.0, 0.0, -2.5])
def test_forget_bias(value):
    options = {"num_layers": 2, "bidirectional": True}
    ours = layer_of("LSTM", F, H, **options, forget_bias=value)
    drawn = layer_of("LSTM", F, H, **options)
    for key, parameter in ours.named_parameters():
        expected = getattr(drawn, key).detach().clone()
        if key.startswith("bias"):
            expected[H : 2 * H] = value if key.startswith("bias_ih") else 0.0
        assert torch.equal(parameter, expected), key
    nn.init.zeros_(ours.bias_ih_l0)
    ours.reset_parameters()
    assert (ours.bias_ih_l0[H : 2 * H] == value).all()


def test_forget_bias_by_hand():
    """Zero weights: i = o = 1/2, g = 0, f = sigmoid(2), so c falls by that factor every step."""
    layer = layer_of("LSTM", 1, 1, forget_bias=2.0)
    with torch.no_grad():
        for key, parameter in layer.named_parameters():
            if key.startswith("weight"):
                parameter.zero_()
            else:
                parameter[[0, 2, 3]] = 0.0
    start = torch.zeros(1, 1, 1, dtype=D), torch.ones(1, 1, 1, dtype=D)
    output, (_, c) = layer(torch.zeros(3, 1, 1, dtype=D), start)
    factor = 1 / (1 + math.exp(-2.0))
    assert c.item() == pytest.approx(factor**3, rel=1e-14)
    assert output[0].item() == pytest.approx(math.tanh(factor) / 2, rel=1e-14)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", OPTIONS)
def test_learned_initial_state(kind, bidirectional):
    name, options = kind.split("-")[0], OPTIONS[kind] | {"bidirectional": bidirectional}
    layer = layer_of(name, F, H, 2, learn_initial_state=True, **options)
    plain = layer_of(name, F, H, 2, **options)
    added = {k: p for k, p in layer.named_parameters() if k.startswith("initial")}
    suffixes = ["l0", "l0_reverse", "l1", "l1_reverse"][:: 1 if bidirectional else 2]
    names = ["h", "c"] if name == "LSTM" else ["h"]
    assert list(added) == [f"initial_{n}_{s}" for s in suffixes for n in names]
    assert_same(layer(X), plain(X), rtol=0, atol=0)  # zero at first, and the same weights drawn
    with torch.no_grad():
        for parameter in added.values():
            nn.init.normal_(parameter)
    parts = [torch.stack([added[f"initial_{n}_{s}"] for s in suffixes]) for n in names]
    start = [p[:, None].expand(-1, B, -1).contiguous() for p in parts]
    hx = tuple(start) if name == "LSTM" else start[0]
    assert_same(layer(X), plain(X, hx))
    assert_same(layer(X, hx), plain(X, hx))  # a state that is given wins
    assert_same(layer(X[:, 0])[0], layer(X)[0][:, 0])
    layer(X)[0].sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in added.values())
    _, final = layer(X, lengths=[0, 6, 6, 6])
    assert_same([p[:, 0] for p in flatten(final)], parts)  # the state of an empty sequence


# Widths, merging, direction


@pytest.mark.parametrize("engine", EVERY_ENGINE)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_width_for_each_layer(name, bidirectional, engine):
    widths, directions = [5, 2, 7], 2 if bidirectional else 1
    layer = layer_of(name, F, widths, 3, bidirectional=bidirectional)
    x, features, finals = X, F, []
    for depth, width in enumerate(widths):
        single = getattr(nn, name)(features, width, bidirectional=bidirectional, dtype=D)
        keys = [key for key in layer.state_dict() if f"_l{depth}" in key]
        state = {k.replace(f"_l{depth}", "_l0"): layer.state_dict()[k] for k in keys}
        single.load_state_dict(state)
        assert single.weight_hh_l0.abs().max() <= 1 / math.sqrt(width)
        x, final = single(x)
        finals.append(flatten(final))
        features = directions * width
    with cello.engine(engine):
        output, state = layer(X)
    assert_same(output, x)
    leaves = state if name == "LSTM" else (state,)
    for part, leaf in enumerate(leaves):
        assert [tuple(t.shape) for t in leaf] == [(directions, B, w) for w in widths]
        assert_same(leaf, [final[part] for final in finals])
    again, _ = layer(X, state)
    assert not torch.equal(again, output)
    if not bidirectional:  # the state carries on where the first call stopped
        assert_same(layer(torch.cat([X, X]))[0][T:], again)


def test_equal_widths_for_each_layer_are_one_width():
    assert_same(layer_of("GRU", F, [5, 5], 2)(X), layer_of("GRU", F, 5, 2)(X), rtol=0, atol=0)


MERGES = {
    "concat": lambda a, b: torch.cat([a, b], -1),
    "sum": lambda a, b: a + b,
    "mean": lambda a, b: (a + b) / 2,
    "mul": lambda a, b: a * b,
}


@pytest.mark.parametrize("form", ["padded", "packed", "lengths"])
@pytest.mark.parametrize("merge", [*MERGES, "none"])
@pytest.mark.parametrize("name", LAYERS)
def test_merge(name, merge, form):
    layer = layer_of(name, F, H, 2, bidirectional=True, merge=merge)
    joined = MERGES.get(merge, MERGES["concat"])
    assert layer.weight_ih_l1.shape[1] == joined(X, X).shape[-1] // F * H
    x, options = X, {}
    lengths = [6, 3, 1, 4]
    if form == "packed":
        x = nn.utils.rnn.pack_padded_sequence(X, lengths, enforce_sorted=False)
    elif form == "lengths":
        options = {"lengths": lengths}
    output, _ = layer(x, **options)
    stack, weights = X, layer.state_dict()
    for depth in range(2):
        single = getattr(nn, name)(stack.shape[-1], H, bidirectional=True, dtype=D)
        single.load_state_dict(
            {k.replace(f"l{depth}", "l0"): v for k, v in weights.items() if f"l{depth}" in k}
        )
        packed = nn.utils.rnn.pack_padded_sequence(
            stack, lengths if form != "padded" else [T] * B, enforce_sorted=False
        )
        padded, _ = nn.utils.rnn.pad_packed_sequence(single(packed)[0])
        halves = padded.chunk(2, -1)
        stack = joined(*halves)
    given = output if merge == "none" else (output,)
    expected = halves if merge == "none" else (stack,)
    for one, other in zip(given, expected, strict=True):
        if form == "packed":
            one = nn.utils.rnn.pad_packed_sequence(one)[0]
        assert_same(one, other)


@pytest.mark.parametrize("engine", EVERY_ENGINE)
@pytest.mark.parametrize("name", LAYERS)
def test_reverse(name, engine):
    ours, theirs = make_pair(name, F, H, 2, dtype=D)
    ours.reverse = True
    hx = state_of(name, 2)
    lengths = [6, 3, 1, 4]
    with cello.engine(engine):
        output, state = ours(X, hx)
        cut, cut_state = ours(X, hx, lengths=lengths)
    expected, expected_state = theirs(X.flip(0), hx)
    assert_same(output, expected.flip(0))
    assert_same(state, expected_state)
    for row, length in enumerate(lengths):
        start = [part[:, row].contiguous() for part in flatten(hx)]
        start = tuple(start) if name == "LSTM" else start[0]
        expected, expected_state = theirs(X[:length, row].flip(0), start)
        assert_same(cut[:length, row], expected.flip(0))
        assert_same([part[:, row] for part in flatten(cut_state)], flatten(expected_state))


# Step by step


@pytest.mark.parametrize("engine", EVERY_ENGINE)
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", OPTIONS)
def test_steps_equal_one_call(kind, batch_first, batched, engine):
    name = kind.split("-")[0]
    layer = layer_of(name, F, H, 3, batch_first=batch_first, **OPTIONS[kind])
    x = X if batched else X[:, 0]
    state, outputs = None, []
    with cello.engine(engine):
        for step in x:
            output, state = layer.step(step, state)
            outputs.append(output)
    expected, final = layer(x.transpose(0, 1) if batch_first and batched else x)
    expected = expected.transpose(0, 1) if batch_first and batched else expected
    assert_same(torch.stack(outputs), expected)
    assert_same(state, final)


def test_steps_use_the_learned_initial_state_and_each_layers_width():
    layer = layer_of("LSTM", F, [5, 2], 2, learn_initial_state=True)
    nn.init.ones_(layer.initial_c_l1)
    state, outputs = None, []
    for step in X:
        output, state = layer.step(step, state)
        outputs.append(output)
    assert_same((torch.stack(outputs), state), layer(X))


# Engines and their choice


@pytest.mark.parametrize("name", LAYERS)
def test_stock_layers_run_on_every_engine(name):
    for options in ({}, {"bidirectional": True}, {"num_layers": 3}, {"reverse": True}):
        layer = layer_of(name, F, H, **options)
        for arguments in ({}, {"lengths": [6, 3, 0, 4]}):
            plan = cello.explain(layer, X, **arguments)
            assert [p.engine for p in plan.plans] == ["native"] * layer.num_layers
            assert all(p.reasons == {} for p in plan.plans)
            for engine in ("native", "vendor", "reference"):
                with cello.engine(engine, strict=True):
                    assert cello.explain(layer, X, **arguments).plans[0].engine == engine


@pytest.mark.parametrize(
    ("options", "arguments", "reason"),
    [
        ({"activation": "relu"}, {}, "tanh built in, not relu"),
        ({"gate_activation": "hardsigmoid"}, {}, "sigmoid gates built in, not hardsigmoid"),
        ({}, {"return_states": True}, "cell states of all steps"),
    ],
    ids=str,
)
def test_what_the_vendor_engine_leaves_to_another(options, arguments, reason, monkeypatch):
    layer = layer_of("LSTM", F, H, **options)
    plan = cello.explain(layer, X, **arguments).plans[0]
    assert plan.engine == "native"
    assert plan.reasons == {}
    monkeypatch.setattr(native_engine, "library", lambda: None)
    plan = cello.explain(layer, X, **arguments).plans[0]
    assert plan.engine == "reference"
    assert any(reason in why for why in plan.reasons["vendor"])
    with (
        pytest.raises(cello.EngineError, match=f"'vendor' was selected.*{reason}"),
        cello.engine("vendor"),
    ):
        layer(X, **arguments)


def test_strict_refuses_the_python_loop_only_where_it_was_not_asked_for():
    def own(x):
        return torch.lgamma(1 + x.abs())

    layer = layer_of("RNN", F, H, activation=own)
    plan = cello.explain(layer, X).plans[0]
    assert plan.engine == "reference"
    with pytest.raises(cello.EngineError, match=r"strict mode.*own"), cello.engine(strict=True):
        layer(X)
    with cello.engine("reference", strict=True):
        layer(X)
    with cello.engine(strict=True), cello.engine(strict=False):
        layer(X)
    with cello.engine(strict=True), cello.engine("reference"):
        layer(X)
    layer(X)  # after the block the choice is free again


def test_unknown_engine():
    with (
        pytest.raises(ValueError, match=r"native, vendor, triton, reference, got 'fastest'"),
        cello.engine("fastest"),
    ):
        pass


def test_an_engine_is_chosen_inside_the_block_only_even_after_an_error():
    with pytest.raises(ZeroDivisionError), cello.engine("reference"):
        raise ZeroDivisionError
    assert cello.explain(layer_of("GRU", F, H), X).plans[0].engine == "native"


def test_explanation(monkeypatch):
    monkeypatch.setattr(native_engine, "library", lambda: None)
    layer = layer_of("LSTM", F, [5, 2], 2, bidirectional=True, activation="relu", dropout=0.5)
    torch.manual_seed(0)
    explanation = cello.explain(layer, X, lengths=[6, 6, 3, 0])
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(0))
    assert [plan.cells for plan in explanation.plans] == [("LSTM", "LSTM")] * 2
    text = str(explanation)
    for part in ("LSTM(3, (5, 2), num_layers=2", "activation=relu", "x 2 directions"):
        assert part in text
    assert text.count("not 'vendor': torch's kernel has tanh built in, not relu") == 2
    assert text.count("not 'native': the native engine was not built") == 2
    assert cello.explain(layer, X, lengths=[0, 0, 0, 0]).plans == ()
    with pytest.raises(TypeError, match=r"cello.nn, got LSTM"):
        cello.explain(nn.LSTM(F, H), X)


@pytest.mark.parametrize("name", LAYERS)
def test_options_together(name):
    """Lengths, learned states, several widths, merging and states of all steps in one layer."""
    layer = layer_of(
        name, F, [5, 2], 2, bidirectional=True, merge="mean", learn_initial_state=True,
        batch_first=True, activation=cello.PiecewiseLinear.hard_tanh(),
    )  # fmt: skip
    lengths = [6, 0, 3, 1]
    x = X.transpose(0, 1).contiguous()
    output, state, states = layer(x, lengths=lengths, return_states="all")
    for row, length in enumerate(lengths):
        if length:
            alone, final, history = layer(x[row, :length], return_states="all")
            assert_same(output[row, :length], alone)
            assert_same([t[:, row] for t in flatten(state)], flatten(final))
            assert_same([s[row, :length] for s in states.values()], list(history.values()))
    assert not output[1].any()
    gradients = torch.autograd.grad(output.sum(), list(layer.parameters()), allow_unused=True)
    assert all(g is not None and g.isfinite().all() for g in gradients)


def test_float32_layers_with_other_activations_are_accurate():
    single = layer_of("LSTM", F, 16, 2, activation="softsign", dtype=torch.float32)
    double = layer_of("LSTM", F, 16, 2, activation="softsign", dtype=D)
    double.load_state_dict({k: v.double() for k, v in single.state_dict().items()})
    x = X.float()
    assert distance(single(x)[0], double(x.double())[0]) < 1e-6
