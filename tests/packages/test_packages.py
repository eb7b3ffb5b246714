"""Cells of other people's packages in cello.Recurrent, held to the packages' own runs over time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from packages.case import MIXES, UNSEEN, Case, flat, installed
from packages.cells import PACKAGES, cases
from torch import Tensor, nn

import cello

pytestmark = pytest.mark.filterwarnings("default")  # of the packages themselves

CASES = cases()
RUNNING = [case for case in CASES if case.error is None]
SHAPES = [(1, 1, 3, 3, False), (2, 3, 5, 4, True), (17, 4, 4, 6, False)]
"""T, B, F, H, and whether the batch comes first."""


@pytest.mark.parametrize("package", PACKAGES)
def test_is_installed(package: str) -> None:
    if installed(package) is None:
        pytest.skip(f"{package} is not installed: run `make packages`")


def ids(case: Case) -> str:
    return case.label


@pytest.fixture(autouse=True)
def default_dtype(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.manual_seed(0)
    case = getattr(request.node, "callspec", None)
    torch.set_default_dtype(
        case.params["case"].dtype if case and "case" in case.params else torch.float32
    )
    yield
    torch.set_default_dtype(torch.float32)


def made(case: Case, f: int, h: int) -> tuple[Any, cello.Recurrent, nn.Module]:
    """A layer, and a cell of the same weights for the package's own run."""
    h = h if case.widens else f
    cell = case.make(f, h).to(case.dtype)
    for parameter in cell.parameters():
        if parameter.requires_grad and (parameter == 0).all():
            nn.init.normal_(parameter, std=0.1)  # biases that a package starts from zero
    state_size = case.state_size(f, h) if case.state_size else None
    own = case.make(f, h).to(case.dtype)  # not a copy, which would lack the hooks of parameters
    own.load_state_dict(cell.state_dict())
    return state_size, cell, own


def loss(output: Tensor, state: list[Tensor]) -> Tensor:
    g = torch.Generator().manual_seed(1)
    parts = [output, *state]
    return sum(
        (part.double() * torch.randn(part.shape, generator=g, dtype=torch.float64)).sum()
        for part in parts
    )


def gradients(value: Tensor, x: Tensor, cell: nn.Module) -> dict[str, Tensor]:
    names = {"x": x, **{n: p for n, p in cell.named_parameters() if p.requires_grad}}
    found = torch.autograd.grad(value, list(names.values()), allow_unused=True)
    return {
        name: torch.zeros_like(tensor) if gradient is None else gradient
        for (name, tensor), gradient in zip(names.items(), found, strict=True)
    }


def assert_close(found: Tensor, wanted: Tensor, tolerance: float, name: str = "") -> None:
    """Hold a tensor to another one, by the largest of its numbers; what is NaN there is NaN here."""
    size = max(1.0, wanted.detach().abs().nan_to_num().max().item())
    torch.testing.assert_close(
        found,
        wanted,
        rtol=tolerance,
        atol=tolerance * size,
        equal_nan=True,
        check_dtype=False,
        msg=lambda told: f"{name}: {told}",
    )


@pytest.mark.parametrize("case", RUNNING, ids=ids)
def test_equals_it_in_float32(case: Case) -> None:
    """Packages have other code for it, which float64 does not reach."""
    torch.set_default_dtype(torch.float32)
    single = replace(case, dtype=torch.float32, tolerance=max(case.tolerance, 1e-4))
    test_equals_the_run_of_its_package(single, SHAPES[-1], "auto")


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", RUNNING, ids=ids)
def test_equals_the_run_of_its_package(
    case: Case, shape: tuple[int, int, int, int, bool], engine: str
) -> None:
    T, B, F, H, batch_first = shape
    state_size, cell, own = made(case, F, H)
    layer = cello.Recurrent(cell, state_size=state_size, batch_first=batch_first)
    x = (case.scale * torch.randn(T, B, F)).requires_grad_()
    expected, state = case.run(own, x)
    if case.spikes and T > 10:
        assert 0 < expected.double().mean() < 1
    with cello.engine("reference") if engine == "reference" else nullcontext():
        for call in range(2):  # the second call begins where the first one began
            given = x.detach().clone().requires_grad_()
            output, new = layer(given.transpose(0, 1) if batch_first else given)
            output = output.transpose(0, 1) if batch_first else output
            parts = [part[0] for part in flat(new)]
            if state is None:  # the package's form has none
                parts = last = []
            else:
                last = [
                    part.reshape(own_.shape) for part, own_ in zip(flat(state), parts, strict=True)
                ]
            for part, wanted in zip([output, *parts], [expected, *last], strict=True):
                assert_close(part, wanted, case.tolerance)
            found = gradients(loss(output, parts), given, cell)
            if call == 0:
                own_gradients = gradients(loss(expected, last), x, own)
            for name, gradient in own_gradients.items():
                assert_close(found[name], gradient, case.tolerance, name)


@pytest.mark.parametrize("case", [case for case in RUNNING if case.reason != MIXES], ids=ids)
def test_sequences_of_different_lengths(case: Case) -> None:
    state_size, cell, own = made(case, 4, 6)
    layer = cello.Recurrent(cell, state_size=state_size)
    x = case.scale * torch.randn(9, 3, 4)
    lengths = [4, 9, 1]
    with torch.no_grad():
        output, _state = layer(x, lengths=lengths)
        for row, length in enumerate(lengths):
            expected, _ = case.run(own, x[:length, row : row + 1])
            assert_close(output[:length, row : row + 1], expected, case.tolerance)
            assert not output[length:, row].any()


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_what_is_said_is_true(case: Case) -> None:
    state_size, cell, _own = made(case, 4, 6)
    layer = cello.Recurrent(cell, state_size=state_size)
    x = case.scale * torch.randn(5, 3, 4)
    if case.error is not None:
        with pytest.raises(cello.CellError, match=case.error):
            layer(x)
        return
    plan = cello.explain(layer, x).plans[0]
    if case.reason is None:
        assert plan.engine == "native", plan.reasons
        return
    assert plan.engine == "reference"
    (reason,) = plan.reasons["native"]
    assert case.reason in reason
    if case.reason == UNSEEN:
        assert re.search(r"\(\w+\.py:\d+\)", reason)
    elif case.reason == MIXES:
        other = x.clone()
        other[:, 0] = torch.randn(5, 4)
        assert not torch.allclose(layer(x)[0][:, 1], layer(other)[0][:, 1])
    else:
        told = re.fullmatch(
            r"the cell changes (.*) in a step; what the next step needs belongs in the state",
            reason,
        )[1]
        for path in told.replace("its attribute ", "").split(", "):
            before = _attribute(cell, path)
            layer(x)
            assert _attribute(cell, path) is not before


def _attribute(cell: Any, path: str) -> Any:
    for name in path.split("."):
        cell = cell[name] if isinstance(cell, dict) else getattr(cell, name)
    return cell
