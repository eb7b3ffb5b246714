"""The functions of the Triton engine against NumPy's in float64, over ordinary and special numbers."""

from __future__ import annotations

import linecache
from typing import Any

import numpy as np
import pytest
import torch
from numpy_operations import OPERATIONS

from cello.compile.instructions import OPERANDS, REDUCTIONS
from cello.engines.triton.library import is_interpreted

triton = pytest.importorskip("triton", reason="Triton is not installed: make triton-test")
pytestmark = pytest.mark.skipif(not is_interpreted(), reason="TRITON_INTERPRET is not 1")

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan, 1e-8, -1e-8]
SPECIAL += [1e-20, 3.0, -3.0, 100.0, -100.0, 88.0, 1e6, -1e6]
COUNT = 2048
BOUNDS = {"pow": {np.float64: 500}, "erfc": {np.float64: 100}}
"""Units in the last place, where they are more than :data:`USUAL`."""
USUAL = 4
CANCEL = {"tanh_gradient", "sigmoid_gradient", "muladd", "add", "sub"}
"""Functions whose difference of near numbers rounds before it is taken: held to the largest term."""


def launch(op: str, args: np.ndarray) -> np.ndarray:
    """Run one function over rows of arguments."""
    import triton.language as tl

    from cello.engines.triton import functions
    from cello.engines.triton.writer import _function

    loads = ", ".join(f"tl.load(a + {k * COUNT} + i)" for k in range(len(args)))
    text = "@triton.jit\ndef f(a, out, N: tl.constexpr):\n    i = tl.arange(0, N)\n"
    text += f"    tl.store(out + i, F.{_function(op)}({loads}))\n"
    name = f"<test of {op}>"
    linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
    scope: dict[str, Any] = {"triton": triton, "tl": tl, "F": functions}
    exec(compile(text, name, "exec"), scope)
    out = torch.zeros(COUNT, dtype=torch.from_numpy(args).dtype)
    scope["f"][(1,)](torch.from_numpy(args), out, N=COUNT)
    return out.numpy()


def arguments(op: str, count: int) -> np.ndarray:
    """Every pair of special numbers, then ordinary ones."""
    rng = np.random.default_rng(0)
    pairs = np.array(np.meshgrid(*[SPECIAL] * min(count, 2))).reshape(min(count, 2), -1)
    rows = rng.normal(size=(count, COUNT)) * np.where(rng.random(COUNT) < 0.3, 1e-3, 3)
    rows[: len(pairs), : pairs.shape[1]] = pairs
    if op in ("clamp", "hardtanh"):
        rows[1:] = np.sort(np.nan_to_num(rows[1:], posinf=1e6, neginf=-1e6), 0)
    return rows


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("op", OPERANDS)
def test_a_function(op: str, dtype: Any):
    args = arguments(op, OPERANDS[op]).astype(dtype)
    with np.errstate(all="ignore"):
        found = launch(op, args).astype(np.float64)
        exact = np.asarray(OPERATIONS[op](*args.astype(np.float64)), np.float64)
        if op == "sigmoid":  # the reference loses what is small
            exact = 1 / (1 + np.exp(-args[0].astype(np.float64)))
        rounded = exact.astype(dtype).astype(np.float64)
        same = (found == rounded) | (np.isnan(found) & np.isnan(rounded))
        scale = np.abs(rounded)
        if op in CANCEL:
            scale = np.maximum(scale, np.abs(args[0]) if len(args) < 3 else np.abs(args[2]))
        unit = np.spacing(np.maximum(scale, np.finfo(dtype).tiny).astype(dtype))
        off = np.where(same, 0.0, np.abs(found - exact) / unit)
    worst = int(np.nanargmax(np.where(np.isnan(off), np.inf, off)))
    bound = BOUNDS.get(op, {}).get(dtype, USUAL)
    assert off[worst] <= bound, f"{op}{tuple(args[:, worst])} = {found[worst]}, not {exact[worst]}"


def test_it_has_every_operation():
    from cello.engines.triton import functions
    from cello.engines.triton.writer import _function

    assert all(hasattr(functions, _function(op)) for op in (*OPERANDS, *REDUCTIONS))
