"""What torch.nn refuses is refused, with the same exception type and a message that says more."""

import numpy as np
import pytest
import torch
from cases import CELLS, LAYERS
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import cello


def error_of(function, *args, **kwargs):
    with pytest.raises(Exception) as raised:  # noqa: PT011 - the type is what is being compared
        function(*args, **kwargs)
    return raised.value


def assert_same_refusal(ours, theirs, *mentions):
    got, expected = error_of(ours), error_of(theirs)
    assert type(got) is type(expected), f"{got!r} instead of {expected!r}"
    for mention in mentions:
        assert mention in str(got)


def assert_both_raise(namespace_call, *mentions):
    assert_same_refusal(lambda: namespace_call(cello.nn), lambda: namespace_call(nn), *mentions)


CONSTRUCTORS = [  # keywords, what the message must mention
    ({"input_size": 0}, "input_size", "0"),
    ({"input_size": -1}, "input_size", "-1"),
    ({"input_size": 3.0}, "input_size", "float"),
    ({"input_size": "3"}, "input_size", "str"),
    ({"input_size": None}, "input_size", "NoneType"),
    ({"hidden_size": 0}, "hidden_size", "0"),
    ({"hidden_size": -2}, "hidden_size", "-2"),
    ({"hidden_size": 4.0}, "hidden_size", "float"),
    ({"hidden_size": "4"}, "hidden_size", "str"),
    ({"hidden_size": None}, "hidden_size", "NoneType"),
    ({"num_layers": 0}, "num_layers", "0"),
    ({"num_layers": -1}, "num_layers", "-1"),
    ({"num_layers": 1.5}, "float"),
    ({"num_layers": "2"}, "str"),
    ({"num_layers": None}, "NoneType"),
    ({"bias": 0}, "bias", "int"),
    ({"bias": 1}, "bias", "int"),
    ({"bias": "True"}, "bias", "str"),
    ({"bias": None}, "bias", "NoneType"),
    ({"batch_first": 0}, "batch_first", "int"),
    ({"batch_first": "False"}, "batch_first", "str"),
    ({"batch_first": None}, "batch_first", "NoneType"),
    ({"dropout": -0.1}, "dropout", "-0.1"),
    ({"dropout": 1.1}, "dropout", "1.1"),
    ({"dropout": True}, "dropout", "True"),
    ({"dropout": float("nan")}, "dropout", "nan"),
    ({"dropout": "0.5"}, "dropout", "0.5"),
    ({"dropout": "a"}, "dropout", "'a'"),
    ({"dropout": None}, "dropout", "None"),
    ({"dropout": [0.5]}, "dropout", "[0.5]"),
    ({"dropout": 1j}, "dropout", "1j"),
    ({"dropout": torch.tensor(0.5)}, "dropout", "tensor(0.5000)"),
    ({"dtype": torch.int64}, "dtype"),
    ({"dtype": "float32"}, "str"),
    ({"device": "nowhere"}, "nowhere"),
    ({"layers": 2}, "layers"),
]


