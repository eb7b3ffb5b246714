"""Integers and bools in the state of a cell stay what they are, wherever the state goes."""

import copy
import pickle

import pytest
import torch
from torch import nn

import cello

F, H = 3, 4
X = torch.randn(5, 3, F, generator=torch.Generator().manual_seed(0))
LENGTHS = [5, 0, 2]


class Spikes(nn.Module):
    """A flag of the last spike, which resets the membrane."""

    def __init__(self, features=F):
        super().__init__()
        self.x = nn.Linear(features, H)

    def forward(self, x, state):
        membrane, spiked = state
        membrane = torch.where(spiked.bool(), 0.0, 0.9 * membrane) + self.x(x)
        spiked = membrane > 0.5
        return spiked.to(x.dtype), (membrane, spiked)


class Counts(nn.Module):
    """A counter of steps, and whether their number is odd, in a state that it begins itself."""

    def __init__(self, features=F):
        super().__init__()
        self.cell = nn.GRUCell(features, H)

    def forward(self, x, state=None):
        if state is None:
            one = x.new_zeros(len(x), 1)
            state = x.new_zeros(len(x), H), one.long(), one.bool()
        h, count, odd = state
        h = self.cell(x, h) / (1 + count)
        return h, (h, count + 1, ~odd)  # which no tensor of floats has


class Starts(cello.Cell):
    state_sizes = {"h": H, "odd": 1}  # noqa: RUF012

    def __init__(self, features=F):
        super().__init__()
        self.cell = nn.GRUCell(features, H)

    def initial_state(self, batch_size, *, dtype, device):
        odd = torch.zeros(batch_size, 1, dtype=torch.bool, device=device)
        return torch.zeros(batch_size, H, dtype=dtype, device=device), odd

    def forward(self, x, state):
        h = self.cell(x, state[0])
        return h, (h, ~state[1])


CELLS = {
    "spikes": (Spikes, {"state_size": (H, H)}, (torch.float32, torch.bool)),
    "counts": (Counts, {}, (torch.float32, torch.int64, torch.bool)),
    "starts": (Starts, {}, (torch.float32, torch.bool)),
}


def by_hand(cell, x, zeros, reverse):
    """The output and the final state of one sequence (T, F)."""
    state, outputs = tuple(part[None] for part in zeros), []
    for row in reversed(x) if reverse else x:
        output, state = cell(row[None], state)
        outputs.append(output[0])
    outputs = outputs[::-1] if reverse else outputs
    return (torch.stack(outputs) if outputs else torch.empty(0, H)), [part[0] for part in state]


@pytest.mark.parametrize("engine", [None, "reference"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", CELLS)
@torch.no_grad()
def test_integers_and_bools_stay(name, batch_first, bidirectional, engine):
    make, said, dtypes = CELLS[name]
    torch.manual_seed(0)
    layer = cello.Recurrent(
        make, F, batch_first=batch_first, bidirectional=bidirectional, **said
    ).eval()
    x = X.transpose(0, 1) if batch_first else X
    zeros = [
        torch.zeros(1 if d != torch.float32 and name != "spikes" else H, dtype=d) for d in dtypes
    ]
    packed = nn.utils.rnn.pack_padded_sequence(X[:, [0, 2]], [5, 2])
    with cello.engine(engine):
        _, first, states = layer(x, return_states=True)
        runs = {
            "first": first,
            "states": tuple(states.values()),
            "again": layer(x, first)[1],
            "lengths": layer(x, lengths=LENGTHS)[1],
            "lengths, with a state": layer(x, first, lengths=LENGTHS)[1],
            "no step at all": layer(x, lengths=[0, 0, 0])[1],
            "no step at all, with a state": layer(x, first, lengths=[0, 0, 0])[1],
            "packed": layer(packed)[1],
            "unbatched": layer(X[:, 0])[1],
            "a copy": copy.deepcopy(layer)(x)[1],
            "from a file": pickle.loads(pickle.dumps(layer))(x)[1],
        }
        if not bidirectional:
            state = None
            for row in X:
                _, state = layer.step(row, state)
            runs["steps"] = state
            for part, expected in zip(state, first, strict=True):
                torch.testing.assert_close(part, expected)
        assert {
            how: tuple(part.dtype for part in state) for how, state in runs.items()
        } == dict.fromkeys(runs, dtypes)
        output, finals = layer(X.transpose(0, 1) if batch_first else X, lengths=LENGTHS)
    output = output.transpose(0, 1) if batch_first else output
    for row, (cell, reverse) in enumerate(zip(layer.cells.values(), (False, True), strict=False)):
        for sequence, length in enumerate(LENGTHS):
            rows, expected = by_hand(cell, X[:length, sequence], zeros, reverse)
            columns = slice(row * H, (row + 1) * H)
            torch.testing.assert_close(output[:length, sequence, columns], rows)
            for part, value in zip(finals, expected, strict=True):
                torch.testing.assert_close(part[row, sequence], value)


def test_the_first_hx_says_it():
    def counting(x, state):
        h, count = state
        return 0.9 * h + x, (0.9 * h + x, count + 1)

    zeros = torch.zeros(1, 3, F), torch.zeros(1, 3, F, dtype=torch.int32)
    for said in ({}, {"state_size": {"h": F, "n": F}}):
        layer = cello.Recurrent(counting, **said)
        for state in (layer(X, zeros)[1], layer(X)[1], layer.step(X[0])[1]):
            assert [part.dtype for part in state] == [torch.float32, torch.int32]


def test_a_dtype_with_which_the_next_step_cannot_run():
    class Doubles(nn.Module):
        def __init__(self):
            super().__init__()
            self.x, self.h = nn.Linear(F, H), nn.Linear(H, H)

        def forward(self, x, h):
            return torch.tanh(self.x(x) + self.h(h)).double()

    for said in ({}, {"state_size": H}):
        with pytest.raises(cello.CellError) as caught:
            cello.Recurrent(Doubles(), **said)(X)
        message = str(caught.value)
        assert "'h' went in as torch.float32 and came out as torch.float64" in message
        assert "return torch.tanh(self.x(x) + self.h(h)).double()" in message
        assert "return it as `h.to(x.dtype)`" in message


def _flag(x, state):
    membrane, fired = state
    membrane = (0.9 * membrane + x).masked_fill(fired, 0)  # which takes bools alone
    fired = membrane > 0.5
    return fired.to(x.dtype), (membrane, fired)


def _inverted(x, state):
    h, odd = state
    return 0.9 * h + x, (0.9 * h + x, ~odd)


def _index(x, state):
    h, count = state
    h = 0.9 * h + x * torch.eye(F)[count.squeeze(1) % F]  # an index is an integer
    return h, (h, count + 1)


@pytest.mark.parametrize(
    ("cell", "width", "dtype"),
    [(_flag, F, torch.bool), (_inverted, F, torch.bool), (_index, 1, torch.int64)],
)
def test_a_part_that_must_not_be_a_float(cell, width, dtype):
    layer = cello.Recurrent(cell, state_size=(F, width))
    output, (h, part) = layer(X, lengths=LENGTHS)
    assert part.dtype == dtype
    zeros = torch.zeros(F), torch.zeros(width, dtype=dtype)
    for sequence, length in enumerate(LENGTHS):
        rows, (h_n, part_n) = by_hand(cell, X[:length, sequence], zeros, False)
        if length:
            torch.testing.assert_close(output[:length, sequence], rows)
        torch.testing.assert_close(h[0, sequence], h_n)
        torch.testing.assert_close(part[0, sequence], part_n)
