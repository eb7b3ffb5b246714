"""Persistent kernels phase by phase in Triton's interpreter: values and gradients against other engines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from samples import LAYERS
from steps import assert_close, evaluate, random
from torch import Tensor, nn

import cello
from cello.engines.triton import Triton, kernel, kinds
from cello.engines.triton.library import is_interpreted

pytest.importorskip("triton", reason="Triton is not installed: make triton-test")
pytestmark = [
    pytest.mark.skipif(not is_interpreted(), reason="TRITON_INTERPRET is not 1"),
    pytest.mark.usefixtures("default_dtype", "selected"),
]


@pytest.fixture
def selected(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Persistent kernels, whose programs own few units."""
    monkeypatch.setenv(kinds.SELECTION, "persistent")
    monkeypatch.setattr(kinds, "OWN", (4,))
    kernel.compiled.cache_clear()
    yield
    kernel.compiled.cache_clear()


@pytest.mark.parametrize("options", [{"lengths": [4, 2, 0, 3]}, {"return_states": "all"}], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer(kind: str, options: dict[str, Any]):
    torch.manual_seed(0)
    layer, x = LAYERS[kind](), random(4, 4, 5)
    found, expected = (evaluate(layer, x, (), e, **options) for e in (Triton(), "native"))
    assert_close(found, expected)
