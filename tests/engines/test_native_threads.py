"""The engine's threads are torch's: one OpenMP library in a process, and one set of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import cello
from cello.engines.native.library import library

pytestmark = pytest.mark.skipif(library() is None, reason="the native engine was not built")

TWO_THREADS = """
import os, re, torch, cello
def threads():
    return len(os.listdir("/proc/self/task"))
def run(seed=0):
    torch.manual_seed(seed)
    layer, x = cello.nn.LSTM(64, 128), torch.randn(50, 64, 64)
    with cello.engine("native"):
        return layer(x)[0].detach()
torch.set_num_threads(1)
alone = run()
torch.set_num_threads(2)
product = torch.ones(500, 500) @ torch.ones(500, 500)
before = threads()
torch.testing.assert_close(run(), alone)
started = threads() - before
mapped = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
print(started, sum(bool(re.match("lib(g|i)?omp", path.rpartition("/")[2])) for path in mapped))
"""


def run_in_a_process(code: str, **variables: str) -> str:
    """What a new process prints, in which nothing but torch has loaded an OpenMP library."""
    source = str(Path(cello.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(not torch.backends.openmp.is_available(), reason="this torch has no OpenMP")
def test_the_threads_are_those_that_torch_has():
    module = library()
    assert module is not None
    assert module.shares_threads()
    assert run_in_a_process(TWO_THREADS) == "0 1"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_fewer_threads_than_asked_for_do_not_wait_for_the_others():
    assert run_in_a_process(TWO_THREADS, OMP_THREAD_LIMIT="1").startswith("0 ")


class Shares(nn.Module):
    """Two products with one weight, whose gradients threads would divide in two ways."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        shapes = {"transposed": (width, width), "overlapping": (width, 2 * width)}
        shape = shapes.get(kind, (width, 1) if kind == "columns" else (1, width))
        self.kind, self.weight = kind, nn.Parameter(torch.randn(shape) / width**0.5)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        w, width = self.weight, h.shape[1]
        if self.kind == "transposed":
            return torch.tanh(x @ w.t() + h @ w)
        if self.kind == "overlapping":
            return torch.tanh(x @ w[:, :width] + h @ w[:, width // 2 : width // 2 + width])
        return torch.tanh(0.1 * x @ w.expand(width, width) + h)


@pytest.mark.parametrize("kind", ["transposed", "overlapping", "columns", "rows"])
def test_threads_do_not_add_to_the_same_numbers_of_a_weight(kind: str):
    torch.manual_seed(0)
    layer = cello.Recurrent(Shares(kind, 48).double(), state_size=48)
    x = torch.randn(120, 32, 48, dtype=torch.float64)

    def gradient(threads: int) -> Tensor:
        torch.set_num_threads(threads)
        layer.zero_grad()
        layer(x)[0].sum().backward()
        found = layer.cells["l0"].weight.grad
        assert found is not None
        return found.clone()

    before = torch.get_num_threads()
    try:
        expected = gradient(1)
        for _ in range(30):
            torch.testing.assert_close(gradient(2), expected)
    finally:
        torch.set_num_threads(before)
