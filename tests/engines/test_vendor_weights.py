"""What the vendor engine hands to torch's kernels: weights laid out for cuDNN, packed input cut."""

import pytest
import torch
import torch.backends.cudnn.rnn
from cases import Case, distance, values_and_gradients
from torch import nn

import cello
from cello.engines import vendor

OPTIONS = [
    ("LSTM", {}),
    ("LSTM", {"bias": False}),
    ("LSTM", {"proj_size": 3}),
    ("LSTM", {"proj_size": 3, "bias": False, "bidirectional": True}),
    ("LSTM", {"bidirectional": True, "batch_first": True}),
    ("GRU", {"bidirectional": True}),
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu", "batch_first": True}),
]


@pytest.fixture
def flattened(monkeypatch):
    """Make torch believe that every tensor is on a GPU; collect what it would lay out for cuDNN."""
    calls = []
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "is_acceptable", lambda tensor: True)
    monkeypatch.setattr(torch.backends.cudnn.rnn, "get_cudnn_mode", lambda mode: mode)
    monkeypatch.setattr(torch, "_use_cudnn_rnn_flatten_weight", lambda: True)
    monkeypatch.setattr(
        torch, "_cudnn_rnn_flatten_weight", lambda *arguments: calls.append(arguments)
    )
    return calls


def described(arguments):
    weights, *others = arguments
    return [tuple(weight.shape) for weight in weights], others


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_one_layer_is_laid_out_as_by_torch(flattened, name, options):
    getattr(nn, name)(5, 4, 1, **options)
    getattr(cello.nn, name)(5, 4, 1, **options)
    expected, *got = flattened
    assert len(got) == 1
    assert described(got[0]) == described(expected)
    assert [type(a) for a in got[0][1:]] == [type(a) for a in expected[1:]]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_each_of_several_layers_is_laid_out_as_one_layer_of_torch(flattened, name, options):
    """Cello calls the kernel once for each layer, so each layer has a block of its own."""
    layer = getattr(cello.nn, name)(5, 4, 3, **options)
    got = list(flattened)
    flattened.clear()
    width = options.get("proj_size", 4) * (2 if options.get("bidirectional") else 1)
    for features in (5, width, width):
        getattr(nn, name)(features, 4, 1, **options)
    assert [described(a) for a in got] == [described(a) for a in flattened]
    parameters = [weight for weights, *_ in got for weight in weights]
    assert all(a is b for a, b in zip(parameters, layer.parameters(), strict=True))


def test_every_move_lays_the_weights_out_again(flattened):
    layer = cello.nn.LSTM(5, [4, 3], 2)
    flattened.clear()
    layer.double()
    layer.flatten_parameters()
    sizes = [(arguments[2], arguments[4]) for arguments in flattened]
    assert sizes == [(5, 4), (4, 3)] * 2
    assert {weight.dtype for weights, *_ in flattened for weight in weights} == {torch.float64}


def test_weights_that_cudnn_cannot_take_stay_where_they_are(flattened):
    for change in (
        lambda layer: setattr(layer, "weight_hh_l0_reverse", layer.weight_hh_l0),  # shared
        lambda layer: setattr(layer, "bias_hh_l0", nn.Parameter(layer.bias_hh_l0.double())),
        lambda layer: nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0"),
    ):
        layer = cello.nn.LSTM(5, 4, bidirectional=True)
        change(layer)
        flattened.clear()
        layer.flatten_parameters()
        assert flattened == []


def test_weights_on_the_cpu_stay_where_they_are():
    layer = cello.nn.LSTM(5, 4)
    before = [p.data_ptr() for p in layer.parameters()]
    layer.flatten_parameters()
    assert [p.data_ptr() for p in layer.parameters()] == before


# Packed LSTMs on the CPU


@pytest.fixture
def spans(monkeypatch):
    """Run on the vendor engine; collect the batch sizes of each packed sequence that it cut."""
    calls, original = [], vendor._run_spans

    def run(sequence, direction):
        calls.append(sequence.batch_sizes)
        return original(sequence, direction)

    monkeypatch.setattr(vendor, "_run_spans", run)
    with cello.engine("vendor"):
        yield calls


def packed_case(**options):
    return Case("LSTM", **({"form": "unsorted", "steps": 40, "batch_size": 4} | options))


