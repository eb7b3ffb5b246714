"""Write the cell, get the layer: an LSTM with one pair of matrices a gate and piecewise-linear gates.

The cell is plain PyTorch in the style of `nn.LSTMCell` and knows nothing of Cello. `Recurrent` makes
of it what `nn.LSTM` is: layers, directions, dropout, packing, lengths, batch first.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cello


class GateByGateLSTM(nn.Module):
    """An LSTM cell with four input matrices, four recurrent ones and four biases."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(hidden_size)
        for gate in "ifgo":
            for name, shape in (
                ("w", (hidden_size, input_size)),
                ("u", (hidden_size, hidden_size)),
                ("b", (hidden_size,)),
            ):
                weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
                self.register_parameter(f"{name}_{gate}", weight)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i = F.hardsigmoid(F.linear(x, self.w_i, self.b_i) + F.linear(h, self.u_i))
        f = F.hardsigmoid(F.linear(x, self.w_f, self.b_f) + F.linear(h, self.u_f))
        g = F.hardtanh(F.linear(x, self.w_g, self.b_g) + F.linear(h, self.u_g))
        o = F.hardsigmoid(F.linear(x, self.w_o, self.b_o) + F.linear(h, self.u_o))
        c = f * c + i * g
        return o * F.hardtanh(c), c


torch.manual_seed(0)
layer = cello.Recurrent(
    lambda features: GateByGateLSTM(features, 5),
    input_size=3,
    num_layers=2,
    bidirectional=True,
    dropout=0.2,
)
x = torch.randn(7, 4, 3)  # (T, B, F)
output, (h_n, c_n) = layer(x, lengths=[7, 2, 0, 5])
print("output", tuple(output.shape), "h_n", tuple(h_n.shape), "c_n", tuple(c_n.shape))
output.sum().backward()
print("gradients of", sum(p.grad is not None for p in layer.parameters()), "parameters")

# The same equations out of the box: only the two functions change.
stock = cello.nn.LSTM(3, 5, activation="hardtanh", gate_activation="hardsigmoid")
knots = cello.PiecewiseLinear([-3.0, 0.0, 3.0], [0.0, 0.5, 1.0])
custom = cello.nn.LSTM(3, 5, activation="hardtanh", gate_activation=knots)
custom.load_state_dict(stock.state_dict())
print("same function:", torch.allclose(stock(x)[0], custom(x)[0], atol=1e-6))
