"""A model class around a recurrent layer: predict the next value of a noisy wave.

The initial state is made inside the layer, the last step goes through a linear layer, and at the end
the model runs step by step on a stream, each prediction fed back as the next input.
"""

import torch
from torch import Tensor, nn

import cello


class Forecaster(nn.Module):
    """The next value of a series from the values before it."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.rnn = cello.nn.GRU(1, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.rnn(x)  # (B, T, H); the state starts at zero
        return self.head(output[:, -1])  # (B, 1), from the last step


torch.manual_seed(0)
series = torch.sin(torch.arange(600) * 0.2) + 0.05 * torch.randn(600)
windows = series.unfold(0, 21, 1)  # (N, 21): 20 values and the one to predict
x, y = windows[:, :20, None], windows[:, 20:]
model = Forecaster(16)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(60):
    loss = nn.functional.mse_loss(model(x[:400]), y[:400])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

with torch.no_grad():
    error = nn.functional.mse_loss(model(x[400:]), y[400:]).item()
    naive = nn.functional.mse_loss(x[400:, -1], y[400:]).item()
    print(f"squared error {error:.4f}, of repeating the last value {naive:.4f}")
    assert error < naive

    state, value = None, series[:1]
    for t in range(40):
        output, state = model.rnn.step(value, state)
        value = model.head(output) if t >= 20 else series[t + 1 : t + 2]
    print(
        f"20 steps on its own: {value.item():.2f}, the wave without noise: "
        f"{torch.sin(torch.tensor(40 * 0.2)).item():.2f}"
    )
