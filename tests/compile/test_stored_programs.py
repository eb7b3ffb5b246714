"""A program that an earlier version of Cello exported is read, or refused with what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import cello  # noqa: F401  # declares the operator
from cello.engines.native.library import library

STORED = json.loads((Path(__file__).parents[1] / "data/gru_program_format_4.json").read_text())


def scan(program: object, x: torch.Tensor, h: torch.Tensor) -> list[torch.Tensor]:
    statics = [torch.tensor(value, dtype=x.dtype) for value in STORED["statics"].values()]
    found: list[torch.Tensor]
    found = torch.ops.cello.scan(json.dumps(program), [x], statics, [h], None, len(x), False)
    return found


@pytest.mark.skipif(library() is None, reason="the native engine was not built")
def test_a_stored_program_computes_what_torch_computes():
    x, h = (torch.tensor(STORED[name], dtype=torch.float64) for name in "xh")
    layer = nn.GRU(2, 3, dtype=torch.float64)
    layer.load_state_dict({k: torch.tensor(v) for k, v in STORED["statics"].items()})
    results = []
    for run in (
        lambda x: scan(STORED["program"], x, h)[0],
        lambda x: layer(x.view(4, 2, 2), h[None])[0].flatten(0, 1),
    ):
        entry = x.clone().requires_grad_()
        output = run(entry)
        results.append([output, *torch.autograd.grad(output.square().sum(), entry)])
    torch.testing.assert_close(*results)


def test_a_program_of_an_older_format_says_what_to_do():
    x, h = (torch.tensor(STORED[name], dtype=torch.float64) for name in "xh")
    with pytest.raises(ValueError, match="another version of Cello; export the model again"):
        scan(STORED["program"] | {"format": 3}, x, h)
