"""Layers of cells that torch.nn has not, as loops in which every gate is written out by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cases import flatten
from torch import Tensor, nn

Weights = dict[str, Tensor]
Step = Callable[[Weights, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""The new state from the weights, the input and the old state; its first part is the output."""


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def gate(weights: Weights, k: int, width: int, x: Tensor, h: Tensor) -> Tensor:
    """What block k of the rows makes of x and h."""
    rows = slice(k * width, (k + 1) * width)
    total = x @ weights["weight_ih"][rows].T + h @ weights["weight_hh"][rows].T
    for name in ("bias_ih", "bias_hh"):
        if name in weights:
            total = total + weights[name][rows]
    return total


def mgu(weights: Weights, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    (h,) = state
    f = sigmoid(gate(weights, 0, h.shape[1], x, h))
    n = gate(weights, 1, h.shape[1], x, h * f).tanh()
    return (h + f * (n - h),)


def peephole(weights: Weights, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    h, c = state
    width = c.shape[1]
    p_i, p_f, p_o = (weights["weight_ch"][k * width : (k + 1) * width] for k in range(3))
    i = sigmoid(gate(weights, 0, width, x, h) + c * p_i)
    f = sigmoid(gate(weights, 1, width, x, h) + c * p_f)
    new = c * f + i * gate(weights, 2, width, x, h).tanh()
    h = sigmoid(gate(weights, 3, width, x, h) + new * p_o) * new.tanh()
    return h @ weights["weight_hr"].T if "weight_hr" in weights else h, new


def coupled(weights: Weights, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    h, c = state
    width = c.shape[1]
    p_f, p_o = weights["weight_ch"][:width], weights["weight_ch"][width:]
    f = sigmoid(gate(weights, 0, width, x, h) + c * p_f)
    g = gate(weights, 1, width, x, h).tanh()
    new = g + f * (c - g)
    h = sigmoid(gate(weights, 2, width, x, h) + new * p_o) * new.tanh()
    return h @ weights["weight_hr"].T if "weight_hr" in weights else h, new


def layers_by_hand(step: Step, layer: Any, x: Tensor) -> tuple[Tensor, Any]:
    """What layers of a cell return for (T, B, F) from zeros: the output, and the state."""
    named = dict(layer.named_parameters())
    rows, finals = list(x), []
    for depth in range(layer.num_layers):
        halves = []
        for end in ("", "_reverse")[: layer.num_directions]:
            suffix = f"_l{depth}{end}"
            weights = {n.removesuffix(suffix): w for n, w in named.items() if n.endswith(suffix)}
            widths = (layer.proj_size or layer.hidden_size, layer.hidden_size)
            state = tuple(x.new_zeros(x.shape[1], w) for w in widths[: len(layer.state_names)])
            outputs = []
            for row in rows[::-1] if end else rows:
                state = step(weights, row, state)
                outputs.append(state[0])
            halves.append(outputs[::-1] if end else outputs)
            finals.append(state)
        rows = [torch.cat(parts, 1) for parts in zip(*halves, strict=True)]
    state = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
    return torch.stack(rows), state if len(state) > 1 else state[0]


def with_gradients(results: Any, variables: list[Tensor]) -> list[Tensor]:
    """Results, and the gradients of their sum with fixed random weights."""
    found = flatten(results)
    generator = torch.Generator().manual_seed(2)
    seeds = [torch.randn(r.shape, generator=generator, dtype=r.dtype) for r in found]
    return [*found, *torch.autograd.grad(found, variables, seeds)]


def variables_of(layer: nn.Module, x: Tensor) -> list[Tensor]:
    return [x, *layer.parameters()]
