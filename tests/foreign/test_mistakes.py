"""A mistake in a cell: its author sees the own error of the cell, its line and the shapes there."""

from __future__ import annotations

import inspect
import traceback

import numpy as np
import pytest
import torch
from torch import nn

import cello

F, H = 28, 20
X = torch.randn(7, 3, F, generator=torch.Generator().manual_seed(0))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.n = nn.Linear(F + H, H), nn.Linear(F + H, H)


class WrongProduct(Gated):
    def forward(self, x, h):
        f = torch.sigmoid(self.f(torch.cat([x, h], 1)))
        return f * h + (1 - f) * torch.tanh(self.n(h))  # here


class WrongSum(Gated):
    def forward(self, x, h):
        f = torch.sigmoid(self.f(torch.cat([x, h], 1)))
        return f * x + (1 - f) * h  # here


class WrongProductOfTwo(Gated):
    def forward(self, x, state):
        h, c = state
        f = torch.sigmoid(self.f(torch.cat([x, h], 1)))
        c = f * c + (1 - f) * self.n(c)  # here
        return torch.tanh(c), c


class WrongInAHelper(Gated):
    def forward(self, x, h):
        return torch.tanh(self.gate(torch.cat([x, h], 1)))

    def gate(self, both):
        return self.f(both) @ self.n.weight.T  # here


class WrongWithoutAState(Gated):
    def forward(self, x, h=None):
        if h is None:
            h = x.new_zeros(len(x), H)
        return torch.tanh(self.f(h))  # here


class WrongOnceItHasAState(Gated):
    def forward(self, x, h=None):
        if h is None:
            return x.new_zeros(len(x), H)
        return torch.tanh(self.f(h))  # here


class UnknownName(Gated):
    def forward(self, x, h):
        return torch.tanh(self.f(torch.cat([x, h], 1))) * gamma  # noqa: F821  # here


class UnknownAttribute(Gated):
    def forward(self, x, h):
        return torch.tanh(self.forget(torch.cat([x, h], 1)))  # here


class WrongCall(Gated):
    def forward(self, x, h):
        return self.gate(torch.cat([x, h], 1), 1)  # here

    def gate(self, both):
        return self.f(both)


class WrongDtype(Gated):
    def forward(self, x, h):
        return torch.tanh(self.f(torch.cat([x, h], 1).double()))  # here


class OfTheContract(Gated, cello.Cell):
    state_sizes = {"h": H}  # noqa: RUF012

    def forward(self, x, state):
        (h,) = state
        h = torch.tanh(self.f(x))  # here
        return h, (h,)


class WrongWithHiddenSize(Gated):
    hidden_size = H

    def forward(self, x, h):
        return torch.tanh(self.f(h))  # here


RAISING = [
    (WrongWithHiddenSize, "RuntimeError: mat1 and mat2 shapes", "x (1, 28), h (1, 20)"),
    (WrongProduct, "RuntimeError: mat1 and mat2 shapes", "x (1, 28), h (1, 20), f (1, 20)"),
    (WrongSum, "RuntimeError: The size of tensor a (20) must", "x (1, 28), h (1, 20), f (1, 20)"),
    (
        WrongProductOfTwo,
        "RuntimeError: mat1 and mat2 shapes",
        "x (1, 28), state ((1, 20), (1, 20)), h (1, 20), c (1, 20), f (1, 20)",
    ),
    (WrongInAHelper, "RuntimeError: mat1 and mat2 shapes", "both (1, 48)"),
    (WrongWithoutAState, "RuntimeError: mat1 and mat2 shapes", "x (1, 28), h (1, 20)"),
    (WrongOnceItHasAState, "RuntimeError: mat1 and mat2 shapes", "x (1, 28), h (1, 20)"),
    (UnknownName, "NameError: name 'gamma' is not defined", "x (1, 28), h (1, 20)"),
    (UnknownAttribute, "AttributeError: 'UnknownAttribute' object has no", "x (1, 28), h "),
    (WrongCall, "TypeError: WrongCall.gate() takes 2 positional", "x (1, 28), h (1, 20)"),
    (WrongDtype, "RuntimeError: mat1 and mat2 must have the same dtype", "x (1, 28), h (1, 20)"),
    (OfTheContract, "RuntimeError: mat1 and mat2 shapes", "x (1, 28), state ((1, 20),), h (1, 20)"),
]


def line_of(cell: type) -> tuple[int, str, str]:
    """The line of a cell that is marked, with its number and its function."""
    lines, first = inspect.getsourcelines(cell)
    (at,) = [k for k, line in enumerate(lines) if line.endswith("# here\n")]
    name = [line.split("(")[0].split()[1] for line in lines[:at] if line.strip()[:4] == "def "][-1]
    return first + at, lines[at].strip(), name


def refused(cell: nn.Module, **said: object) -> cello.CellError:
    with pytest.raises(cello.CellError) as caught:
        cello.Recurrent(cell, **said)(X)
    assert caught.type is cello.CellError
    return caught.value


