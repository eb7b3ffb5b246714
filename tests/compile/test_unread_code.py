"""Code that a step does not come to reads nothing: noise in training, debuggers, rare branches."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from steps import assert_close, evaluate
from torch import Tensor, nn

import cello

F = 3
DRAWS = random.Random(1)


class Cell(nn.Module):
    """A cell whose input a function changes."""

    def __init__(self, change: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.change, self.lin, self.rate, self.debug = change, nn.Linear(2 * F, F), 0.0, False

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.lin(torch.cat([self.change(self, x, h), h], 1)))


def forced(cell: Any, x: Tensor, h: Tensor) -> Tensor:
    if cell.training and random.random() < 0.5:
        x = torch.zeros_like(x)
    return x


def forced_by_numpy(cell: Any, x: Tensor, h: Tensor) -> Tensor:
    x = x * np.sqrt(2.0)
    return x * np.random.rand() if cell.training else x


def drawn(cell: Any, x: Tensor, h: Tensor) -> Tensor:
    return x + DRAWS.random() if cell.training else x


def by_a_function(cell: Any, x: Tensor, h: Tensor) -> Tensor:
    def noisy() -> Tensor:
        return x * DRAWS.random()

    return noisy() if cell.training else x


def among_many(cell: Any, x: Tensor, h: Tensor) -> Tensor:
    return x + sum(DRAWS.random() for _ in range(3) if cell.training)


def at_the_end(cell: Any, x: Tensor, h: Tensor) -> Tensor:
    for scale in (0.5, 2.0):
        x = x * scale
        if not cell.training:
            break
    else:
        x = x * random.random()
    return x


CHANGES = [forced, forced_by_numpy, drawn, by_a_function, among_many, at_the_end]


def results(layer: Any, x: Tensor, engine: str | None) -> dict[str, Tensor]:
    random.seed(3)
    np.random.seed(3)
    DRAWS.seed(3)
    return evaluate(
        layer, x, [torch.full((1, x.shape[1], F), 0.5, dtype=x.dtype)], engine, lambda s: s[0]
    )


@pytest.mark.parametrize("change", CHANGES)
def test_noise_in_training_keeps_no_evaluation_in_python(change: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    layer = cello.Recurrent(Cell(change), state_size=F).double()
    x = torch.randn(7, 2, F, dtype=torch.float64)
    for training, engine in ((True, "reference"), (False, "native")) * 2:
        layer.train(training)
        assert cello.explain(layer, x).plans[0].engine == engine
        assert_close(results(layer, x, None), results(layer, x, "reference"))


def with_debugger(cell: Any, x: Tensor, h: Tensor) -> Tensor:
    if cell.debug:
        import pdb

        pdb.set_trace()
    return x


def test_a_debugger_that_is_not_called() -> None:
    layer, x = cello.Recurrent(Cell(with_debugger), state_size=F), torch.randn(3, 2, F)
    assert cello.explain(layer, x).plans[0].engine == "native"


def by_rate(cell: Any, x: Tensor, h: Tensor) -> Tensor:
    return x * random.random() if cell.rate > 0 else x


def where_not_a_number(cell: Any, x: Tensor, h: Tensor) -> Tensor:
    return torch.full_like(x, random.random()) if x.isnan().any() else x


def test_a_branch_that_is_taken_later() -> None:
    torch.manual_seed(0)
    layer = cello.Recurrent(Cell(by_rate), state_size=F).double()
    x = torch.randn(7, 2, F, dtype=torch.float64)
    for rate in (0.0, 0.5, 0.0):
        layer.cells["l0"].rate = rate
        assert cello.explain(layer, x).plans[0].engine == ("reference" if rate else "native")
        assert_close(results(layer, x, None), results(layer, x, "reference"))


def test_a_branch_that_single_steps_take() -> None:
    torch.manual_seed(0)
    layer = cello.Recurrent(Cell(where_not_a_number), state_size=F).double()
    x = torch.randn(7, 2, F, dtype=torch.float64)
    assert cello.explain(layer, x).plans[0].engine == "native"
    for step in (None, 0, 4):
        if step is not None:
            x[step, 1, 0] = torch.nan
        assert_close(results(layer, x, None), results(layer, x, "reference"))


def read_first(cell: Any, x: Tensor, h: Tensor) -> Tensor:
    source = DRAWS
    return x * source.random() if cell.training else x


def test_the_reason_names_the_line_that_reads() -> None:
    layer, x = cello.Recurrent(Cell(read_first), state_size=F).eval(), torch.randn(3, 2, F)
    (reason,) = cello.explain(layer, x).plans[0].reasons["native"]
    line = read_first.__code__.co_firstlineno + 1
    assert f"a random.Random (test_unread_code.py:{line}), whose content" in reason
