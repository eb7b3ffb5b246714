"""The long short-term memory cell (Hochreiter and Schmidhuber, 1997), with an optional projection."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cello.cells.activations import Activation
from cello.cells.contract import Equations, Gate, State, StatePart, weight


class LSTM(Equations):
    r"""The LSTM recurrence, with the equations and the weights of :class:`torch.nn.LSTMCell`.

    .. math::
        i &= \sigma(W_{ii} x + b_{ii} + W_{hi} h + b_{hi}) \\
        f &= \sigma(W_{if} x + b_{if} + W_{hf} h + b_{hf}) \\
        g &= \phi(W_{ig} x + b_{ig} + W_{hg} h + b_{hg}) \\
        o &= \sigma(W_{io} x + b_{io} + W_{ho} h + b_{ho}) \\
        c' &= f \odot c + i \odot g \\
        h' &= o \odot \phi(c')

    The gates lie in the order i, f, g, o along the rows of the weights (G = 4). With a projection,
    :math:`h' = W_{hr} (o \odot \phi(c'))` is P wide while c stays H wide.

    Args:
        weight_ih: (G*H, F).
        weight_hh: (G*H, H), or (G*H, P) with a projection.
        bias_ih: (G*H,), or ``None``.
        bias_hh: (G*H,), or ``None``.
        weight_hr: :math:`W_{hr}`, (P, H), or ``None`` for no projection.
        activation: :math:`\phi`, for the candidate g and the output.
        gate_activation: :math:`\sigma`, for the gates i, f and o.

    References: S. Hochreiter and J. Schmidhuber, "Long short-term memory", Neural Computation 9
    (1997); the forget gate: F. Gers et al., "Learning to forget" (2000); the projection: H. Sak et
    al., "Long short-term memory based recurrent neural network architectures" (2014).

    Example:
        >>> cell = LSTM(torch.zeros(4, 1), torch.zeros(4, 1))
        >>> output, (h, c) = cell(torch.ones(1, 1), (torch.zeros(1, 1), torch.ones(1, 1)))
        >>> c  # all gates are sigmoid(0) = 1/2, the candidate is tanh(0) = 0
        tensor([[0.5000]])
    """

    weight_ih: Tensor = weight("input weights", "G*H", "F")
    weight_hh: Tensor = weight("recurrent weights", "G*H", "P")
    bias_ih: Tensor | None = weight("biases", "G*H", default=None)
    bias_hh: Tensor | None = weight("biases", "G*H", default=None)
    weight_hr: Tensor | None = weight("projection", "P", "H", default=None)
    activation: Activation = torch.tanh
    gate_activation: Activation = torch.sigmoid

    gates = (
        Gate("i", "input gate", "gate_activation"),
        Gate("f", "forget gate", "gate_activation"),
        Gate("g", "candidate", "activation"),
        Gate("o", "output gate", "gate_activation"),
    )
    state = (StatePart("h", "hidden state", "P"), StatePart("c", "cell state", "H"))

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h, c = state
        gates = F.linear(x, self.weight_ih, self.bias_ih) + F.linear(
            h, self.weight_hh, self.bias_hh
        )
        i, f, g, o = gates.chunk(4, dim=-1)
        i, f, o = self.gate_activation(i), self.gate_activation(f), self.gate_activation(o)
        g = self.activation(g)
        c = f * c + i * g
        h = o * self.activation(c)
        if self.weight_hr is not None:
            h = F.linear(h, self.weight_hr)
        return h, (h, c)
