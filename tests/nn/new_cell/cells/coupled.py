"""Step 1: the equations, in a file of ``cello/cells``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cello.cells.activations import Activation
from cello.cells.contract import Equations, Gate, State, StatePart, weight


class Coupled(Equations):
    """An LSTM with peepholes that lets in what it forgets, i = 1 - f (Greff et al., 2017)."""

    weight_ih: Tensor = weight("input weights", "G*H", "F")
    weight_hh: Tensor = weight("recurrent weights", "G*H", "P")
    weight_ch: Tensor = weight("peepholes", "2*H")
    bias_ih: Tensor | None = weight("biases", "G*H", default=None)
    bias_hh: Tensor | None = weight("biases", "G*H", default=None)
    weight_hr: Tensor | None = weight("projection", "P", "H", default=None)
    activation: Activation = torch.tanh
    gate_activation: Activation = torch.sigmoid

    gates = (
        Gate("f", "forget gate", "gate_activation"),
        Gate("g", "candidate", "activation"),
        Gate("o", "output gate", "gate_activation"),
    )
    state = (StatePart("h", "hidden state", "P"), StatePart("c", "cell state", "H"))

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h, c = state
        sums = F.linear(x, self.weight_ih, self.bias_ih) + F.linear(h, self.weight_hh, self.bias_hh)
        f, g, o = sums.chunk(3, dim=-1)
        p_f, p_o = self.weight_ch.chunk(2)
        f = self.gate_activation(f + p_f * c)
        g = self.activation(g)
        c = f * c + (1 - f) * g
        o = self.gate_activation(o + p_o * c)
        h = o * self.activation(c)
        if self.weight_hr is not None:
            h = F.linear(h, self.weight_hr)
        return h, (h, c)
