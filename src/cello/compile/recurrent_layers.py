"""torch's recurrent layers within a step, such as an ``nn.GRU`` over one step, by their equations.

Their own kernels ask where the tensors are, which have no memory while a step is traced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = list[Tensor]
Weights = Sequence[Tensor]

MOST_STEPS = 64
"""Over more steps a trace would be long."""


def _lstm_step(x: Tensor, state: State, weights: Weights) -> State:
    h, c = state
    i, f, g, o = _sums(x, h, weights).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return [F.linear(h, weights[-1]) if len(weights) % 2 else h, c]


def _gru_step(x: Tensor, state: State, weights: Weights) -> State:
    (h,) = state
    of_x, of_h = _products(x, h, weights)
    r, z = (of_x + of_h).chunk(3, -1)[:2]
    n = (of_x.chunk(3, -1)[2] + r.sigmoid() * of_h.chunk(3, -1)[2]).tanh()
    return [n + z.sigmoid() * (h - n)]


def _tanh_step(x: Tensor, state: State, weights: Weights) -> State:
    return [_sums(x, state[0], weights).tanh()]


def _relu_step(x: Tensor, state: State, weights: Weights) -> State:
    return [_sums(x, state[0], weights).relu()]


def _products(x: Tensor, h: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    biases = weights[2:4] if len(weights) > 3 else (None, None)
    return F.linear(x, weights[0], biases[0]), F.linear(h, weights[1], biases[1])


def _sums(x: Tensor, h: Tensor, weights: Weights) -> Tensor:
    of_x, of_h = _products(x, h, weights)
    return of_x + of_h


def _layers(step: Callable[[Tensor, State, Weights], State]) -> Callable[..., Any]:
    """Layers of which each step computes `step`, with the arguments of torch's function."""

    def run(*args: Any) -> Any:
        if len(args) != 9 or not isinstance(args[2], list | tuple):  # packed sequences
            raise NotImplementedError("packed sequences")
        x, hx, params, _, num_layers, dropout, train, bidirectional, batch_first = args
        parts = [hx] if isinstance(hx, Tensor) else list(hx)
        rows = x.transpose(0, 1) if batch_first else x
        directions = 2 if bidirectional else 1
        count = len(params) // (num_layers * directions)
        if len(rows) > MOST_STEPS:
            raise NotImplementedError(f"{len(rows)} steps of a layer of torch")
        finals: list[State] = []
        steps = list(rows.unbind(0))
        for layer in range(num_layers):
            outputs = []
            for direction in range(directions):
                place = layer * directions + direction
                weights = params[place * count : (place + 1) * count]
                state, made = [part[place] for part in parts], []
                for row in reversed(steps) if direction else steps:
                    state = step(row, state, weights)
                    made.append(state[0])
                outputs.append(made[::-1] if direction else made)
                finals.append(state)
            pairs = zip(*outputs, strict=True)
            steps = [torch.cat(pair, -1) if bidirectional else pair[0] for pair in pairs]
            if dropout and train and layer < num_layers - 1:
                steps = list(F.dropout(torch.stack(steps), dropout).unbind(0))
        output = torch.stack(steps, 1 if batch_first else 0)
        return (output, *(torch.stack(part) for part in zip(*finals, strict=True)))

    return run


FUNCTIONS = {
    "lstm": _layers(_lstm_step),
    "gru": _layers(_gru_step),
    "rnn_tanh": _layers(_tanh_step),
    "rnn_relu": _layers(_relu_step),
}
"""For functions of torch.nn what computes the same."""
