"""Cells of one line, and what they give on one engine and on another."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cello
from cello.compile import Program, compiled
from cello.engines import Engine

Results = dict[str, Tensor]


def loop(cell: Callable[[Tensor, Tensor], Tensor], x: Tensor, h: Tensor) -> Tensor:
    """The states of a cell after each step, (T, B, H), from a state h on."""
    outputs = []
    for row in x:
        h = cell(row, h)
        outputs.append(h)
    return torch.stack(outputs)


class Step(cello.Cell):
    """A function ``(cell, x, *state) -> (output, *new_state)`` as a cell."""

    def __init__(
        self, function: Callable[..., Any], sizes: Sequence[Any], **held: Tensor | nn.Module | float
    ):
        super().__init__()
        self.function = function
        self.sizes = {f"s{k}": size for k, size in enumerate(sizes)}
        for name, value in held.items():
            is_parameter = isinstance(value, Tensor) and value.is_floating_point()
            setattr(self, name, nn.Parameter(value) if is_parameter else value)

    @property
    def state_sizes(self) -> Mapping[str, Any]:
        return self.sizes

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        output, *new = self.function(self, x, *state)
        return output, tuple(new)


def evaluate(
    layer: Any,
    x: Tensor,
    state: Sequence[Tensor],
    engine: str | Engine | None,
    nest: Callable[[list[Tensor]], Any] = tuple,
    **options: Any,
) -> Results:
    """The results of a layer on an engine, and the gradients of all that may have one.

    Args:
        layer: a `cello.Recurrent` over cells.
        x: (T, B, ...).
        state: the parts of the initial state, (L*D, B, ...) each, as a flat list.
        engine: the engine, or its name.
        nest: makes of that list what the layer takes.
        options: for the layer.
    """
    x = x.detach().requires_grad_(x.is_floating_point())
    state = [part.detach().requires_grad_() for part in state]
    with cello.engine(engine):
        output, final, *rest = layer(x, nest(state) if state else None, **options)
    results = {"output": output}
    results |= {f"final {k}": part for k, part in enumerate(leaves_of(final))}
    for part in rest:
        results |= {f"states {name}": states for name, states in part.items()}
    return results | gradients_of(results, layer, x, state)


def gradients_of(results: Results, layer: nn.Module, x: Tensor, state: Sequence[Tensor]) -> Results:
    """Gradients of a sum with fixed random weights; zeros where nothing depends on a variable."""
    generator = torch.Generator().manual_seed(2)
    pairs = []
    for result in results.values():
        seed = torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result.dtype)
        if result.requires_grad:
            pairs.append((result, seed))
    variables = {"x": x} | {f"state {k}": part for k, part in enumerate(state)}
    variables |= dict(layer.named_parameters())
    variables = {name: v for name, v in variables.items() if v.requires_grad}
    found: Sequence[Tensor | None] = [None] * len(variables)
    if pairs and variables:
        found = torch.autograd.grad(
            [result for result, _ in pairs],
            list(variables.values()),
            [seed for _, seed in pairs],
            allow_unused=True,
        )
    return {
        f"gradient of {name}": torch.zeros_like(v) if g is None else g
        for (name, v), g in zip(variables.items(), found, strict=True)
    }


def leaves_of(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    else:
        parts = nested.values() if isinstance(nested, dict) else nested
        for part in parts:
            yield from leaves_of(part)


def assert_close(got: Results, expected: Results, tolerance: float = 1e-12) -> None:
    """Every number within `tolerance` of the largest of its tensor; infinities and NaN exactly.

    What is zero but for rounding is measured by the largest of all tensors.
    """
    assert got.keys() == expected.keys()
    everything = max(scale_of(reference) for reference in expected.values())
    for name, reference in expected.items():
        result = got[name].detach()
        reference = reference.detach()
        assert result.shape == reference.shape, name
        assert result.dtype == reference.dtype, name
        torch.testing.assert_close(
            result,
            reference,
            rtol=tolerance,
            atol=tolerance * max(scale_of(reference), 1e-2 * everything),
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def assert_close_to_double(layer: Any, x: Tensor, engine: str | Engine) -> None:
    """The results in the dtype of a layer are those of the loop in float64, but for its rounding.

    The layer is in float64 afterwards.
    """
    found = evaluate(layer, x, (), engine)
    assert all(part.dtype == x.dtype for part in found.values())
    expected = evaluate(layer.double(), x.double(), (), "reference")
    double = {name: part.double() for name, part in found.items()}
    bound = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 3e-3}
    assert_close(double, expected, bound[x.dtype])


def assert_left_to_the_loop(reason: str, layer: Any, *given: Any) -> str:
    """The Python loop runs a layer on an input, and its state, for a reason; return what is said."""
    plan = cello.explain(layer, *given).plans[0]
    assert plan.engine == "reference"
    told: str = plan.reasons["native"][0]
    assert re.search(reason, told), told
    return told


def scale_of(tensor: Tensor) -> float:
    """The largest of its finite numbers."""
    finite = tensor.detach()[tensor.isfinite()].abs()
    return float(finite.max()) if finite.numel() else 0.0


def program_of(cell: cello.Cell, x: Tensor) -> Program:
    """The program of a cell, for an input (T, B, ...) and a state of the same dtype."""
    sizes = [s if isinstance(s, tuple) else (s,) for s in cell.state_sizes.values()]
    dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    state = [torch.zeros(1, *size, dtype=dtype) for size in sizes]
    return compiled(cell, x.flatten(0, 1), state)


def compare(
    cell: cello.Cell,
    x: Tensor,
    state: Sequence[Tensor],
    tolerance: float = 1e-12,
    **options: Any,
) -> None:
    """Check that the native engine gives what the reference engine gives."""
    layer = cello.Recurrent(cell)
    results = [evaluate(layer, x, state, engine, **options) for engine in ("native", "reference")]
    assert_close(*results, tolerance=tolerance)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1000 * math.prod(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@contextmanager
def count_compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collect the label of every cell that is compiled inside the ``with``."""
    module = sys.modules["cello.compile.cache"]
    original, labels = module.try_to_compile, []

    def count(cell: cello.Cell, *arguments: Any) -> Program:
        labels.append(cell.label)
        return original(cell, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "try_to_compile", count)
        yield labels
