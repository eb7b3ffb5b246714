"""The long short-term memory cell with peepholes (Gers and Schmidhuber, 2000)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cello.cells.activations import Activation
from cello.cells.contract import Equations, State, weight
from cello.cells.lstm import LSTM


class PeepholeLSTM(Equations):
    r"""The LSTM recurrence whose gates see the cell state, unit by unit.

    .. math::
        i &= \sigma(W_{ii} x + b_{ii} + W_{hi} h + b_{hi} + p_i \odot c) \\
        f &= \sigma(W_{if} x + b_{if} + W_{hf} h + b_{hf} + p_f \odot c) \\
        g &= \phi(W_{ig} x + b_{ig} + W_{hg} h + b_{hg}) \\
        c' &= f \odot c + i \odot g \\
        o &= \sigma(W_{io} x + b_{io} + W_{ho} h + b_{ho} + p_o \odot c') \\
        h' &= o \odot \phi(c')

    The gates lie in the order i, f, g, o along the rows of the weights (G = 4), the peepholes in the
    order i, f, o. With a projection, :math:`h' = W_{hr} (o \odot \phi(c'))` is P wide while c stays H
    wide.

    Args:
        weight_ih: (G*H, F).
        weight_hh: (G*H, H), or (G*H, P) with a projection.
        weight_ch: the peepholes :math:`p_i`, :math:`p_f` and :math:`p_o`, (3*H,).
        bias_ih: (G*H,), or ``None``.
        bias_hh: (G*H,), or ``None``.
        weight_hr: :math:`W_{hr}`, (P, H), or ``None`` for no projection.
        activation: :math:`\phi`, for the candidate g and the output.
        gate_activation: :math:`\sigma`, for the gates i, f and o.

    Reference: F. Gers and J. Schmidhuber, "Recurrent nets that time and count", IJCNN (2000).

    Example:
        >>> zeros, peepholes = torch.zeros(4, 1), torch.tensor([0.0, 100.0, 0.0])
        >>> cell = PeepholeLSTM(zeros, zeros, peepholes)
        >>> output, (h, c) = cell(torch.ones(1, 1), (torch.zeros(1, 1), torch.ones(1, 1)))
        >>> c  # f = sigmoid(100) = 1 keeps c, where without its peephole it would be 1/2
        tensor([[1.]])
    """

    weight_ih: Tensor = weight("input weights", "G*H", "F")
    weight_hh: Tensor = weight("recurrent weights", "G*H", "P")
    weight_ch: Tensor = weight("peepholes", "3*H")
    bias_ih: Tensor | None = weight("biases", "G*H", default=None)
    bias_hh: Tensor | None = weight("biases", "G*H", default=None)
    weight_hr: Tensor | None = weight("projection", "P", "H", default=None)
    activation: Activation = torch.tanh
    gate_activation: Activation = torch.sigmoid

    gates = LSTM.gates
    state = LSTM.state

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h, c = state
        sums = F.linear(x, self.weight_ih, self.bias_ih) + F.linear(h, self.weight_hh, self.bias_hh)
        i, f, g, o = sums.chunk(4, dim=-1)
        p_i, p_f, p_o = self.weight_ch.chunk(3)
        i, f = self.gate_activation(i + p_i * c), self.gate_activation(f + p_f * c)
        g = self.activation(g)
        c = f * c + i * g
        o = self.gate_activation(o + p_o * c)
        h = o * self.activation(c)
        if self.weight_hr is not None:
            h = F.linear(h, self.weight_hr)
        return h, (h, c)
