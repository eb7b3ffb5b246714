"""Freeze a recurrent layer, or a part of it, and train the rest of the model."""

import torch
from torch import nn

import cello

torch.manual_seed(0)
rnn, head = cello.nn.LSTM(8, 16, num_layers=2), nn.Linear(16, 2)
x, target = torch.randn(5, 4, 8), torch.tensor([0, 1, 1, 0])

rnn.requires_grad_(False)  # all of it: no gradient, and no backward pass through it
nn.functional.cross_entropy(head(rnn(x)[0][-1]), target).backward()
print("frozen:", all(p.grad is None for p in rnn.parameters()), head.weight.grad is not None)

for name, parameter in rnn.named_parameters():
    parameter.requires_grad = "_l1" in name  # only the second layer learns
nn.functional.cross_entropy(head(rnn(x)[0][-1]), target).backward()
print("learning:", [name for name, p in rnn.named_parameters() if p.grad is not None])
