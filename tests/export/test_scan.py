"""A scan in ONNX, run by ONNX Runtime, gives what the Python loop gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import complex_cells
import convolution_cells
import numpy as np
import order_cells
import pytest
import random_runs
import torch
from cases import exact_derivatives
from numpy_operations import OPERATIONS
from random_cells import draw
from samples import COMPILED, FORMS, LAYERS, Sample, seed_of
from steps import assert_close, evaluate, random

import cello
from cello.compile.instructions import OPERANDS
from cello.compile.instructions import REDUCTIONS as ALL_REDUCTIONS

ir = pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")
from onnx_engine import OPSET, Onnx  # noqa: E402

from cello.onnx.functions import POINTWISE, REDUCTIONS  # noqa: E402
from cello.onnx.writer import DTYPES, Writer  # noqa: E402

SINGLE_ONLY = {"erf", "erfc", "atan", "atan2"}
"""Operations that ONNX Runtime has in float32 alone."""


def run_in_single(name: str) -> bool:
    """Whether a cell has one of these."""
    return name in {"DeepTransition", "SmoothActivations", "OddFunctions", "DeepStack"}


@pytest.mark.parametrize("name", COMPILED)
def test_a_cell(name: str):
    """The backward loop, of another engine, reads what the loop in ONNX has saved."""
    dtype, bound = (torch.float32, 2e-4) if run_in_single(name) else (torch.float64, 1e-9)
    form = FORMS["lengths" if seed_of(name) % 2 else "padded"]
    sample = Sample(name, 4, 6, dtype)
    with exact_derivatives():
        expected = sample.run("reference", **form)
    assert_close(sample.run(Onnx(), **form), expected, bound)


@pytest.mark.parametrize("options", [*FORMS.values(), {"return_states": "all"}], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer(kind: str, options: dict[str, Any]):
    torch.manual_seed(0)
    layer, x = LAYERS[kind]().double(), random(4, 4, 5)
    found, expected = (
        evaluate(layer, x, (), engine, **options) for engine in (Onnx(), "reference")
    )
    assert_close(found, expected)


@pytest.mark.parametrize("name", convolution_cells.CELLS | convolution_cells.PLACES)
def test_images_and_places(name: str):
    case = (convolution_cells.CELLS | convolution_cells.PLACES)[name]
    layer = convolution_cells.layer_of(case)
    convolution_cells.assert_like_the_loop(layer, case, 3, Onnx(), 1e-9)


@pytest.mark.parametrize("name", order_cells.STEPS)
def test_numbers_in_order(name: str):
    torch.manual_seed(0)
    layer = cello.Recurrent(order_cells.Holder(order_cells.STEPS[name]), state_size=order_cells.H)
    x = random(3, 3, order_cells.H)
    layer, x = layer.double(), x.double()
    found, expected = (evaluate(layer, x, (), engine) for engine in (Onnx(), "reference"))
    assert_close(found, expected, 1e-9)


@pytest.mark.parametrize("name", ["lru", "unitary", "resonator", "arithmetic", "sqrt", "tanh"])
def test_complex_numbers(name: str):
    torch.manual_seed(0)
    layer = cello.Recurrent(complex_cells.Holder(complex_cells.STEPS[name]), state_size=4)
    x, found = torch.randn(3, 3, complex_cells.F, dtype=torch.float64), []
    for engine in (Onnx(), "reference"):
        with cello.engine(engine), torch.no_grad():
            found.append(layer(x))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_random_cells(first: int, monkeypatch: pytest.MonkeyPatch):
    """The judge of random cells, with this engine in the place of the native one."""
    run = random_runs.run

    def with_onnx(drawn: Any, engine: Any, *others: Any) -> Any:
        return run(drawn, Onnx() if engine == "native" else engine, *others)

    monkeypatch.setattr(random_runs, "run", with_onnx)
    kinds = []
    for seed in range(first, first + 20):
        drawn = replace(draw(seed), dtype=torch.float64, segment=None)
        verdict = random_runs.judge(drawn)
        is_there = "NOT_IMPLEMENTED" not in verdict.text  # in float64, by ONNX Runtime
        kinds.append(verdict.kind)
        assert verdict.kind != "wrong" or not is_there, f"seed {seed}: {verdict.text}\n{drawn}"
    assert kinds.count("same") >= 12


LARGE = 1e12
SPECIAL = [-3.5, -1.0, -0.5, -1e-4, 0.0, 1e-4, 0.5, 1.0, 2.5, 3.5, 90.0]
SPECIAL += [-np.inf, -LARGE, LARGE, np.inf, np.nan]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
@pytest.mark.parametrize("name", sorted(POINTWISE))
def test_an_operation(name: str, dtype: torch.dtype):
    """On special numbers, as NumPy has it; and of two operands on all pairs of them."""
    if dtype == torch.float64 and name in SINGLE_ONLY:
        pytest.skip("ONNX Runtime has it in float32 only")
    kind = np.float32 if dtype == torch.float32 else np.float64
    count = OPERANDS[name]
    grid = np.meshgrid(*[np.array(SPECIAL, kind)] * min(count, 2), indexing="ij")
    values = [axis.ravel() for axis in grid]
    values += [np.roll(values[-1], 5 * k) for k in range(1, count - 1)]
    writer = Writer("f", dtype)
    given = [
        ir.Value(name=f"given{k}", shape=ir.Shape([None]), type=ir.TensorType(DTYPES[dtype]))
        for k in range(count)
    ]
    out = writer.write("Identity", POINTWISE[name](writer, *given))
    out.type = ir.TensorType(DTYPES[dtype])
    graph = ir.Graph(given, [out], nodes=writer.nodes, name="f", opset_imports={"": OPSET})
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    session = onnxruntime.InferenceSession(model)
    (found,) = session.run(None, {f"given{k}": value for k, value in enumerate(values)})
    with np.errstate(all="ignore"):
        expected = np.asarray(OPERATIONS[name](*(v.astype(np.float64) for v in values)), np.float64)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    with np.errstate(over="ignore"):
        expected = expected.astype(kind)  # as far as the dtype reaches
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_it_has_every_operation():
    assert POINTWISE.keys() == OPERANDS.keys()
    assert REDUCTIONS.keys() == ALL_REDUCTIONS.keys()
