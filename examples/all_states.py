"""All hidden *and cell* states of all steps, of the last layer or of every layer and direction."""

import torch

import cello

lstm = cello.nn.LSTM(28, 4, num_layers=2, batch_first=True, bidirectional=True)
x = torch.randn(10, 3, 28)  # (B, T, F)

output, (h_n, c_n), states = lstm(x, return_states=True)
print("last layer:", {name: tuple(s.shape) for name, s in states.items()})  # (B, T, D*H)
assert torch.equal(states["h"], output)

_, (h_n, c_n), states = lstm(x, return_states="all")
print("everything:", {name: tuple(s.shape) for name, s in states.items()})  # (B, T, H) each
assert torch.equal(states["c_l0"][:, -1], c_n[0])  # the first layer forward ends at the last step
assert torch.equal(states["c_l1_reverse"][:, 0], c_n[3])  # a reverse direction at the first one
