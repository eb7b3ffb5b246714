"""Programs as in tutorials on recurrent networks, with their usual sizes: shapes, states, training."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from cases import assert_same, flatten, make_pair
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import cello

D = torch.float64


def test_arguments_of_lstm_and_their_defaults():
    parameters = inspect.signature(cello.nn.LSTM).parameters
    expected = {
        "input_size": inspect.Parameter.empty,
        "hidden_size": inspect.Parameter.empty,
        "num_layers": 1,
        "bias": True,
        "batch_first": False,
        "dropout": 0.0,
        "bidirectional": False,
        "proj_size": 0,
    }
    assert {name: parameters[name].default for name in expected} == expected
    assert list(parameters)[:8] == list(expected)


def test_one_layer_one_direction():
    lstm = cello.nn.LSTM(input_size=28, hidden_size=4, num_layers=1, batch_first=True)
    x = torch.randn(10, 3, 28)
    output, (h, c) = lstm(x)
    assert lstm.weight_ih_l0.shape == (16, 28)
    assert lstm.weight_hh_l0.shape == (16, 4)
    assert output.shape == (10, 3, 4)
    assert h.shape == c.shape == (1, 10, 4)
    second = cello.nn.LSTM(28, 4)
    second.load_state_dict(lstm.state_dict())
    swapped, state = second(x.transpose(0, 1))
    assert swapped.shape == (3, 10, 4)
    assert_same((swapped.transpose(0, 1), state), (output, (h, c)), rtol=1e-5, atol=1e-6)


def test_two_layers_two_directions():
    ours, theirs = make_pair("LSTM", 28, 4, 2, batch_first=True, bidirectional=True)
    h0, c0 = torch.randn(2, 4, 10, 4)
    x = torch.randn(10, 3, 28)
    output, (h, c) = ours(x, (h0, c0))
    assert ours.weight_ih_l0.shape == (16, 28)
    assert ours.weight_hh_l0.shape == (16, 4)
    assert ours.weight_ih_l1.shape == (16, 8)
    assert output.shape == (10, 3, 8)
    assert h.shape == c.shape == (4, 10, 4)
    assert_same((output, (h, c)), theirs(x, (h0, c0)), rtol=1e-5, atol=1e-6)


def test_omitted_initial_states_are_zeros():
    lstm, x = cello.nn.LSTM(28, 4, 2, bidirectional=True, batch_first=True), torch.randn(10, 3, 28)
    zeros = torch.zeros(4, 10, 4)
    assert_same(lstm(x), lstm(x, (zeros, zeros)), rtol=0, atol=0)


def test_directions_are_separated_by_view_and_packed_input_gives_packed_output():
    T, B, H = 7, 3, 5
    lstm, x = cello.nn.LSTM(2, H, 2, bidirectional=True), torch.randn(T, B, 2)
    output, (h, _) = lstm(x)
    parts = output.view(T, B, 2, H)
    last_layer = h.view(2, 2, B, H)[-1]
    assert_same(parts[-1, :, 0], last_layer[0])  # forward ends at the last step
    assert_same(parts[0, :, 1], last_layer[1])  # backward ends at the first
    packed, _ = lstm(pack_padded_sequence(x, [7, 4, 2]))
    assert isinstance(packed, PackedSequence)
    assert packed.batch_sizes.tolist() == [3, 3, 2, 2, 1, 1, 1]


def test_embedding_and_lstm():
    embedding, lstm = nn.Embedding(20, 6), cello.nn.LSTM(6, 5)
    tokens = torch.randint(20, (4, 3))
    output, (h, c) = lstm(embedding(tokens))
    assert output.shape == (4, 3, 5)
    assert torch.equal(output[-1], h[0])
    longer = lstm(embedding(torch.randint(20, (9, 3))))[1]
    assert [part.shape for part in longer] == [h.shape, c.shape] == [(1, 3, 5)] * 2


def test_rnn_of_two_layers():
    rnn = cello.nn.RNN(10, 20, num_layers=2)
    y, h, states = rnn(torch.randn(3, 5, 10), return_states="all")
    assert y.shape == (3, 5, 20)
    assert h.shape == (2, 5, 20)
    assert torch.equal(y, states["h_l1"])  # the last layer at every step
    assert torch.equal(h, torch.stack([states["h_l0"][-1], states["h_l1"][-1]]))


def test_cells_in_a_loop_equal_a_layer():
    cell, layer = cello.nn.RNNCell(10, 20, dtype=D), cello.nn.RNN(10, 20, dtype=D)
    layer.load_state_dict({f"{key}_l0": value for key, value in cell.state_dict().items()})
    x, h, outputs = torch.randn(3, 5, 10, dtype=D), None, []
    for step in x:
        h = cell(step, h)
        assert h.shape == (5, 20)
        outputs.append(h)
    assert_same(layer(x), (torch.stack(outputs), h[None]))


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_bidirectional_lstm_without_nn_lstm(batch_first):
    options = {"batch_first": batch_first, "bidirectional": True, "dropout": 0.5, "dtype": D}
    ours, theirs = make_pair("LSTM", 3, 4, 3, **options)
    assert not any(isinstance(module, nn.RNNBase) for module in ours.modules())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x, hx = torch.randn(5, 5, 3, dtype=D), tuple(torch.randn(2, 6, 5, 4, dtype=D))
    results = []
    for layer in (ours, theirs):
        torch.manual_seed(4)
        results.append(layer(x, hx))
    assert_same(*results)
    with cello.engine("reference"):
        torch.manual_seed(4)
        assert_same(ours(x, hx), results[1])


@pytest.mark.parametrize("which", ["all", "some"])
def test_frozen_parameters(which):
    lstm, head = cello.nn.LSTM(3, 4, 2), nn.Linear(4, 1)
    model = nn.ModuleList([lstm, head])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, parameter in lstm.named_parameters():
        parameter.requires_grad_(which == "some" and "l1" in name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    output = lstm(torch.randn(5, 2, 3))[0]
    assert output.requires_grad == (which == "some")  # no graph, no cost
    head(output).sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
        assert (parameter.grad is None) != parameter.requires_grad, name


class GateByGate(nn.Module):
    """An LSTM cell as in textbooks: two matrices and one bias for each of the four gates."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        for gate in "ifgo":
            for name, shape in [
                ("W", (hidden_size, input_size)),
                ("U", (hidden_size, hidden_size)),
                ("b", (hidden_size,)),
            ]:
                parameter = nn.Parameter(torch.empty(shape, dtype=D))
                bound = 1 / math.sqrt(hidden_size)
                setattr(self, f"{name}_{gate}", nn.init.uniform_(parameter, -bound, bound))

    def gate(self, name, x, h):
        W, U, b = (getattr(self, f"{part}_{name}") for part in "WUb")
        return x @ W.T + h @ U.T + b

    def forward(self, x, state):
        h, c = state
        i, f, o = (torch.sigmoid(self.gate(name, x, h)) for name in "ifo")
        c = f * c + i * torch.tanh(self.gate("g", x, h))
        h = o * torch.tanh(c)
        return h, c


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_a_cell_written_by_hand(num_layers, bidirectional):
    torch.manual_seed(0)
    ours = cello.Recurrent(GateByGate, 3, 4, num_layers, bidirectional=bidirectional)
    theirs = nn.LSTM(3, 4, num_layers, bidirectional=bidirectional, dtype=D)
    with torch.no_grad():
        for place, cell in ours.cells.items():
            for ours_name, name in [("W", "weight_ih"), ("U", "weight_hh"), ("b", "bias_ih")]:
                stacked = torch.cat([getattr(cell, f"{ours_name}_{gate}") for gate in "ifgo"])
                assert stacked.abs().max() <= 0.5
                getattr(theirs, f"{name}_{place}").copy_(stacked)
            getattr(theirs, f"bias_hh_{place}").zero_()
    x = torch.randn(6, 2, 3, dtype=D)
    hx = tuple(torch.randn(2, num_layers * (2 if bidirectional else 1), 2, 4, dtype=D))
    assert_same(ours(x), theirs(x))
    assert_same(ours(x, hx), theirs(x, hx))
    ours(x, hx)[0].sum().backward()
    theirs(x, hx)[0].sum().backward()
    assert_same(ours.cells["l0"].U_f.grad, theirs.weight_hh_l0.grad[4:8])


