"""Random cells: the native engine against the reference engine, values and every gradient."""

from __future__ import annotations

import pytest
import torch
from random_cells import Drawn, draw
from random_operations import BINARY, ROWS, UNARY
from random_runs import judge, run, shrink
from torch import Tensor

COUNT, AT_ONCE = 300, 20
"""More of them: ``make random-cells``."""


@pytest.mark.parametrize("first", range(0, COUNT, AT_ONCE))
def test_cells(first: int):
    for seed in range(first, first + AT_ONCE):
        drawn = draw(seed)
        if judge(drawn).kind == "wrong":
            small = shrink(drawn)
            pytest.fail(f"seed {seed}: {judge(small).text}\n{small}")


def test_most_are_compared_and_all_operations_are_drawn():
    cells = [draw(seed) for seed in range(COUNT)]
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        some = [drawn for drawn in cells if drawn.dtype == dtype][:20]
        kinds = [judge(drawn).kind for drawn in some]
        assert kinds.count("same") >= 15
    missing = {op.code.split("{0}")[0].lstrip("(-~") for op in (*UNARY, *BINARY, *ROWS)} - {""}
    for seed in range(9000):
        code = draw(seed).source()
        missing = {word for word in missing if word not in code}
        if not missing:
            break
    assert missing == set()
    assert {drawn.dtype for drawn in cells} == {torch.float64, torch.float32, torch.bfloat16}
    assert any(drawn.lengths and 0 in drawn.lengths for drawn in cells)
    assert any(drawn.output <= len(drawn.widths) - 1 for drawn in cells)


def test_a_fault_is_found_and_made_small(monkeypatch: pytest.MonkeyPatch):
    """A sine without its derivative, in a cell of a few lines."""
    from cello.compile.rules import RULES

    monkeypatch.setitem(RULES, "sin", (lambda g, y, a: g,))
    found = next(d for d in map(draw, range(9000, 9400)) if judge(d).kind == "wrong")
    small = shrink(found)
    assert judge(small).kind == "wrong"
    assert "sin()" in str(small) or "torch.sin(" in str(small) or "tan" in str(small)
    assert len(small.used()) <= 4
    assert (small.steps, small.batch, small.lengths, small.threads) == (1, 1, None, 1)


def test_a_cell_is_drawn_and_run_as_its_seed_says():
    first, second = draw(5), draw(5)
    assert isinstance(first, Drawn)
    assert str(first) == str(second)
    results = [run(drawn, "native", drawn.dtype) for drawn in (first, second)]
    assert all(torch.equal(a, results[1][name]) for name, a in results[0].items())


SHAPES = {
    "W0": (130, 100),
    "W1": (130, 5),
    "W2": (100, 5),
    "W3": (130, 130),
    "W4": (130, 5),
    "W5": (5, 100),
}


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize(("steps", "batch"), [(1, 2), (2, 3), (6, 3)])
def test_threads_that_share_columns_do_not_meet_in_one(threads: int, steps: int, batch: int):
    """Products of one result are split at different columns where one of them is beside another."""
    from steps import Step, compare, random

    def function(c: Step, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        v = h @ c.W0.t()
        narrow = v @ c.W1 + h @ c.W2
        wide = v @ c.W3 + v @ c.W3.tanh().t()
        return torch.asinh(narrow), wide @ c.W4 @ c.W5

    held = {name: random(*shape, seed=k) * 0.1 for k, (name, shape) in enumerate(SHAPES.items())}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(10):
            x, h = random(steps, batch, 100), random(1, batch, 100, seed=1)
            compare(Step(function, [100], **held), x, (h,))
    finally:
        torch.set_num_threads(before)
