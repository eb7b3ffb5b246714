"""Operations and kinds of memory are known by name: a library that has others, or other numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import cello
from cello.compile import compiled
from cello.engines.native import library as library_module
from cello.engines.native.addresses import make_schedule
from cello.engines.native.encode import encode
from cello.engines.native.library import Numbers, library, numbers_of


@pytest.fixture
def numbers() -> Numbers:
    module = library()
    if module is None:
        pytest.skip("the native engine was not built")
    return numbers_of(module)


@pytest.mark.parametrize("lacking", ["tanh", "accumulate", "sum", "tile"])
def test_a_library_that_lacks_a_name_is_not_used(lacking: str, numbers: Numbers, monkeypatch):
    groups = [[name for name in group if name != lacking] for group in numbers]
    other = SimpleNamespace(operations=lambda: groups[0], spaces=lambda: groups[1])
    monkeypatch.setattr("cello.engines.native._native", other)
    monkeypatch.setattr(library_module, "numbers_of", numbers_of.__wrapped__)
    module, reason = library_module._load.__wrapped__()
    assert (module, reason) == (None, "it was built from other sources than these")


@pytest.mark.usefixtures("numbers")
def test_a_library_without_names_is_not_used(monkeypatch):
    monkeypatch.setattr("cello.engines.native._native", SimpleNamespace(operations=lambda: 58))
    module, reason = library_module._load.__wrapped__()
    assert (module, reason) == (None, "it was built from other sources than these")


def test_each_number_is_looked_up(numbers: Numbers):
    """With the numbers in the opposite order a schedule is the same but for them."""
    (cell,) = cello.nn.LSTM(3, 4)._cells()[0]
    program = compiled(cell, torch.zeros(2, 3), (torch.zeros(1, 4),) * 2)
    schedule = make_schedule(program.loops(True, None).forward)
    turned = Numbers(*({n: len(g) - 1 - k for n, k in g.items()} for g in numbers))
    here, there = encode(schedule, numbers), encode(schedule, turned)
    for name, group in (("instructions", numbers.operations), ("buffers", numbers.spaces)):
        assert here[name]
        for one, other in zip(here.pop(name), there.pop(name), strict=True):
            assert [len(group) - 1 - one[0], *one[1:]] == other
    assert here == there