def trained(layer, head, x, y, loss, steps, lr=0.02):
    """Train on one batch and return the losses."""
    parameters = [*layer.parameters(), *head.parameters()]
    optimizer, losses = torch.optim.Adam(parameters, lr=lr), []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(head(layer(x)[0]), y)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def test_piecewise_linear_functions_train_as_well_as_smooth_ones():
    steps = torch.arange(61) / 4
    series = torch.stack([torch.sin(steps + phase) for phase in range(4)], dim=1)[..., None]
    x, y = series[:-1], series[1:]
    losses = {}
    for kind in ("smooth", "linear"):
        torch.manual_seed(0)
        options = {
            "activation": cello.PiecewiseLinear.hard_tanh(),
            "gate_activation": cello.PiecewiseLinear.hard_sigmoid(),
        }
        layer = cello.nn.LSTM(1, 12, **(options if kind == "linear" else {}))
        losses[kind] = trained(layer, nn.Linear(12, 1), x, y, F.mse_loss, 80)
    for curve in losses.values():
        assert curve[-1] < 0.05 * curve[0]
    assert losses["linear"][-1] < 3 * losses["smooth"][-1]


def test_hidden_and_cell_states_of_all_steps():
    lstm = cello.nn.LSTM(28, 4, batch_first=True)
    x = torch.randn(10, 3, 28)
    output, (h, c), states = lstm(x, return_states=True)
    assert states["h"].shape == states["c"].shape == (10, 3, 4)
    assert torch.equal(states["h"], output)
    assert_same((states["h"][:, -1], states["c"][:, -1]), (h[0], c[0]))
    for t in range(1, 4):
        assert_same(states["c"][:, t - 1], lstm(x[:, :t])[1][1][0], rtol=1e-5, atol=1e-6)


