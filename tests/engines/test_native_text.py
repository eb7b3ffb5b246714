"""Loops read from a text: those that Cello writes run the same, and no damaged one leaves its memory."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cello
from cello.compile import Wanted, compiled
from cello.compile import text as text_module
from cello.engines.native.kernel import NativeKernel
from cello.engines.programs import scan as scan_module


class Normed(nn.Module):
    """Sums over rows, a view in parts, and a weight that two products share."""

    def __init__(self, features: int, size: int):
        super().__init__()
        self.hidden_size = size
        self.x, self.h = nn.Linear(features, 2 * size), nn.Linear(size, 2 * size)
        self.norm = nn.LayerNorm(2 * size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        gate, value = self.norm(self.x(x) + self.h(h)).chunk(2, -1)
        softened = torch.softmax(value.view(-1, 2, value.shape[1] // 2), -1).flatten(1)
        return torch.lerp(h, softened, torch.sigmoid(gate))


LAYERS = {
    "LSTM": lambda: cello.nn.LSTM(3, 4, proj_size=2),
    "GRU": lambda: cello.nn.GRU(3, 4),
    "foreign": lambda: cello.Recurrent(Normed(3, 4)),
    "bfloat16": lambda: cello.nn.LSTM(3, 4, dtype=torch.bfloat16),
}


@pytest.fixture(params=LAYERS)
def call(request, monkeypatch) -> tuple[NativeKernel, tuple[Any, ...]]:
    """The kernel of a layer and the arguments of its scan."""
    torch.manual_seed(0)
    seen = []

    def operator(kernel, program, layout, descending, *groups):
        seen.append((kernel, groups))
        return real(kernel, program, layout, descending, *groups)

    real = scan_module.scan_operator
    monkeypatch.setattr(scan_module, "scan_operator", operator)
    monkeypatch.setattr(scan_module, "have_memory", lambda tensors: False)
    layer = LAYERS[request.param]()
    with cello.engine("native"):
        dtype = next(layer.parameters()).dtype
        layer(torch.randn(5, 3, 3, dtype=dtype, requires_grad=True))
    kernel, groups = seen[0]
    return kernel, tuple([tensor.detach() for tensor in group] for group in groups)


def forward(kernel: NativeKernel, groups: tuple[Any, ...]) -> list[list[Tensor]]:
    call, *made = kernel.forward(5, 15, None, False, *groups)
    kernel.run([call])
    return made


def run(kernel: NativeKernel, groups: tuple[Any, ...]) -> list[Tensor | None]:
    """Both loops, at 5 steps of 3 sequences."""
    results, finals, saved = forward(kernel, groups)
    if not kernel.is_differentiable:
        return [*results, *finals]
    gradients = [torch.ones_like(t) for t in (*results, *finals)]
    kept = [r if is_read else None for r, is_read in zip(results, kernel.reads, strict=True)]
    back, found = kernel.backward(
        5, 15, None, False, gradients, *groups, kept, saved[0] if saved else None
    )
    kernel.run([back])
    return [*results, *finals, *kernel.in_their_dtypes(found)]


def places(item: Any) -> list[tuple[Any, Any]]:
    """Everything but lists in nested lists and dictionaries: what holds it, and under which key."""
    entries = item.items() if isinstance(item, dict) else enumerate(item)
    found = []
    for key, value in entries:
        if isinstance(value, dict | list):
            found += places(value)
        else:
            found.append((item, key))
    return found


def test_a_text_runs_like_the_kernel_that_wrote_it(call):
    kernel, groups = call
    read = NativeKernel.read(kernel.text)
    assert text_module.write(read.loops) == kernel.text
    for a, b in zip(run(kernel, groups), run(read, groups), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_a_wide_layer():
    layer = cello.nn.LSTM(1100, 1100)
    (cell,) = layer._cells()[0]
    program = compiled(cell, torch.zeros(2, 1100), (torch.zeros(1, 1100),) * 2)
    kernel = NativeKernel.of(program, True, Wanted((True,), (True,) * 4))
    assert text_module.write(text_module.read(kernel.text)) == kernel.text


NAMES = ["tanh", "mul", "where", "sum", "amax", "product", "assemble", "copy", "forward", ""]
OTHERS = [-1, 0, 1, 2, 7, 1 << 40, 10**400, 0.5, None, True, [], {}, *NAMES]


def test_nothing_damaged_leaves_its_memory(call):
    """Texts with one entry changed are refused, or run and change nothing but their results."""
    kernel, groups = call
    given = [tensor.clone() for group in groups for tensor in group]
    draw = random.Random(0)
    content = json.loads(kernel.text)
    count = len(places(content))
    refused = 0
    for index in range(count):
        holder, key = places(content)[index]
        before = holder[key]
        numbers = [draw.randrange(-64, 64), draw.randrange(8)]
        for value in (*draw.sample(OTHERS, 6), *numbers):
            holder[key] = value
            try:
                damaged = NativeKernel(text_module.read.__wrapped__(json.dumps(content)))
                damaged.check(15, *groups, None)
            except ValueError:
                refused += 1
                continue
            run(damaged, groups)
            for tensor, old in zip((t for g in groups for t in g), given, strict=True):
                assert torch.equal(tensor, old)
        holder[key] = before
    assert refused > 4 * count  # most entries have few values that make sense


def test_nothing_that_lacks_a_part_is_read(call):
    """Texts of which a list or a dictionary has lost an entry, or has one twice."""
    kernel, groups = call
    content = json.loads(kernel.text)

    def holders(item: Any) -> list[Any]:
        inner = item.values() if isinstance(item, dict) else item
        return [
            item,
            *(h for part in inner if isinstance(part, dict | list) for h in holders(part)),
        ]

    for index, holder in enumerate(holders(content)):
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            changed = copy.deepcopy(content)
            damaged = holders(changed)[index]
            if isinstance(damaged, list) and key % 2:
                damaged.insert(key, copy.deepcopy(damaged[key]))
            else:
                del damaged[key]
            try:
                kernel = NativeKernel(text_module.read.__wrapped__(json.dumps(changed)))
                kernel.check(15, *groups, None)
            except ValueError:
                continue
            run(kernel, groups)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("forward", "body"), None),
        (("forward", "body", 0), ["tanh", [3], [0, 0, [1]], [0, 0, [1]]]),
        (("forward", "body", 0), ["sinus", [3], [0, 0, [1]]]),
        (("forward", "body", 0), ["tanh", [3], [1 << 20, 0, [1]]]),
        (("forward", "body", 0), ["tanh", [3], [0, 1, [1]]]),
        (("forward", "body", 0), ["tanh", [1 << 10] * 4, [0, 0, [0] * 4]]),
        (("forward", "constants"), ["1"]),
        (("forward", "writes"), []),
        (("forward", "new_states", 0), 0),
        (("forward", "reads", 0), [3, 0, 0, 0]),
        (("forward", "streams", "saved"), []),
        (("forward", "streams", "results"), [0]),
        (("forward", "streams", "more"), []),
        (("backward", "outers"), [[0, 0, 1, 0, 0, 1, 0, 0, 1, 1]]),
        (("wanted", 0), [1]),
        (("wanted", 1), []),
        (("dtype",), "int8"),
        (("statics", 0), [[1.5], None]),
        (("states",), []),
    ],
)
def test_what_is_malformed_is_named(call, path, value):
    content = json.loads(call[0].text)
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    with pytest.raises(ValueError, match="malformed program"):
        text_module.read(json.dumps(content))


@pytest.mark.parametrize("written", ["[]", "{}", '{"format": 3}', '{"format": "4"}'])
def test_texts_of_other_versions(written):
    with pytest.raises(ValueError, match="another version of Cello; export the model again"):
        text_module.read(written)


@pytest.mark.parametrize("written", ["", "no text", "[" * 100_000])
def test_what_is_no_text_at_all(written):
    with pytest.raises(ValueError, match=r"malformed|Expecting"):
        text_module.read(written)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_dtype_that_the_engine_does_not_compute_in(call, dtype):
    content = json.loads(call[0].text) | {"dtype": dtype}
    with pytest.raises(ValueError, match="the native engine computes in float64"):
        NativeKernel.read(json.dumps(content))


def test_the_operators_hold_tensors_to_the_program(call):
    kernel, groups = call
    results, finals, saved = forward(kernel, groups)
    kept = [r for r, is_read in zip(results, kernel.reads, strict=True) if is_read] + saved
    gradients = [*results, *finals]
    given = [True] * len(gradients)
    scan_backward = torch.ops.cello.scan_backward

    def changed(group: list[Tensor]) -> list[Tensor]:
        return [*group[:-1], group[-1][:, :-1]]

    scan_backward(kernel.text, gradients, given, *groups, kept, None, 15, False)
    inputs, statics, states = groups
    for wrong in (
        (changed(gradients), given, *groups, kept),
        (gradients, given, *groups, changed(kept)),
        (gradients, given, *groups, [t.double() for t in kept]),
        (gradients, given, changed(inputs), statics, states, kept),
        (gradients, given, inputs, statics, changed(states), kept),
        ([*gradients[:-1], gradients[-1][:2]], given, *groups, kept),
    ):
        with pytest.raises(ValueError, match="a scan"):
            scan_backward(kernel.text, *wrong, None, 15, False)
    with pytest.raises(ValueError, match="what its forward loop saved"):
        scan_backward(
            kernel.text, gradients, given, *groups, kept[: len(kept) - 1], None, 15, False
        )


@pytest.mark.parametrize(
    "sizes",
    [torch.tensor([3, 3, 3, 3, 3], dtype=torch.int32), torch.tensor([[3, 3, 3, 3, 3]])],
)
def test_batch_sizes_of_another_kind(call, sizes):
    kernel, groups = call
    with pytest.raises(ValueError, match="batch sizes"):
        torch.ops.cello.scan(kernel.text, *groups, sizes, 15, False)


def test_batch_sizes_that_do_not_lie_side_by_side(call):
    kernel, groups = call
    sizes = torch.tensor([3, 9, 3, 9, 3, 9, 3, 9, 3, 9])[::2]
    found = torch.ops.cello.scan(kernel.text, *groups, sizes, 15, False)
    results, finals, saved = forward(kernel, groups)
    for a, b in zip(found, (*results, *finals, *saved), strict=True):
        assert torch.equal(a, b)


def test_the_bounds_are_such_that_products_of_numbers_fit():
    rows = 1 << 30
    assert text_module.WIDEST_ROW * rows * 8 < 2**63


def test_a_matrix_that_repeats_the_numbers_of_a_weight():
    class Repeating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.row = nn.Parameter(torch.randn(1, 5))

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(x + 0.3 * h @ self.row.expand(5, -1).T)

    layer, x = cello.Recurrent(Repeating(), state_size=5), torch.randn(4, 2, 5)
    layer(x)
    found = []
    for run in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        layer.zero_grad()
        run(x)[0].square().sum().backward()
        found.append(layer.cells["l0"].row.grad.clone())
    torch.testing.assert_close(*found)
