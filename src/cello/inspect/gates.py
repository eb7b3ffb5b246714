"""The gates of torch's cells."""

from __future__ import annotations

from cello.cells import GRU, LSTM, RNN, Cell, activation_name
from cello.inspect.shapes import Gate

GATES: dict[type[Cell], tuple[tuple[str, str, str], ...]] = {
    LSTM: (
        ("i", "input gate", "gate_activation"),
        ("f", "forget gate", "gate_activation"),
        ("g", "candidate", "activation"),
        ("o", "output gate", "gate_activation"),
    ),
    GRU: (
        ("r", "reset gate", "gate_activation"),
        ("z", "update gate", "gate_activation"),
        ("n", "candidate", "activation"),
    ),
    RNN: (("h", "new state", "activation"),),
}
"""The blocks of rows of torch's cells: name, meaning, and which of the cell's functions makes it."""


def gates_of(cell: Cell) -> tuple[Gate, ...]:
    """Return the gates of one of torch's cells in the order of their rows; of other cells none."""
    gates = GATES.get(type(cell), ())
    ends = ["0", "H", *(f"{k}*H" for k in range(2, len(gates) + 1))]
    return tuple(
        Gate(name, meaning, activation_name(getattr(cell, function)), f"{ends[k]}:{ends[k + 1]}")
        for k, (name, meaning, function) in enumerate(gates)
    )