def test_two_nets_one_on_the_reversed_input_equal_a_bidirectional_layer():
    both = cello.nn.LSTM(3, 4, bidirectional=True, dtype=D)
    forward, backward = cello.nn.LSTM(3, 4, dtype=D), cello.nn.LSTM(3, 4, reverse=True, dtype=D)
    state = both.state_dict()
    forward.load_state_dict({k: v for k, v in state.items() if "reverse" not in k})
    backward.load_state_dict(
        {k.removesuffix("_reverse"): v for k, v in state.items() if "reverse" in k}
    )
    x = torch.randn(6, 2, 3, dtype=D)
    expected, (h, c) = both(x)
    parts = [forward(x), backward(x)]
    assert_same(torch.cat([parts[0][0], parts[1][0]], dim=-1), expected)
    assert_same([torch.cat([p[1][k] for p in parts]) for k in range(2)], [h, c])
    forward.load_state_dict(backward.state_dict())
    assert_same(forward(x.flip(0))[0].flip(0), parts[1][0])  # or turn the input by hand


class Sentiment(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.lstm = cello.nn.LSTM(8, 8, batch_first=True, bidirectional=True, **options)
        self.head = nn.Linear(16, 2)

    def forward(self, tokens, lengths):
        _, (h, _) = self.lstm(self.embedding(tokens), lengths=lengths)
        return self.head(torch.cat([h[0], h[1]], dim=1))  # the last states of both directions


@pytest.mark.parametrize(
    "options", [{}, {"activation": "hardtanh", "gate_activation": "hardsigmoid"}], ids=str
)
def test_sentiment_from_the_final_states_of_both_directions(options):
    """Texts of different lengths; a text is good if it holds more of the good words, 0 to 9."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(20, (400, 11), generator=generator)
    lengths = 1 + 2 * torch.randint(2, 6, (400,), generator=generator)
    counted = torch.arange(11) < lengths[:, None]
    label = (((tokens < 10) & counted).sum(1) * 2 > lengths).long()
    torch.manual_seed(0)
    model = Sentiment(**options)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(tokens[:300], lengths[:300]), label[:300]).backward()
        optimizer.step()
    model.eval()
    accuracy = (model(tokens[300:], lengths[300:]).argmax(1) == label[300:]).double().mean()
    assert accuracy >= 0.9


class Series(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = cello.nn.RNN(1, 16, batch_first=True)
        self.head = nn.Linear(16, 1)

    def forward(self, x):
        h0 = torch.zeros(1, x.size(0), 16)
        output, _ = self.rnn(x, h0)
        return self.head(output[:, -1])


def test_a_model_of_a_numeric_series():
    torch.manual_seed(0)
    values = torch.sin(torch.arange(220) / 5)
    x = torch.stack([values[k : k + 20] for k in range(200)])[..., None]
    y = values[20:, None]
    model = Series()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        F.mse_loss(model(x[:150]), y[:150]).backward()
        optimizer.step()
    assert model(x).shape == (200, 1)
    assert F.mse_loss(model(x[150:]), y[150:]).item() < 0.01  # the variance of the series is 0.5


def test_predict_a_time_series_step_by_step():
    """A layer trained on whole sequences continues one step at a time on its own predictions."""
    torch.manual_seed(0)
    series = torch.sin(torch.arange(81) / 4)[:, None, None]
    layer, head = cello.nn.GRU(1, 16), nn.Linear(16, 1)
    trained(layer, head, series[:-1], series[1:], F.mse_loss, 150, lr=0.01)
    with torch.no_grad():
        _, state = layer(series[:60])
        x, predicted = series[60], []
        for _ in range(10):
            output, state = layer.step(x, state)
            x = head(output)
            predicted.append(x)
    assert F.mse_loss(torch.stack(predicted), series[61:71]).item() < 0.05


def test_tag_parts_of_speech():
    """A word's tag depends on the words beside it: the same word after "the" is a noun."""
    torch.manual_seed(0)
    vocabulary = "the dog cat apple book ate read everybody that"
    words = {word: k for k, word in enumerate(vocabulary.split())}
    tags = {"DET": 0, "NN": 1, "V": 2}
    data = [
        ("the dog ate the apple", "DET NN V DET NN"),
        ("everybody read that book", "NN V DET NN"),
        ("the cat read the book", "DET NN V DET NN"),
    ]
    embedding, layer, head = nn.Embedding(9, 6), cello.nn.LSTM(6, 6), nn.Linear(6, 3)
    parameters = [p for m in (embedding, layer, head) for p in m.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    sentences = [torch.tensor([words[w] for w in text.split()]) for text, _ in data]
    targets = [torch.tensor([tags[t] for t in tagged.split()]) for _, tagged in data]
    for _ in range(40):
        for sentence, target in zip(sentences, targets, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(head(layer(embedding(sentence))[0]), target).backward()
            optimizer.step()
    for sentence, target in zip(sentences, targets, strict=True):
        assert torch.equal(head(layer(embedding(sentence))[0]).argmax(-1), target)


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("LSTM", {}, 4 * (3 * 5 + 5 * 5 + 5 + 5)),  # 200: Keras has one bias vector and counts 180
        ("LSTM", {"bias": False}, 4 * (3 * 5 + 5 * 5)),
        ("LSTM", {"bidirectional": True}, 2 * 4 * (3 * 5 + 5 * 5 + 5 + 5)),
        ("LSTM", {"num_layers": 2}, 4 * (3 * 5 + 5 * 5 + 5 + 5) + 4 * (5 * 5 + 5 * 5 + 5 + 5)),
        ("LSTM", {"proj_size": 2}, 4 * (3 * 5 + 2 * 5 + 5 + 5) + 2 * 5),
        ("GRU", {}, 3 * (3 * 5 + 5 * 5 + 5 + 5)),
        ("RNN", {}, 3 * 5 + 5 * 5 + 5 + 5),
    ],
)
def test_count_parameters(name, options, count):
    layer = getattr(cello.nn, name)(3, 5, **options)
    assert sum(p.numel() for p in layer.parameters()) == count


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_the_state_of_every_step(name):
    layer = getattr(cello.nn, name)(3, 5, dtype=D)
    x = torch.randn(6, 2, 3, dtype=D)
    _, _, states = layer(x, return_states=True)
    assert list(states) == (["h", "c"] if name == "LSTM" else ["h"])
    for t in range(6):
        _, final = layer(x[: t + 1])
        assert_same([part[t] for part in states.values()], [part[0] for part in flatten(final)])
