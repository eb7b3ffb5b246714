"""Programs read from a text: those that Cello writes pass, and no damaged one leaves its memory."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cello
from cello.engines.native import check as check_module
from cello.engines.native import scan as scan_module
from cello.engines.native.check import check
from cello.engines.native.kernel import Kernel, read_kernel
from cello.engines.native.kernel import run as run_calls


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
def call(request, monkeypatch) -> tuple[Kernel, tuple[Any, ...]]:
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


def forward(kernel: Kernel, groups: tuple[Any, ...]) -> list[list[Tensor]]:
    call, *made = kernel.forward(5, 15, None, False, *groups)
    run_calls([call])
    return made


def run(kernel: Kernel, groups: tuple[Any, ...]) -> list[Tensor | None]:
    """Both loops, at 5 steps of 3 sequences."""
    results, finals, saved = forward(kernel, groups)
    gradients = [torch.ones_like(t) for t in (*results, *finals)]
    kept = [r if is_read else None for r, is_read in zip(results, kernel.reads, strict=True)]
    back, found = kernel.backward(
        5, 15, None, False, gradients, *groups, kept, saved[0] if saved else None
    )
    run_calls([back])
    return [*results, *finals, *kernel.in_their_dtypes(found)]


def places(item: Any) -> list[tuple[Any, Any]]:
    """Every number of nested lists and dictionaries: what holds it, and under which key."""
    entries = item.items() if isinstance(item, dict) else enumerate(item)
    found = []
    for key, value in entries:
        if isinstance(value, dict | list):
            found += places(value)
        elif type(value) is int:
            found.append((item, key))
    return found


def test_a_text_runs_like_the_kernel_that_wrote_it(call):
    kernel, groups = call
    for a, b in zip(run(kernel, groups), run(read_kernel(kernel.text), groups), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_no_damaged_number_leaves_its_memory(call):
    """Programs with one number changed are refused, or run and change nothing but their results."""
    kernel, groups = call
    given = [tensor.clone() for group in groups for tensor in group]
    draw = random.Random(0)
    refused = 0
    count = len(places(kernel.content))
    for index in range(count):
        for value in (-1, 0, 1, 2, 7, 1 << 40, draw.randrange(-64, 64)):
            content = copy.deepcopy(kernel.content)
            holder, key = places(content)[index]
            holder[key] = value
            try:
                check(content)
            except ValueError:
                refused += 1
                continue
            damaged = Kernel(content)
            try:
                damaged.check(15, *groups, None)
            except ValueError:
                continue
            run(damaged, groups)
            for tensor, before in zip((t for g in groups for t in g), given, strict=True):
                assert torch.equal(tensor, before)
    assert refused > count  # most numbers have few values that make sense


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("forward", "buffers"), None),
        (("forward", "terms"), [[0] * 8]),
        (("forward", "numbers"), ["1"]),
        (("forward", "sums"), [-1]),
        (("forward", "after"), [1 << 20]),
        (("forward", "outers"), [[0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 1]]),
        (("forward", "more"), []),
        (("inputs",), [1]),
        (("reads",), []),
        (("dtype",), "int8"),
        (("static_shapes",), [[1.5]]),
        (("bfloat16",), []),
        (("bfloat16",), [1, 1, 1, 1, 1]),
    ],
)
def test_what_is_malformed_is_named(call, path, value):
    content = copy.deepcopy(call[0].content)
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    with pytest.raises(ValueError, match="malformed program"):
        read_kernel(json.dumps(content))


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


def test_sizes_whose_product_overflows(call):
    content = copy.deepcopy(call[0].content)
    huge = (1 << 31) - 1
    content["forward"]["matrices"].append([huge, huge, 0, 0, 0, 0, 0, 0, huge, huge])
    with pytest.raises(ValueError, match="malformed"):
        check(content)
    content = copy.deepcopy(call[0].content)
    content["widths"] = [0 for _ in content["widths"]]
    with pytest.raises(ValueError, match="malformed"):
        check(content)


def test_the_limit_is_one_that_products_of_numbers_bear():
    assert check_module._LIMIT**2 < 2**63
