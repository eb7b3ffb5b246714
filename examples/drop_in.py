"""Replace `torch.nn` by `cello.nn`: the same arguments, weights, results and errors.

One seed gives the same weights in both, and a state_dict goes either way.
"""

import torch

import cello

torch.manual_seed(0)
theirs = torch.nn.LSTM(28, 4, num_layers=2, batch_first=True, bidirectional=True)
torch.manual_seed(0)
ours = cello.nn.LSTM(28, 4, num_layers=2, batch_first=True, bidirectional=True)

x = torch.randn(10, 3, 28)  # (B, T, F)
expected, (h_n, c_n) = theirs(x)
output, state = ours(x)
torch.testing.assert_close(output, expected)
print("output", tuple(output.shape), "h_n", tuple(h_n.shape), "c_n", tuple(c_n.shape))

ours.load_state_dict(theirs.state_dict())
theirs.load_state_dict(ours.state_dict())

# Which engine runs it, and why not another one.
print(cello.explain(ours, x))