@pytest.mark.parametrize(("options", "mentions"), [(o, m) for o, *m in CONSTRUCTORS], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_bad_constructor_arguments(name, options, mentions):
    if "dtype" in options:
        mentions = []  # the message is torch's own
    arguments = {"input_size": 3, "hidden_size": 4, "num_layers": 2} | options
    assert_both_raise(lambda namespace: getattr(namespace, name)(**arguments), *mentions)


@pytest.mark.parametrize(
    ("name", "options", "mention"),
    [
        ("LSTM", {"proj_size": -1}, "proj_size"),
        ("LSTM", {"proj_size": 4}, "proj_size"),
        ("LSTM", {"proj_size": 5}, "proj_size"),
        ("LSTM", {"proj_size": 1.5}, "float"),
        ("LSTM", {"proj_size": "1"}, "str"),
        ("LSTM", {"proj_size": None}, "NoneType"),
        ("LSTM", {"nonlinearity": "relu"}, "nonlinearity"),
        ("GRU", {"nonlinearity": "relu"}, "nonlinearity"),
        ("GRU", {"proj_size": 2}, "proj_size"),
        ("GRU", {"proj_size": 0}, "proj_size"),
        ("RNN", {"proj_size": 2}, "proj_size"),
        ("RNN", {"proj_size": 0}, "proj_size"),
        ("RNN", {"nonlinearity": "sin"}, "'sin'"),
        ("RNN", {"nonlinearity": None}, "None"),
    ],
)
def test_bad_options_of_one_class(name, options, mention):
    assert_both_raise(lambda namespace: getattr(namespace, name)(3, 4, **options), mention)


@pytest.mark.parametrize("bidirectional", [2, "yes", None], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_bidirectional_must_be_a_bool(name, bidirectional):
    """torch makes such a layer and refuses its first call, with the same type."""
    theirs = getattr(nn, name)(3, 4, bidirectional=bidirectional)
    assert_same_refusal(
        lambda: getattr(cello.nn, name)(3, 4, bidirectional=bidirectional),
        lambda: theirs(ones(5, 2, 3)),
        "bidirectional",
        type(bidirectional).__name__,
    )


@pytest.mark.parametrize("arguments", [(), (3,)], ids=str)
@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_missing_constructor_arguments(name, arguments):
    assert_both_raise(lambda namespace: getattr(namespace, name)(*arguments), "hidden_size")


@pytest.mark.parametrize("name", LAYERS)
def test_a_dropout_without_effect_warns(name, recwarn):
    for namespace in (nn, cello.nn):
        with pytest.warns(UserWarning, match="non-zero dropout expects num_layers") as record:
            getattr(namespace, name)(3, 4, 1, dropout=0.5)
        assert len(record) == 1
        if namespace is cello.nn:
            assert record[0].filename == __file__  # it points at the caller
    for namespace in (nn, cello.nn):
        getattr(namespace, name)(3, 4, 2, dropout=0.5)  # warnings are errors here


def ones(*shape, dtype=torch.float32):
    return torch.ones(*shape, dtype=dtype)


BAD_INPUTS = {  # for a layer (3, 4, 2): input, what the message must mention
    "0D": (ones(()), "0D"),
    "1D": (ones(3), "1D"),
    "4D": (ones(2, 2, 2, 3), "4D"),
    "features": (ones(5, 2, 7), "3", "7"),
    "features-unbatched": (ones(5, 7), "3", "7"),
    "no-features": (ones(5, 2, 0), "3", "0"),
    "float64": (ones(5, 2, 3, dtype=torch.float64), "torch.float64", "torch.float32"),
    "bfloat16": (ones(5, 2, 3, dtype=torch.bfloat16), "torch.bfloat16", "torch.float32"),
    "integers": (ones(5, 2, 3, dtype=torch.int64), "torch.int64", "torch.float32"),
    "complex": (ones(5, 2, 3, dtype=torch.complex64), "torch.complex64", "torch.float32"),
    "no-steps": (ones(0, 2, 3), "0"),
    "no-steps-unbatched": (ones(0, 3), "0"),
    "packed-1D": (PackedSequence(ones(4), torch.tensor([2, 2])), "2", "1"),
    "packed-3D": (PackedSequence(ones(4, 2, 3), torch.tensor([2, 2])), "2", "3"),
    "packed-features": (PackedSequence(ones(4, 7), torch.tensor([2, 2])), "3", "7"),
    "packed-float64": (
        PackedSequence(ones(4, 3, dtype=torch.float64), torch.tensor([2, 2])),
        "torch.float64",
        "torch.float32",
    ),
}


def checked_by_torch(name, what):
    """torch.nn.LSTM does not look at packed input and its state; Cello does as torch.nn.GRU does."""
    return "GRU" if name == "LSTM" and what.startswith("packed") else name


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("what", BAD_INPUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_bad_inputs(name, what, batch_first):
    x, *mentions = BAD_INPUTS[what]
    if batch_first and what == "no-steps":
        x = x.transpose(0, 1)
    checked = checked_by_torch(name, what)
    assert_same_refusal(
        lambda: getattr(cello.nn, name)(3, 4, 2, batch_first=batch_first)(x),
        lambda: getattr(nn, checked)(3, 4, 2, batch_first=batch_first)(x),
        *mentions,
    )


@pytest.mark.parametrize("x", [None, [[1.0]], "text", 1.0], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_inputs_that_are_no_tensors(name, x):
    assert_both_raise(lambda namespace: getattr(namespace, name)(3, 4)(x))


PACKED = PackedSequence(ones(3, 3), torch.tensor([2, 1]))
BAD_STATES = {  # for a layer (3, 4, 2): input, the wrong part of the state
    "layers": (ones(5, 2, 3), (1, 2, 4)),
    "directions": (ones(5, 2, 3), (4, 2, 4)),
    "batch": (ones(5, 2, 3), (2, 3, 4)),
    "batch-of-1": (ones(5, 2, 3), (2, 1, 4)),  # no broadcasting
    "width": (ones(5, 2, 3), (2, 2, 5)),
    "batch-first": (ones(5, 3, 3), (3, 2, 4)),
    "2D": (ones(5, 2, 3), (2, 4)),
    "4D": (ones(5, 2, 3), (1, 2, 2, 4)),
    "unbatched-3D": (ones(5, 3), (2, 1, 4)),
    "unbatched-1D": (ones(5, 3), (4,)),
    "unbatched-width": (ones(5, 3), (2, 5)),
    "unbatched-layers": (ones(5, 3), (1, 4)),
    "packed-batch": (PACKED, (2, 3, 4)),
    "packed-width": (PACKED, (2, 2, 5)),
    "packed-layers": (PACKED, (1, 2, 4)),
    "packed-2D": (PACKED, (2, 4)),
}


def state_of(name, shape, good, part):
    """A state with one part of this shape."""
    if name != "LSTM":
        return ones(shape)
    return (ones(shape), ones(good)) if part == 0 else (ones(good), ones(shape))


@pytest.mark.parametrize(("name", "part"), [("RNN", 0), ("GRU", 0), ("LSTM", 0), ("LSTM", 1)])
@pytest.mark.parametrize("what", BAD_STATES)
def test_bad_states(name, part, what):
    x, shape = BAD_STATES[what]
    good = (2, 4) if what.startswith("unbatched") else (2, 3 if what == "batch-first" else 2, 4)
    checked = checked_by_torch(name, what)
    mentions = ["hx", str(tuple(shape)), str(good)]
    if name == "LSTM":
        mentions += [f"hx[{part}] ({'hc'[part]})"]
    assert_same_refusal(
        lambda: getattr(cello.nn, name)(3, 4, 2)(x, state_of(name, shape, good, part)),
        lambda: getattr(nn, checked)(3, 4, 2)(x, state_of(checked, shape, good, part)),
        *mentions,
    )


@pytest.mark.parametrize("name", LAYERS)
def test_a_state_of_another_dtype(name):
    hx = ones(2, 2, 4, dtype=torch.float64)
    hx = (hx, hx) if name == "LSTM" else hx
    assert_both_raise(lambda namespace: getattr(namespace, name)(3, 4, 2)(ones(5, 2, 3), hx))


@pytest.mark.parametrize("name", LAYERS)
def test_too_many_arguments(name):
    assert_both_raise(lambda namespace: getattr(namespace, name)(3, 4)(ones(5, 2, 3), None, None))


ACTIVATIONS = {
    "RNNCell": {"activation": "hardtanh"},
    "LSTMCell": {"activation": "hardtanh"},
    "GRUCell": {"activation": "hardtanh"},
}
BAD_STEPS = {  # for a cell (3, 4): the input, the shape of the state, what the message must mention
    "3D": (ones(1, 2, 3), None, "3D"),
    "0D": (ones(()), None, "0D"),
    "features": (ones(2, 7), None, "7", "3"),
    "features-unbatched": (ones(7), None, "7", "3"),
    "state-batch": (ones(2, 3), (3, 4), "3"),
    "state-batch-of-1": (ones(2, 3), (1, 4), "1"),
    "state-width": (ones(2, 3), (2, 5), "5", "4"),
    "state-3D": (ones(2, 3), (1, 2, 4), "3D"),
    "state-1D": (ones(2, 3), (4,)),
    "state-unbatched-2D": (ones(3), (1, 4)),
    "state-unbatched-width": (ones(3), (5,), "5", "4"),
    "float64": (ones(2, 3, dtype=torch.float64), None),
}


@pytest.mark.parametrize("own_activation", [False, True])
@pytest.mark.parametrize("what", BAD_STEPS)
@pytest.mark.parametrize("name", CELLS)
def test_bad_steps_of_cells(name, what, own_activation):
    x, shape, *mentions = BAD_STEPS[what]
    hx = None if shape is None else ones(shape)
    if hx is not None and name == "LSTMCell":
        hx = (hx, hx)
    ours = getattr(cello.nn, name)(3, 4, **(ACTIVATIONS[name] if own_activation else {}))
    theirs = getattr(nn, name)(3, 4)
    assert_same_refusal(lambda: ours(x, hx), lambda: theirs(x, hx), *mentions)


@pytest.mark.parametrize("part", [0, 1])
def test_one_bad_part_of_a_state_of_lstm_cell(part):
    for shape in [(3, 4), (2, 5), (1, 2, 4)]:
        hx = [ones(2, 4), ones(2, 4)]
        hx[part] = ones(shape)
        for options in ({}, ACTIVATIONS["LSTMCell"]):
            ours, theirs = cello.nn.LSTMCell(3, 4, **options), nn.LSTMCell(3, 4)
            assert_same_refusal(
                lambda ours=ours, hx=hx: ours(ones(2, 3), tuple(hx)),
                lambda theirs=theirs, hx=hx: theirs(ones(2, 3), tuple(hx)),
            )


@pytest.mark.parametrize(
    "options",
    [{"input_size": "3"}, {"hidden_size": 4.5}, {"hidden_size": -1}, {"depth": 2}],
    ids=str,
)
@pytest.mark.parametrize("name", CELLS)
def test_bad_constructor_arguments_of_cells(name, options):
    arguments = {"input_size": 3, "hidden_size": 4} | options
    assert_both_raise(lambda namespace: getattr(namespace, name)(**arguments))


def test_an_unknown_nonlinearity_of_a_cell_is_refused_at_the_first_step():
    assert_both_raise(
        lambda namespace: namespace.RNNCell(3, 4, nonlinearity="sin")(ones(2, 3)), "sin"
    )


@pytest.mark.parametrize("name", ["LSTM", "RNN", "GRU"])
@pytest.mark.parametrize(
    ("options", "error", "mentions"),
    [
        ({"activation": "sine"}, ValueError, ["activation 'sine'", "tanh"]),
        ({"activation": nn.Tanh}, TypeError, ["Tanh()"]),
        ({"activation": 3}, TypeError, ["activation", "int"]),
        ({"merge": "max"}, ValueError, ["merge", "'max'", "concat"]),
        ({"merge": "sum", "bidirectional": False}, ValueError, ["merge", "bidirectional"]),
        ({"reverse": True}, ValueError, ["reverse", "bidirectional"]),
        ({"hidden_size": [4]}, ValueError, ["hidden_size", "2", "1"]),
        ({"hidden_size": [4, 0]}, ValueError, ["hidden_size", "0"]),
        ({"hidden_size": [4, 4.0]}, TypeError, ["hidden_size", "float"]),
        ({"hidden_size": []}, ValueError, ["hidden_size", "0"]),
    ],
    ids=str,
)
def test_bad_options_beyond_torch(name, options, error, mentions):
    arguments = {"input_size": 3, "hidden_size": 4, "num_layers": 2, "bidirectional": True}
    with pytest.raises(error) as raised:
        getattr(cello.nn, name)(**(arguments | options))
    for mention in mentions:
        assert mention in str(raised.value)


@pytest.mark.parametrize(
    ("options", "error", "mentions"),
    [
        ({"gate_activation": "sine"}, ValueError, ["gate_activation 'sine'"]),
        ({"gate_activation": nn.Sigmoid}, TypeError, ["gate_activation", "Sigmoid()"]),
        ({"forget_bias": 1.0, "bias": False}, ValueError, ["forget_bias", "bias=True"]),
        ({"hidden_size": [4, 2], "num_layers": 2, "proj_size": 3}, ValueError, ["proj_size", "2"]),
    ],
    ids=str,
)
def test_bad_options_of_lstm_beyond_torch(options, error, mentions):
    with pytest.raises(error) as raised:
        cello.nn.LSTM(**({"input_size": 3, "hidden_size": 4} | options))
    for mention in mentions:
        assert mention in str(raised.value)


@pytest.mark.parametrize(
    ("options", "error", "mentions"),
    [
        ({"lengths": [5]}, ValueError, ["lengths", "2", "(1,)"]),
        ({"lengths": [[5, 5]]}, ValueError, ["lengths", "(1, 2)"]),
        ({"lengths": [6, 1]}, ValueError, ["lengths", "5", "6"]),
        ({"lengths": [-1, 1]}, ValueError, ["lengths", "-1"]),
        ({"lengths": [2.0, 1.0]}, TypeError, ["lengths", "float"]),
        ({"lengths": "ab"}, TypeError, ["lengths", "integers", "'ab'"]),
        ({"lengths": torch.tensor([True, False])}, TypeError, ["lengths", "bool"]),
        ({"return_states": "every"}, ValueError, ["return_states", "'every'", "all"]),
        ({"return_states": 2}, ValueError, ["return_states", "2"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", LAYERS)
def test_bad_calls_beyond_torch(name, options, error, mentions):
    layer = getattr(cello.nn, name)(3, 4)
    with pytest.raises(error) as raised:
        layer(ones(5, 2, 3), **options)
    for mention in mentions:
        assert mention in str(raised.value)


@pytest.mark.parametrize("x", [ones(5, 3), PACKED], ids=["unbatched", "packed"])
def test_lengths_of_inputs_that_take_none(x):
    with pytest.raises(ValueError, match="lengths"):
        cello.nn.GRU(3, 4)(x, lengths=[2, 2])


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"reverse": True}], ids=str)
def test_step_of_a_layer_that_reads_backward(options):
    with pytest.raises(ValueError, match="forward only"):
        cello.nn.GRU(3, 4, **options).step(ones(2, 3))


def test_states_of_layers_of_different_widths():
    layer = cello.nn.LSTM(3, [4, 5], 2)
    good = [ones(1, 2, 4), ones(1, 2, 5)]
    assert layer(ones(5, 2, 3), (good, good))[0].shape == (5, 2, 5)
    for bad in ([ones(1, 2, 4)], [ones(1, 2, 5), ones(1, 2, 4)], ones(2, 2, 4), [1, 2]):
        with pytest.raises(RuntimeError, match=r"hx\[1\] \(c\)"):
            layer(ones(5, 2, 3), (good, bad))


def test_an_activation_that_changes_the_shape():
    with pytest.raises(RuntimeError, match="size"):
        cello.nn.GRU(3, 4, activation=lambda x: x[:, :2])(ones(5, 2, 3))


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad], ids=["grad", "no grad"])
@pytest.mark.parametrize("name", LAYERS)
def test_tensors_of_several_devices_are_refused_before_their_memory_is_read(name, mode):
    """At a first call, and where a call before has left a plan."""
    layer, x = getattr(cello.nn, name)(3, 4), ones(5, 2, 3)
    state = layer(x)[1]
    away = tuple(s.to("meta") for s in state) if name == "LSTM" else state.to("meta")
    with mode():
        for one in (layer, getattr(cello.nn, name)(3, 4)):
            with pytest.raises(RuntimeError, match=r"hidden tensor .* at meta"):
                one(x, away)
        layer.to("meta")
        for one in (layer, getattr(cello.nn, name)(3, 4, device="meta")):
            with pytest.raises(RuntimeError, match=r"parameter tensor .* at meta"):
                one(x)


@pytest.mark.parametrize("given", [None, (1, 2), [[1.0]], {"x": 1}])
def test_an_input_that_is_no_tensor(given):
    for make in (nn.GRU, cello.nn.GRU):
        with pytest.raises(AttributeError):
            make(3, 4)(given)
    with pytest.raises(AttributeError, match=rf"GRU takes a tensor .* got {type(given).__name__}"):
        cello.nn.GRU(3, 4)(given)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_told_of_lengths(layout):
    rows = [torch.rand(2, 3), torch.rand(4, 3)]
    nested = torch.nested.nested_tensor(rows, layout=layout)
    for layer in (cello.nn.GRU(3, 4), cello.Recurrent(nn.GRUCell(3, 4))):
        with pytest.raises(
            RuntimeError, match=r"takes no nested tensors: pad them.* give lengths="
        ):
            layer(nested)


PACKED = {
    "too few rows": (torch.ones(3, 3), [2, 2]),
    "far too few": (torch.ones(2, 3), [2] * 4000),
    "too many rows": (torch.ones(5, 3), [2, 2]),
    "rising": (torch.ones(3, 3), [1, 2]),
    "far rising": (torch.ones(4001, 3), [1, 4000]),
    "negative": (torch.ones(1, 3), [2, -1]),
    "zero": (torch.ones(2, 3), [2, 0]),
    "none": (torch.ones(0, 3), []),
    "two axes": (torch.ones(4, 3), [[2, 2]]),
    "fractions": (torch.ones(4, 3), [2.0, 2.0]),
    "more indices": (torch.ones(4, 3), [2, 2], [0, 1, 1], [0, 1, 2]),
    "fewer indices": (torch.ones(4, 3), [2, 2], [1], [0]),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_sequences_that_are_not_whole(name):
    """Below Python nothing would stop a kernel from reading what is not there."""
    data, *numbers = PACKED[name]
    packed = PackedSequence(data, *map(torch.tensor, numbers))
    for layer in (
        cello.nn.GRU(3, 4),
        cello.nn.LSTM(3, 4, bidirectional=True),
        cello.Recurrent(nn.GRUCell(3, 4)),
    ):
        with pytest.raises(RuntimeError, match="of a PackedSequence must"):
            layer(packed)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "weight_hh_l1_reverse"])
@pytest.mark.parametrize("wider", [(0, 1), (0, -1), (1, 0)])
def test_matrices_of_another_shape(kind, name, wider):
    layer = getattr(cello.nn, kind)(3, 4, 2, bidirectional=True)
    rows, columns = (n + more for n, more in zip(getattr(layer, name).shape, wider, strict=True))
    setattr(layer, name, nn.Parameter(torch.ones(rows, columns)))
    with pytest.raises(
        RuntimeError, match=rf"{name} must have the shape .* got \({rows}, {columns}\)"
    ):
        layer(torch.randn(5, 2, 3))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_does_not_keep_the_lengths_of_its_example():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = cello.nn.LSTM(3, 4)

        def forward(self, x, lengths):
            return self.layer(x, lengths=lengths)[0]

    class Packed(Padded):
        def forward(self, x, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
            return nn.utils.rnn.pad_packed_sequence(self.layer(packed)[0])[0]

    for kind in (Padded, Packed):
        with pytest.raises(RuntimeError, match=r"torch\.jit\.trace would keep the lengths"):
            torch.jit.trace(kind(), (torch.randn(4, 2, 3), torch.tensor([2, 4])))


def test_an_array_is_no_input_of_a_cell():
    for lib in (nn, cello.nn):
        with pytest.raises(AttributeError):
            lib.GRUCell(3, 4)(np.ones((2, 3), "float32"))
    with pytest.raises(AttributeError, match=r"GRUCell takes a tensor .* got ndarray"):
        cello.nn.GRUCell(3, 4)(np.ones((2, 3), "float32"))
