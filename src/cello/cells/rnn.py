"""The Elman cell (Elman, 1990)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cello.cells.activations import Activation
from cello.cells.contract import Cell, State


class RNN(Cell):
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

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    activation: Activation

    def __init__(
        self,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor | None = None,
        bias_hh: Tensor | None = None,
        *,
        activation: Activation = torch.tanh,
    ) -> None:
        super().__init__()
        self.borrow(
            weight_ih=weight_ih,
            weight_hh=weight_hh,
            bias_ih=bias_ih,
            bias_hh=bias_hh,
            activation=activation,
        )

    @property
    def state_sizes(self) -> dict[str, int | tuple[int, ...]]:
        return {"h": self.weight_hh.shape[0]}

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        (h,) = state
        h = self.activation(
            F.linear(x, self.weight_ih, self.bias_ih) + F.linear(h, self.weight_hh, self.bias_hh)
        )
        return h, (h,)
