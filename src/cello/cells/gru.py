"""The gated recurrent unit (Cho et al., 2014), reset after the recurrent product as in cuDNN."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cello.cells.activations import Activation
from cello.cells.contract import Equations, Gate, State, StatePart, weight


class GRU(Equations):
    r"""The GRU recurrence, with the equations and the weights of :class:`torch.nn.GRUCell`.

    .. math::
        r &= \sigma(W_{ir} x + b_{ir} + W_{hr} h + b_{hr}) \\
        z &= \sigma(W_{iz} x + b_{iz} + W_{hz} h + b_{hz}) \\
        n &= \phi(W_{in} x + b_{in} + r \odot (W_{hn} h + b_{hn})) \\
        h' &= (1 - z) \odot n + z \odot h

    The gates lie in the order r, z, n along the rows of the weights (G = 3).

    Args:
        weight_ih: (G*H, F).
        weight_hh: (G*H, H).
        bias_ih: (G*H,), or ``None``.
        bias_hh: (G*H,), or ``None``.
        activation: :math:`\phi`, for the candidate n.
        gate_activation: :math:`\sigma`, for the gates r and z.

    Reference: K. Cho et al., "Learning phrase representations using RNN encoder-decoder for
    statistical machine translation" (2014), with the reset gate applied after the product, as in
    cuDNN and :class:`torch.nn.GRU`.

    Example:
        >>> cell = GRU(torch.zeros(3, 1), torch.zeros(3, 1))
        >>> output, (h,) = cell(torch.ones(1, 1), (torch.ones(1, 1),))
        >>> h  # z = sigmoid(0) = 1/2 keeps half of h; the candidate is tanh(0) = 0
        tensor([[0.5000]])
    """

    weight_ih: Tensor = weight("input weights", "G*H", "F")
    weight_hh: Tensor = weight("recurrent weights", "G*H", "H")
    bias_ih: Tensor | None = weight("biases", "G*H", default=None)
    bias_hh: Tensor | None = weight("biases", "G*H", default=None)
    activation: Activation = torch.tanh
    gate_activation: Activation = torch.sigmoid

    gates = (
        Gate("r", "reset gate", "gate_activation"),
        Gate("z", "update gate", "gate_activation"),
        Gate("n", "candidate", "activation"),
    )
    state = (StatePart("h", "hidden state", "H"),)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        (h,) = state
        x_r, x_z, x_n = F.linear(x, self.weight_ih, self.bias_ih).chunk(3, dim=-1)
        h_r, h_z, h_n = F.linear(h, self.weight_hh, self.bias_hh).chunk(3, dim=-1)
        r = self.gate_activation(x_r + h_r)
        z = self.gate_activation(x_z + h_z)
        n = self.activation(x_n + r * h_n)
        h = (1 - z) * n + z * h
        return h, (h,)
