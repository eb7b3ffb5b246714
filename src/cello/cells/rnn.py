"""The Elman cell (Elman, 1990)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cello.cells.activations import Activation
from cello.cells.contract import Equations, Gate, State, StatePart, weight


class RNN(Equations):
    r"""The Elman recurrence, with the equation and the weights of :class:`torch.nn.RNNCell`.

    .. math:: h' = \phi(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})

    Args:
        weight_ih: :math:`W_{ih}`, (H, F).
        weight_hh: :math:`W_{hh}`, (H, H).
        bias_ih: :math:`b_{ih}`, (H,), or ``None``.
        bias_hh: :math:`b_{hh}`, (H,), or ``None``.
        activation: :math:`\phi`.

    Reference: J. L. Elman, "Finding structure in time", Cognitive Science 14 (1990).

    Example:
        >>> cell = RNN(torch.eye(2), torch.zeros(2, 2), activation=torch.relu)
        >>> output, (h,) = cell(torch.tensor([[1.0, -1.0]]), (torch.zeros(1, 2),))
        >>> output
        tensor([[1., 0.]])
    """

    weight_ih: Tensor = weight("input weights", "G*H", "F")
    weight_hh: Tensor = weight("recurrent weights", "G*H", "H")
    bias_ih: Tensor | None = weight("biases", "G*H", default=None)
    bias_hh: Tensor | None = weight("biases", "G*H", default=None)
    activation: Activation = torch.tanh

    gates = (Gate("h", "new state", "activation"),)
    state = (StatePart("h", "hidden state", "H"),)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        (h,) = state
        h = self.activation(
            F.linear(x, self.weight_ih, self.bias_ih) + F.linear(h, self.weight_hh, self.bias_hh)
        )
        return h, (h,)
