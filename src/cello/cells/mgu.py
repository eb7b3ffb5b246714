"""The minimal gated unit (Zhou et al., 2016): one gate, which both forgets and resets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cello.cells.activations import Activation
from cello.cells.contract import Equations, Gate, State, StatePart, weight


class MGU(Equations):
    r"""The recurrence of the minimal gated unit.

    .. math::
        f &= \sigma(W_{if} x + b_{if} + W_{hf} h + b_{hf}) \\
        n &= \phi(W_{in} x + b_{in} + W_{hn} (f \odot h) + b_{hn}) \\
        h' &= (1 - f) \odot h + f \odot n

    The gates lie in the order f, n along the rows of the weights (G = 2).

    Args:
        weight_ih: (G*H, F).
        weight_hh: (G*H, H).
        bias_ih: (G*H,), or ``None``.
        bias_hh: (G*H,), or ``None``.
        activation: :math:`\phi`, for the candidate n.
        gate_activation: :math:`\sigma`, for the gate f.

    Reference: G.-B. Zhou et al., "Minimal gated unit for recurrent neural networks", International
    Journal of Automation and Computing 13 (2016).

    Example:
        >>> cell = MGU(torch.zeros(2, 1), torch.tensor([[0.0], [2.0]]), activation=torch.relu)
        >>> output, (h,) = cell(torch.ones(1, 1), (torch.full((1, 1), 4.0),))
        >>> h  # f = sigmoid(0) = 1/2; n = 2 (4/2) = 4, and half of it joins half of h
        tensor([[4.]])
    """

    weight_ih: Tensor = weight("input weights", "G*H", "F")
    weight_hh: Tensor = weight("recurrent weights", "G*H", "H")
    bias_ih: Tensor | None = weight("biases", "G*H", default=None)
    bias_hh: Tensor | None = weight("biases", "G*H", default=None)
    activation: Activation = torch.tanh
    gate_activation: Activation = torch.sigmoid

    gates = (
        Gate("f", "forget gate", "gate_activation"),
        Gate("n", "candidate", "activation"),
    )
    state = (StatePart("h", "hidden state", "H"),)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        (h,) = state
        x_f, x_n = F.linear(x, self.weight_ih, self.bias_ih).chunk(2, dim=-1)
        w_f, w_n = self.weight_hh.chunk(2)
        b_f, b_n = (None, None) if self.bias_hh is None else self.bias_hh.chunk(2)
        f = self.gate_activation(x_f + F.linear(h, w_f, b_f))
        n = self.activation(x_n + F.linear(f * h, w_n, b_n))
        h = (1 - f) * h + f * n
        return h, (h,)
