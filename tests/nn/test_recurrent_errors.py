"""What Recurrent refuses, and that the message says what to do."""

import pytest
import torch
from torch import nn

import cello

X = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))


def mixed(features):
    return nn.LSTMCell(features, 6) if features == 4 else nn.GRUCell(features, 6)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: cello.Recurrent(nn.GRUCell(4, 6), dropout="a"), ValueError, "dropout.*'a'"),
        (lambda: cello.Recurrent(nn.GRUCell(4, 6), num_layers="a"), TypeError, "num_layers.*str"),
        (lambda: cello.Recurrent(nn.GRUCell(4, 6), num_layers=0), ValueError, "num_layers.*0"),
        (lambda: cello.Recurrent(nn.GRUCell(4, 6), batch_first=1), TypeError, "batch_first.*int"),
        (lambda: cello.Recurrent(nn.GRUCell(4, 6), num_layers=2), ValueError, "one cell is one"),
        (lambda: cello.Recurrent(nn.GRUCell(4, 6), 4), ValueError, "a cell goes without it"),
        (lambda: cello.Recurrent(nn.GRUCell), ValueError, "the class GRUCell"),
        (lambda: cello.Recurrent(lambda f: f), ValueError, "needs input_size="),
        (lambda: cello.Recurrent(nn.GRUCell, 4), TypeError, "called as cell.4.*hidden_size"),
        (lambda: cello.Recurrent(mixed, 4, 2), TypeError, "as cell.4, 2.*layers is num_layers="),
        (lambda: cello.Recurrent(nn.GRUCell, 4, 6, num_layer=2), TypeError, "argument 'num_layer'"),
        (lambda: cello.Recurrent(nn.GRUCell(4, 6), num_layer=2), TypeError, "argument 'num_layer'"),
        (lambda: cello.Recurrent(nn.GRUCell(4, 6), hidden_size=6), TypeError, "'hidden_size': arg"),
        (lambda: cello.Recurrent(nn.GRUCell, 4, [6, 7]), ValueError, "of the 1 layers, got 2"),
        (lambda: cello.Recurrent(mixed, 0), ValueError, "input_size.*0"),
        (lambda: cello.Recurrent(mixed, 4.0), TypeError, "input_size.*float"),
        (
            lambda: cello.Recurrent(mixed, 4, num_layers=2),
            cello.CellError,
            "one structure.*l1 has a tensor",
        ),
        (lambda: cello.Recurrent(lambda f: 3, 4), cello.CellError, "must return a cell"),
        (
            lambda: cello.Recurrent(lambda f: nn.GRUCell(4, 6), 4, num_layers=2),
            cello.CellError,
            r"in layer 1, which reads 6 features: .* made for input_size=4",
        ),
    ],
)
def test_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_dropout_without_a_second_layer_is_pointed_out():
    with pytest.warns(UserWarning, match="dropout=0.5 and num_layers=1"):
        cello.Recurrent(nn.GRUCell(4, 6), dropout=0.5)


@pytest.mark.parametrize("state_size", [-3, 0, True, 2.0, "h"])
def test_state_size(state_size):
    with pytest.raises(TypeError, match="state_size must be a width above zero"):
        cello.Recurrent(nn.GRUCell(4, 6), state_size=state_size)(X)


@pytest.mark.parametrize("state_size", [None, 6])
def test_an_input_of_another_width_is_blamed(state_size):
    layer = cello.Recurrent(nn.GRUCell(9, 6), state_size=state_size)
    with pytest.raises(cello.CellError, match=r"the input has 4 features .* input_size=9"):
        layer(X)


def test_a_cell_without_a_state():
    class Stateless(cello.Cell):
        state_sizes = {}  # noqa: RUF012

        def forward(self, x, state):
            return x, state

    with pytest.raises(cello.CellError, match="state_sizes are empty"):
        cello.Recurrent(Stateless())(X)


class Clamped(nn.Module):
    """Its start is a parameter, which one step on large inputs does not show."""

    def __init__(self, start):
        super().__init__()
        self.h0 = nn.Parameter(torch.full((4,), start))

    def forward(self, x, h=None):
        h = self.h0.expand(len(x), -1) if h is None else h
        return (h + 10 * x).clamp(-1, 1)


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_a_learned_start_is_not_taken_for_zero(start):
    layer = cello.Recurrent(Clamped(start))
    with pytest.raises(cello.CellError, match="learned or not zero"):
        layer(X, lengths=[3, 0, 2])
    _, h_n = layer(X, torch.full((1, 3, 4), 0.5), lengths=[3, 0, 2])
    assert torch.equal(h_n[0, 1], torch.full((4,), 0.5))


def test_a_cell_may_hold_a_layer_that_was_not_called_yet():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = cello.Recurrent(nn.GRUCell(4, 6))

        def forward(self, x, h):
            return self.inner.step(x, h[None])[1][0]

    outer = Outer()
    output, _ = cello.Recurrent(outer, state_size=6)(X)
    expected, _ = cello.Recurrent(outer.inner.cells["l0"])(X)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize(
    "cell",
    [
        lambda x, h: h.mul_(0.5).add_(x),
        lambda x, h: (h + x.mul_(2), h.clone()),
        lambda x, h: torch.cat([h[:, :1].zero_(), x[:, 1:]], 1),
    ],
)
def test_writing_in_place_is_refused(cell):
    before = X.clone()
    with pytest.raises(cello.CellError, match="in place"):
        cello.Recurrent(cell, state_size=4)(X)
    assert torch.equal(X, before)