@pytest.mark.parametrize(("cell", "told", "shapes"), RAISING, ids=[c.__name__ for c, *_ in RAISING])
@pytest.mark.parametrize("said", [{}, {"state_size": H}], ids=["found", "said"])
def test_the_own_error_of_a_cell_comes_first(cell, told, shapes, said):
    if said and cell is WrongProductOfTwo:
        said = {"state_size": (H, H)}
    error = refused(cell(), **said)
    number, line, function = line_of(cell)
    first, place, code, there = str(error).splitlines()[:4]
    assert first.startswith(f"{cell.__name__} raised {told}")
    assert place == f"  test_mistakes.py:{number}, in {function}"
    assert code.strip() == line
    assert there.startswith(f"  where the shapes are: {shapes}")
    if cell not in (WrongCall, WrongDtype):  # which any state of that width would have raised
        assert "state_size" not in str(error)
    # The traceback begins with that of the cell, without the way there through Cello.
    assert type(error.__cause__).__name__ in told
    frames = traceback.extract_tb(error.__cause__.__traceback__)
    assert [f.name for f in frames if f.filename == __file__][-1] == function
    assert not any("cello" in frame.filename.rsplit("/src/", 1)[-1] for frame in frames)


def test_a_nested_state_is_asked_for():
    class Nested(Gated):
        def forward(self, x, state):
            (h, c), m = state
            return self.f(x), ((h, c), m)

    error = refused(Nested())
    assert "not enough values to unpack" in str(error)
    assert "Cello guessed that state" in str(error)
    assert "Say it with state_size=" in str(error)


def test_without_hidden_size_the_state_that_comes_furthest_is_shown():
    """Of widths 20, 28 and 48 the first product takes 20 alone, so the second one is the mistake."""
    error = str(refused(WrongProduct()))
    assert "and as its state a tensor (1, 20)" in error
    assert "1x20 and 48x20" in error


def returning(make):
    class Returns(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTMCell(F, H), nn.Linear(H, 5)

        def forward(self, x, state):
            h, c = self.cell(x, state)
            return make(self.head(h), h, c)

    return Returns()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda y, h, c: None, "it returned None. Is the line with `return` missing?"),
        (
            lambda y, h, c: y,
            "(1, 5). Does it return its output alone? Write `return output, state`",
        ),
        (
            lambda y, h, c: ((h, c), y),
            "(1, 5)). Are the two exchanged? Write `return output, state`",
        ),
        (lambda y, h, c: (y, h, c), "Put the state in brackets: `return output, (h, c)`"),
        (lambda y, h, c: [(h, c)], "Write `return state`, without brackets around it"),
        (lambda y, h, c: {"h": h}, "it returned {'h': a tensor (1, "),
    ],
)
@pytest.mark.parametrize("said", [{}, {"state_size": (H, H)}], ids=["found", "said"])
def test_what_is_returned_wrongly(make, message, said):
    assert message in str(refused(returning(make), **said))


def test_an_output_and_a_tensor_exchanged():
    class Exchanged(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.GRUCell(F, H), nn.Linear(H, 5)

        def forward(self, x, h):
            h = self.cell(x, h)
            return h, self.head(h)

    for said in ({}, {"state_size": H}):
        message = str(refused(Exchanged(), **said))
        assert "came out as a tensor (1, 5)" in message
        assert "Are the two exchanged?" in message


def test_a_method_without_self():
    class Bare(nn.Module):
        def forward(x, h):  # noqa: N805
            return h

    assert "its first parameter is 'x': is `self` missing?" in str(refused(Bare()))


def test_what_cannot_be_done_without_numbers_is_done_on_numbers(capsys):
    class Shows(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRUCell(F, H)

        def forward(self, x, h):
            h = self.cell(x, h)
            print(f"{h.mean():.3f}", len(h.tolist()), np.asarray(h.detach()).shape)
            return h

    cell = Shows()
    output, _ = cello.Recurrent(cell)(X)
    printed = capsys.readouterr().out.splitlines()
    expected, _ = cello.Recurrent(cell.cell)(X)
    torch.testing.assert_close(output, expected)
    assert [line.split()[0] for line in printed[-7:]] == [f"{h.mean():.3f}" for h in expected]


@pytest.mark.parametrize("state_size", [None, H, torch.Size([1, H])], ids=str)
def test_a_state_of_layers_with_the_batch_in_the_middle(state_size: object):
    """The decoders of tutorials hand their state to a layer of torch's: the hint says what to write."""

    class Decoder(nn.Module):
        def __init__(self, turns: bool):
            super().__init__()
            self.gru, self.turns = nn.GRU(F, H), turns

        def turned(self, hidden):
            return hidden.transpose(0, 1).contiguous() if self.turns else hidden

        def forward(self, x, hidden):
            out, hidden = self.gru(x.unsqueeze(0), self.turned(hidden))
            return out.squeeze(0), self.turned(hidden)

    said = {} if state_size is None else {"state_size": state_size}
    message = str(refused(Decoder(turns=False), **said))
    assert (
        "A state has its batch first in Cello, (B, layers, H), and in torch's layers second"
        in message
    )
    decoder = Decoder(turns=True)
    layer = cello.Recurrent(decoder, state_size=torch.Size([1, H]))
    torch.testing.assert_close(layer(X)[0], decoder.gru(X)[0])
