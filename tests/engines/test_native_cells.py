"""The cells of both collections: the native engine gives what the Python loop gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import exact_derivatives
from more_foreign_cells import UNCOMPILABLE, More
from samples import COMPILED, EVERY, FORMS, LEFT, F, H, Sample, T, seed_of
from steps import assert_close
from torch import nn

import cello


@pytest.mark.usefixtures("default_dtype")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", COMPILED)
def test_float64_equals_the_python_loop(name: str, form: str):
    sample = Sample(name, 4, H, torch.float64)
    with exact_derivatives():
        expected = sample.run("reference", **FORMS[form])
    assert_close(sample.run("native", **FORMS[form]), expected, 1e-10)


@pytest.mark.usefixtures("default_dtype")
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", COMPILED)
def test_odd_widths_and_batches(name: str, large: bool):
    """Each cell with one of three widths, none a multiple of a vector; more rows than a tile has, too."""
    seed = seed_of(name)
    batch = 33 if large else 1 + seed % 3 % 2
    options = {} if seed % 2 else {"lengths": [3] if batch == 1 else ([4, 1, 0, 3] * 9)[:batch]}
    sample = Sample(name, batch, (7, 3, 9)[seed // 3 % 3], torch.float64, f=3)
    with exact_derivatives():
        expected = sample.run("reference", **options)
    assert_close(sample.run("native", **options), expected, 1e-10)


@pytest.mark.parametrize("name", ["TorchLSTM", "TorchGRU", "LayerNormLSTM", "IndRNN", "OneUnit"])
def test_one_unit_and_one_feature(name: str):
    sample = Sample(name, 2, 1, torch.float64, f=1)
    sample.options["state_size"] = sample.known.state(sample.f, sample.h)
    assert_close(sample.run("native"), sample.run("reference"), 1e-10)


@pytest.mark.usefixtures("default_dtype")
@pytest.mark.parametrize("name", COMPILED)
def test_two_layers_of_two_directions(name: str):
    sample = Sample(name, 3, H, torch.float64)
    known = sample.known
    if "Function" in name or (
        isinstance(known, More) and (known.reads_symbols or not known.stacks)
    ):
        pytest.skip("a second one cannot read its output")
    if known.state(F, H) != known.state(F + 1, H):
        pytest.skip("the width of its state is that of its input, which differs between layers")
    results = []
    for engine in ("native", "reference"):

        def factory(features: int) -> nn.Module:
            return known.make(features, sample.h).to(torch.float64)

        torch.manual_seed(0)
        layer = cello.Recurrent(
            factory, F, num_layers=2, bidirectional=True, **sample.options
        ).eval()
        with exact_derivatives() if engine == "reference" else torch.enable_grad():
            results.append(sample.run(engine, layer, 4, lengths=[4, 1, 3], return_states="all"))
    assert_close(*results, 1e-10)


@pytest.mark.parametrize("name", COMPILED)
def test_float32_is_as_accurate_as_the_python_loop(name: str):
    """The error against float64 is at most twice that of torch's operations, one by one."""
    if isinstance(EVERY[name], More) and EVERY[name].jumps:
        pytest.skip("a last bit may decide")
    single = Sample(name, 5, 9, torch.float32)
    cell = single.cell()
    double = Sample(name, 5, 9, torch.float64)
    double.cell = lambda: single.cell().double() if isinstance(cell, nn.Module) else cell
    double.x = lambda: single.x().double() if single.x().is_floating_point() else single.x()
    double.state = lambda rows=1: [part.double() for part in single.state(rows)]
    with exact_derivatives():
        torch.set_default_dtype(torch.float64)
        try:
            truth = double.run("reference")
        finally:
            torch.set_default_dtype(torch.float32)
    theirs, ours = single.run("reference"), single.run("native")
    assert ours.keys() == theirs.keys() == truth.keys()
    for key, exact in truth.items():
        error = (ours[key].double() - exact).norm()
        allowed = 2 * (theirs[key].double() - exact).norm()
        assert ours[key].dtype == theirs[key].dtype
        assert error <= allowed + 2e-6 * exact.norm() + 1e-9, key


@pytest.mark.usefixtures("default_dtype")
@pytest.mark.parametrize("name", COMPILED[::6])
def test_two_threads(name: str):
    """Enough rows and steps that both are used."""
    sample = Sample(name, 33, 8, torch.float64)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            results.append(sample.run("native", lengths=([4, 2, 3, 0, 1] * 7)[:33]))
        finally:
            torch.set_num_threads(before)
    assert_close(results[1], results[0], 1e-10)


