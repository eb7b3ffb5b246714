"""The equations: what one step of a recurrence computes, with no loop and no device."""

from cello.cells.activations import (
    ACTIVATIONS,
    Activation,
    PiecewiseLinear,
    activation_name,
    changed_activations,
    resolve_activation,
)
from cello.cells.contract import Cell, CellError, Equations, Gate, State, StatePart, Weight, weight
from cello.cells.gru import GRU
from cello.cells.lstm import LSTM
from cello.cells.mgu import MGU
from cello.cells.peephole import PeepholeLSTM
from cello.cells.rnn import RNN

__all__ = [
    "ACTIVATIONS",
    "GRU",
    "LSTM",
    "MGU",
    "RNN",
    "Activation",
    "Cell",
    "CellError",
    "Equations",
    "Gate",
    "PeepholeLSTM",
    "PiecewiseLinear",
    "State",
    "StatePart",
    "Weight",
    "activation_name",
    "changed_activations",
    "resolve_activation",
    "weight",
]