@pytest.mark.parametrize("has_state", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", ["packed", "unsorted"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_spans_are_as_accurate_as_torch(spans, num_layers, bidirectional, form, bias, has_state):
    case = packed_case(
        num_layers=num_layers,
        bidirectional=bidirectional,
        form=form,
        bias=bias,
        has_state=has_state,
    )
    inputs = case.inputs(torch.float32)
    doubles = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    truth = values_and_gradients(case, case.make(nn, torch.float32).double(), doubles)
    theirs = values_and_gradients(case, case.make(nn, torch.float32), inputs)
    ours = values_and_gradients(case, case.make(cello.nn, torch.float32), inputs)
    assert len(spans) == num_layers * (2 if bidirectional else 1)
    for name, reference in truth.items():
        allowed = 2 * max(distance(theirs[name], reference), 4 * torch.finfo(torch.float32).eps)
        assert distance(ours[name], reference) <= allowed, name


@pytest.mark.parametrize("lengths", [[40, 0, 40, 13], [0, 25, 0, 24], [13, 40, 13, 1]], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_spans_with_lengths(spans, bidirectional, lengths):
    """Each row equals torch.nn.LSTM in float64 on that row alone; a length of 0 keeps its state."""
    torch.manual_seed(0)
    ours = cello.nn.LSTM(3, 8, 2, bidirectional=bidirectional)
    theirs = nn.LSTM(3, 8, 2, bidirectional=bidirectional, dtype=torch.float64)
    theirs.load_state_dict({key: value.double() for key, value in ours.state_dict().items()})
    x, rows = torch.randn(40, 4, 3, requires_grad=True), 4 if bidirectional else 2
    h, c = torch.randn(2, rows, 4, 8).requires_grad_()
    output, (h_n, c_n) = ours(x, (h, c), lengths=lengths)
    assert spans
    weights = torch.randn(40, 1, output.shape[-1])
    total = (output * weights).sum() + (h_n - c_n).pow(2).sum()
    leaves = [x, h, c]
    gradients = torch.autograd.grad(total, [*leaves, *ours.parameters()])
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    total = torch.zeros((), dtype=torch.float64)
    for row, length in enumerate(lengths):
        state = exact[1][:, row : row + 1], exact[2][:, row : row + 1]
        if length:
            expected, state = theirs(exact[0][:length, row : row + 1], state)
            assert distance(output[:length, row : row + 1], expected) < 1e-5
            total = total + (expected * weights[:length]).sum()
        assert not output[length:, row].any()
        assert distance(h_n[:, row : row + 1], state[0]) < 1e-5
        assert distance(c_n[:, row : row + 1], state[1]) < 1e-5
        total = total + (state[0] - state[1]).pow(2).sum()
    expected = torch.autograd.grad(total, [*exact, *theirs.parameters()])
    for got, reference in zip(gradients, expected, strict=True):
        assert distance(got, reference) < 1e-5


def test_spans_continue_from_one_call_to_the_next(spans):
    """The graph may be walked through the state that a cut sequence returned."""
    layer = cello.nn.LSTM(3, 4)
    x = torch.randn(24, 2, 3)
    _, state = layer(x, lengths=[24, 12])
    again, _ = layer(x, state, lengths=[24, 12])
    again.sum().backward()
    assert len(spans) == 2
    once = layer.weight_hh_l0.grad.clone()
    layer.zero_grad()
    double = nn.LSTM(3, 4, dtype=torch.float64)
    double.load_state_dict({key: value.double() for key, value in layer.state_dict().items()})
    packed = nn.utils.rnn.pack_padded_sequence(x.double(), [24, 12])
    _, hx = double(packed)
    double(packed, hx)[0].data.sum().backward()
    assert distance(once, double.weight_hh_l0.grad) < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"lengths": [40, 40]},  # dense
        {"lengths": [3, 2]},  # too few steps for each change of the batch
        {"lengths": [40, 20], "dtype": torch.float64},
        {"lengths": [40, 20], "name": "GRU"},
        {"lengths": [40, 20], "proj_size": 2},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_what_is_not_cut(spans, options):
    options = {"name": "LSTM", "dtype": torch.float32} | options
    lengths, name = options.pop("lengths"), options.pop("name")
    layer = getattr(cello.nn, name)(3, 4, **options)
    layer(torch.zeros(max(lengths), 2, 3, dtype=options["dtype"]), lengths=lengths)
    assert spans == []


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
def test_nothing_is_cut_without_onednn(spans):
    layer, x = cello.nn.LSTM(3, 4), torch.randn(40, 2, 3)
    cut = layer(x, lengths=[40, 20])[0]
    assert len(spans) == 1
    with torch.backends.mkldnn.flags(enabled=False):
        whole = layer(x, lengths=[40, 20])[0]
    assert len(spans) == 1
    assert distance(cut, whole) < 1e-6
