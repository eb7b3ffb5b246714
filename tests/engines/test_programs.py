"""An engine made of nothing but loops and stages (`toy_engine.py`) gives what the Python loop gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import exact_derivatives
from numpy_operations import OPERATIONS
from samples import COMPILED, FORMS, LAYERS, Sample, seed_of
from steps import assert_close, evaluate, random
from toy_engine import NumpyKernel, Toy

import cello
from cello.compile import Loops, text
from cello.compile.instructions import OPERANDS, REDUCTIONS

pytestmark = pytest.mark.usefixtures("default_dtype")


class Written(NumpyKernel):
    """Loops that were read from a text."""

    def __init__(self, loops: Loops) -> None:
        super().__init__(text.read(text.write(loops)))


class Reader(Toy):
    kernels = Written


@pytest.mark.parametrize("name", COMPILED)
def test_a_cell(name: str):
    form = FORMS["padded" if seed_of(name) % 2 else "lengths"]
    sample = Sample(name, 4, 6, torch.float64)
    with exact_derivatives():
        expected = sample.run("reference", **form)
    assert_close(sample.run(Reader(), **form), expected, 1e-10)


@pytest.mark.parametrize("options", [*FORMS.values(), {"return_states": "all"}], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer(kind: str, options: dict[str, Any]):
    torch.manual_seed(0)
    layer, x = LAYERS[kind](), random(4, 4, 5)
    found, expected = (evaluate(layer, x, (), engine, **options) for engine in (Toy(), "reference"))
    assert_close(found, expected)


def test_a_part_of_a_state_that_is_saved_alone():
    """A state of which products read the second half only, and the output none."""

    class Half(cello.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(random(3, 6))

        @property
        def state_sizes(self) -> dict[str, int]:
            return {"h": 6}

        def forward(self, x: Any, state: Any) -> Any:
            (h,) = state
            z = torch.tanh(h[:, 3:] @ self.weight)
            return (z * x[:, :1]).sum(-1, keepdim=True), (z.sin(),)

    layer, x = cello.Recurrent(Half()), random(4, 3, 1)
    results = [evaluate(layer, x, (random(1, 3, 6),), e) for e in (Toy(), "native", "reference")]
    assert_close(results[0], results[2])
    assert_close(results[1], results[2])


def test_a_text_holds_all_that_there_is():
    layer, x = cello.nn.LSTM(5, 4), random(4, 4, 5)
    before, after = (evaluate(layer, x, (), engine) for engine in (Toy(), Reader()))
    assert all(torch.equal(after[name], part) for name, part in before.items())


def test_it_has_every_operation():
    assert OPERATIONS.keys() == {*OPERANDS, *REDUCTIONS}