class Sum(nn.Module):
    """Takes a state of one width, which nothing but a step tells."""

    def __init__(self, features=4, hidden=6):
        super().__init__()
        self.read = nn.Linear(features, hidden)

    def forward(self, x, h):
        return torch.tanh(self.read(x) + h)


@pytest.mark.parametrize(
    ("cell", "wrong", "message"),
    [
        (nn.GRUCell(4, 6), 5, r"state_size: GRUCell takes the state 6, got 5"),
        (nn.LSTMCell(4, 6), 6, r"state_size: LSTMCell takes the state \(6, 6\), got 6"),
        (nn.LSTMCell(4, 6), (6, 6, 6), r"takes the state \(6, 6\), got \(6, 6, 6\)"),
        (Sum(), 5, r"state_size: Sum takes the state 6, got 5"),
    ],
)
def test_a_wrong_state_size_is_blamed_and_not_the_cell(cell, wrong, message):
    with pytest.raises(cello.CellError, match=message):
        cello.Recurrent(cell, state_size=wrong)(X)
    with pytest.raises(cello.CellError, match=message):
        cello.Recurrent(type(cell), 4, 6, state_size=wrong)


@pytest.mark.parametrize(
    ("cell", "widths", "message"),
    [
        (nn.GRUCell(4, 6), [5], r"Expected hx size \(1, 3, 6\), got \(1, 3, 5\)"),
        (nn.LSTMCell(4, 6), [6, 5], r"Expected hx\[1\] \(c\) size \(1, 3, 6\), got \(1, 3, 5\)"),
        (nn.LSTMCell(4, 6), [6], r"hx: expected \(a tensor, a tensor\)"),
        (Sum(), [5], r"Expected hx size \(1, 3, 6\), got \(1, 3, 5\)"),
    ],
)
def test_a_wrong_hx_of_a_first_call_is_blamed_and_not_the_cell(cell, widths, message):
    hx = tuple(torch.zeros(1, 3, width) for width in widths)
    layer = cello.Recurrent(cell)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            layer(X, hx if len(hx) > 1 else hx[0])
    assert layer(X)[0].shape == (*X.shape[:2], 6)


def test_a_step_on_a_whole_sequence_is_told_to_call_the_layer():
    known = cello.Recurrent(nn.GRUCell, 4, 6)
    for layer in (cello.nn.GRU(4, 6), cello.nn.LSTM(4, 6, batch_first=True), known):
        with pytest.raises(
            ValueError, match=r"got \(\d+, 3, 4\): to run a whole sequence call the layer"
        ):
            layer.step(X)
        with pytest.raises(TypeError, match="step takes a tensor"):
            layer.step([1.0])
    for cell in (nn.GRUCell(4, 6), Sum()):  # which do not know yet what an input is
        with pytest.raises(cello.CellError, match="to run a whole sequence call the layer"):
            cello.Recurrent(cell).step(X)


def test_a_hidden_size_says_how_wide_a_state_is():
    class Free(nn.Module):
        """Any width would do."""

        def forward(self, x, h):
            return torch.tanh(0.5 * h + x.sum(1, keepdim=True))

    class Half(Free):
        """Of its second part any width would do, which nobody has said."""

        def forward(self, x, state):
            h, n = state
            return h, (super().forward(x, h) + n.sum(1, keepdim=True), n)

    layer = cello.Recurrent(lambda features, hidden: Free(), 4, 6, num_layers=2)
    assert layer(X)[0].shape == (*X.shape[:2], 6)
    layer = cello.Recurrent(lambda features, hidden: Free(), 4, [6, 5], num_layers=2)
    assert layer(X)[0].shape == (*X.shape[:2], 5)
    with pytest.raises(cello.CellError, match="cannot find out how wide"):
        cello.Recurrent(Free())(X)
    with pytest.raises(cello.CellError, match="cannot find out how wide"):
        cello.Recurrent(lambda features, hidden: Half(), 4, 6)


def test_two_parts_of_the_state_may_have_one_width():
    """Which it is, nothing of the step tells."""

    def skip(x, state):
        h, update, total = state
        total = update + total + 1
        h = torch.tanh(x + h / total)
        return h, (h, total, total * 0.5)

    with pytest.raises(cello.CellError, match=r"find out how wide .* fits as well as 1"):
        cello.Recurrent(skip)(X)
    width = X.shape[-1]
    _, state = cello.Recurrent(skip, state_size=(width, 1, 1))(X)
    assert [part.shape[-1] for part in state] == [width, 1, 1]


@pytest.mark.parametrize("merge", ["sum", "mean", "mul"])
def test_directions_with_outputs_of_other_widths_are_not_merged(merge):
    """Torch would broadcast outputs of one number."""

    class Head(nn.Module):
        def __init__(self, features, width):
            super().__init__()
            self.cell, self.out = nn.GRUCell(features, 4), nn.Linear(4, width)

        def forward(self, x, h):
            h = self.cell(x, h)
            return self.out(h), h

    def make(merge):
        widths = iter([1, 5])
        return cello.Recurrent(
            lambda features: Head(features, next(widths)), 3, bidirectional=True, merge=merge
        )

    with pytest.raises(cello.CellError, match=r"outputs, .* same shape.*\(1,\) and \(5,\)"):
        make(merge)
    assert make("concat")(torch.randn(4, 2, 3))[0].shape == (4, 2, 6)


def test_directions_with_states_of_other_widths():
    widths = iter([1, 5])
    with pytest.raises(cello.CellError, match=r"states of the same shape for the two directions"):
        cello.Recurrent(lambda f: nn.GRUCell(f, next(widths)), 3, bidirectional=True)