@pytest.mark.usefixtures("default_dtype")
@pytest.mark.parametrize("name", sorted(LEFT))
def test_what_may_be_left_gives_the_same_and_says_why(name: str):
    sample = Sample(name, 4, H, torch.float64)
    layer = sample.layer()
    plan = cello.explain(layer, sample.x(), sample.structure.unflatten(sample.state())).plans[0]
    if plan.engine == "native":
        with exact_derivatives():
            expected = sample.run("reference")
        assert_close(sample.run("native"), expected, 1e-10)
    else:
        assert plan.engine == "reference"
        assert len(plan.reasons["native"]) == 1
        assert name in plan.reasons["native"][0]


def line_of(known: Any) -> int:
    import more_foreign_cells

    with open(more_foreign_cells.__file__, encoding="utf-8") as file:
        lines = [n for n, text in enumerate(file, 1) if text.strip() == known.line]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("name", [n for n, c in UNCOMPILABLE.items() if not c.refused])
def test_what_cannot_be_compiled_says_why_and_where(name: str):
    known = UNCOMPILABLE[name]
    torch.manual_seed(0)
    layer = cello.Recurrent(known.make(F, H), state_size=known.state(F, H))
    plan = cello.explain(layer, torch.randn(T, 3, F)).plans[0]
    assert plan.engine == "reference"
    (reason,) = plan.reasons["native"]
    if known.reason != "attribute":  # which is found at the end of a step
        assert name in reason
        assert f"(more_foreign_cells.py:{line_of(known)})" in reason
    assert REASONS[known.reason] in reason


REASONS = {
    "solve": "linalg",
    "attribute": "the cell changes its attribute",
    "buffer": "writes into",
    "convolution": "uses convolution",
    "integers": "converts to torch.int64",
    "random": "draws random numbers",
    "layer": "",
}
"""What a message names beside the cell and the line."""


def test_sequences_are_cut_anywhere():
    """The native engine continues from its own state, as a whole."""
    for name in ("TorchLSTM", "NestedLSTM", "FastWeights", "SlotMemory"):
        sample = Sample(name, 3, H, torch.float64)
        layer = sample.layer()
        x, hx = sample.x(), sample.structure.unflatten(sample.state())
        with cello.engine("native"):
            whole, end = layer(x, hx)
            first, middle = layer(x[:2], hx)
            second, last = layer(x[2:], middle)
        torch.testing.assert_close(torch.cat([first, second]), whole, rtol=1e-12, atol=1e-13)
        for a, b in zip(sample.structure.flatten(last), sample.structure.flatten(end), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


class ReadAgain(nn.Module):
    """A step whose values stand beside others for one product, and are read again behind it."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(14, 7)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        u = x + 0.5 * h
        if self.kind == "activation":
            return torch.tanh(u + self.linear(torch.relu(torch.cat([u, x], -1))))
        if self.kind == "signs":
            return torch.tanh(u + self.linear(torch.relu(torch.cat([u, -u], -1))))
        if self.kind == "normalised":
            return torch.tanh(
                u + self.linear(nn.functional.layer_norm(torch.cat([u, h], -1), (14,)))
            )
        if self.kind == "stacked":
            return torch.tanh(u + self.linear(torch.stack([u, x], 1).softmax(1).flatten(1)))
        return torch.tanh(u * self.linear(torch.cat([u.tanh(), u.sigmoid()], -1)))


@pytest.mark.parametrize("rows", [3, 17, 40])
@pytest.mark.parametrize("kind", ["activation", "signs", "normalised", "stacked", "two functions"])
def test_a_value_that_is_read_again_behind_a_product(kind: str, rows: int):
    layer = cello.Recurrent(ReadAgain(kind).double(), state_size=7)
    x = torch.randn(5, rows, 7, dtype=torch.float64, requires_grad=True)
    found = []
    for engine in ("native", "reference"):
        with cello.engine(engine):
            output, h_n = layer(x)
        loss = output.square().sum() + h_n.sum()
        gradients = torch.autograd.grad(loss, [x, *layer.parameters()])
        found.append({str(k): part for k, part in enumerate((output, h_n, *gradients))})
    assert_close(*found, 1e-11)


class Chunks(nn.Module):
    """A state that adds a part of an activated product."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]):
        h, c = state
        a, u = self.linear(torch.cat([x, h, c], -1)).tanh().chunk(2, -1)
        c = c + u
        return a + c, (a, c)


@pytest.mark.parametrize(("rows", "lengths"), [(3, [2, 4, 1]), (3, None), (33, None)])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_state_that_adds_a_part_of_a_product(rows: int, lengths: Any, reverse: bool):
    layer = cello.Recurrent(Chunks().double(), reverse=reverse, state_size=(2, 2))
    x = torch.randn(4, rows, 2, dtype=torch.float64, requires_grad=True)
    found = []
    for engine in ("native", "reference"):
        with cello.engine(engine):
            output, _ = layer(x, lengths=lengths)
        gradients = torch.autograd.grad(output.sin().sum(), [x, *layer.parameters()])
        found.append({str(k): part for k, part in enumerate((output, *gradients))})
    assert_close(*found, 1e-11)
