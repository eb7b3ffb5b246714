"""The kinds of layers, their options and their inputs: written once, run through by many tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import product
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

LAYERS = ("RNN", "LSTM", "GRU")
CELLS = ("RNNCell", "LSTMCell", "GRUCell")
ENGINES = (None, "reference")
"""What Cello chooses by itself (the native engine where it can), and the reference implementation."""
EVERY_ENGINE = ("native", "vendor", "reference")

F, H, P = 3, 4, 2  # widths of input, state and projection, all different
OPTIONS: dict[str, dict[str, Any]] = {
    "RNN": {},
    "RNN-relu": {"nonlinearity": "relu"},
    "LSTM": {},
    "LSTM-proj": {"proj_size": P},
    "GRU": {},
}
"""A kind of layer is a class and the options that change its equations."""
FORMS = ("padded", "packed", "unsorted", "unbatched")


@dataclass(frozen=True)
class Case:
    """One layer and one way of calling it."""

    kind: str
    num_layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    batch_first: bool = False
    form: str = "padded"
    has_state: bool = True
    steps: int = 4
    batch_size: int = 3
    width: int = field(default=H)

    def __str__(self) -> str:
        given = [(f.name, getattr(self, f.name)) for f in fields(self) if f.name != "kind"]
        return "-".join([self.kind, *(f"{name}={value}" for name, value in given[:6])])

    @property
    def class_name(self) -> str:
        return self.kind.split("-")[0]

    def make(self, namespace: ModuleType, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The layer of `namespace`, torch.nn or cello.nn; the same weights every time."""
        torch.manual_seed(0)
        return getattr(namespace, self.class_name)(
            F,
            self.width,
            self.num_layers,
            bias=self.bias,
            batch_first=self.batch_first,
            bidirectional=self.bidirectional,
            dtype=dtype,
            **OPTIONS[self.kind],
        )

    def lengths(self) -> list[int]:
        """Lengths of a packed batch, from `steps` down to 1 with repeats."""
        lengths = [max(1, self.steps - (3 * k + 1) // 2) for k in range(self.batch_size)]
        return lengths if self.form == "packed" else lengths[1:] + lengths[:1]

    def inputs(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """The leaves of one call: the input and the parts of the state, the same every time."""
        generator = torch.Generator().manual_seed(1)
        batch = () if self.form == "unbatched" else (self.batch_size,)
        shape = (self.steps, *batch, F)
        if self.batch_first and batch:
            shape = (*batch, self.steps, F)
        leaves = {"input": shape}
        if self.has_state:
            rows = self.num_layers * (2 if self.bidirectional else 1)
            leaves["h_0"] = (rows, *batch, OPTIONS[self.kind].get("proj_size", self.width))
            if self.class_name == "LSTM":
                leaves["c_0"] = (rows, *batch, self.width)
        return {
            name: torch.randn(shape, generator=generator, dtype=torch.float64)
            .to(dtype)
            .requires_grad_()
            for name, shape in leaves.items()
        }

    def call(self, layer: nn.Module, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        """Call `layer` in this form and return its results by name."""
        x: Any = leaves["input"]
        if self.form in ("packed", "unsorted"):
            x = pack_padded_sequence(
                x, self.lengths(), self.batch_first, enforce_sorted=self.form == "packed"
            )
        hx: Any = leaves.get("h_0")
        if "c_0" in leaves:
            hx = (hx, leaves["c_0"])
        output, state = layer(x, hx)
        results = {}
        if isinstance(output, PackedSequence):
            results["batch_sizes"] = output.batch_sizes
            for name in ("sorted_indices", "unsorted_indices"):
                indices = getattr(output, name)
                results[name] = torch.empty(0) if indices is None else indices
            output = output.data
        states = state if isinstance(state, tuple) else (state,)
        return {"output": output} | dict(zip(("h_n", "c_n"), states, strict=False)) | results


def values_and_gradients(
    case: Case, layer: nn.Module, leaves: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The results of a call, and the gradients of their sum with fixed random weights."""
    results = case.call(layer, leaves)
    generator = torch.Generator().manual_seed(2)
    floats = [r for r in results.values() if r.requires_grad]
    cotangents = [
        torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in floats
    ]
    variables = leaves | dict(layer.named_parameters())
    gradients = torch.autograd.grad(floats, list(variables.values()), cotangents)
    named = {f"gradient of {name}": g for name, g in zip(variables, gradients, strict=True)}
    return {name: r.detach() for name, r in results.items()} | named


def grid(**choices: Any) -> list[Case]:
    """Every combination of the choices, each a tuple of values of a field of :class:`Case`."""
    return [
        Case(**dict(zip(choices, values, strict=True))) for values in product(*choices.values())
    ]


@contextmanager
def exact_derivatives() -> Iterator[None]:
    """Give hardsigmoid, hardswish and celu the derivatives that they have, where they are the reference.

    torch multiplies the gradients of the former by 1/6 rounded to float32, in float64 too, and that of
    the latter by such a 1/alpha, so that they are wrong by 1e-8 there; Cello's native engine does
    not. Functions of which torch has the exact derivative take their place.
    """

    def hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
        return torch.clamp(x + 3, 0, 6) / 6

    def celu(x: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
        return torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0) / alpha))

    functions = nn.functional
    before = functions.hardsigmoid, functions.hardswish, functions.celu
    functions.hardsigmoid, functions.celu = hardsigmoid, celu
    functions.hardswish = lambda x, inplace=False: x * hardsigmoid(x)
    try:
        yield
    finally:
        functions.hardsigmoid, functions.hardswish, functions.celu = before


def distance(a: Tensor, b: Tensor) -> float:
    """The norm of a - b as a part of the norm of b."""
    a, b = a.detach().double(), b.detach().double()
    norm = float(b.norm())
    return float((a - b).norm()) / norm if norm else float((a - b).norm())


def make_pair(name: str, *args: Any, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """Cello's layer and torch's with the same weights."""
    import cello

    torch.manual_seed(0)
    ours = getattr(cello.nn, name)(*args, **kwargs)
    theirs = getattr(nn, name)(*args, **kwargs)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def flatten(results: Any) -> list[Tensor]:
    """The tensors in what a layer returned, in order."""
    if isinstance(results, Tensor):
        return [results]
    if isinstance(results, PackedSequence):
        return [results.data]
    return [tensor for part in results for tensor in flatten(part)]


def assert_same(ours: Any, theirs: Any, *, rtol: float = 1e-12, atol: float = 1e-13) -> None:
    """Compare two results of layers, tensor by tensor, dtypes and shapes included."""
    torch.testing.assert_close(flatten(ours), flatten(theirs), rtol=rtol, atol=atol)
