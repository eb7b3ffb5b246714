"""Compiles the Triton engine's kernels for a GPU that is not here, and prints what they need of it as JSON.

``python tests/triton_ahead.py 90``: for compute capability 9.0. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor, nn
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

import cello
from cello.compile import Loops, Wanted, compiled, for_storage
from cello.compile.loops import Pass
from cello.engines.triton import graph, kernel, kinds, together
from cello.engines.triton.kinds import choose
from cello.engines.triton.library import build, in_triton
from cello.engines.triton.loop import RowWriter, UnitWriter
from cello.engines.triton.persistent import HELD, PersistentWriter, Room

SMALL, LARGE = 128, 768
SHIPPED = ("LSTM", "GRU", "RNN", "MGU", "PeepholeLSTM")
SMALL_CELLS = {
    torch.float32: (*SHIPPED, "MinimalGRU", "LayerNormLSTM", "Tokens"),
    torch.bfloat16: (*SHIPPED, "MinimalGRU"),
}
LARGE_CELLS = {
    torch.float32: ("LSTM", "LayerNormLSTM"),
    torch.bfloat16: ("GRU",),
    torch.float64: ("LSTM",),
}
PERSISTENT_CELLS = {
    torch.bfloat16: ("LSTM", "GRU", "ResetGRU"),
    torch.float32: ("LSTM",),
}
"""The others than the first for one GPU only, since these kernels take seconds to compile."""
SLOW = ("Tokens",)
"""For one GPU only, too."""
EXACT = ("LSTM", torch.float32), ("MGU", torch.float32)
"""Compiled for products as torch multiplies unless it is asked for TF32, too."""
FULL = 90
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
EXCHANGE = re.compile(r"(?:atom|red|ld)\.global\.gpu\.(acquire|release)")
NAMES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16"}


class MinimalGRU(nn.Module):
    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate, self.new = (nn.Linear(width, width, dtype=dtype) for _ in range(2))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z = torch.sigmoid(self.gate(x))
        return (1 - z) * h + z * self.new(x)


class LayerNormLSTM(nn.Module):
    """Sums along the features between the products: a program owns whole rows."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.x, self.h = (nn.Linear(width, 4 * width, dtype=dtype) for _ in range(2))
        self.norm = nn.LayerNorm(4 * width, dtype=dtype)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
        h, c = state
        i, f, g, o = (self.x(x) + self.norm(self.h(h))).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class ResetGRU(nn.Module):
    """Two products one after the other: the state is reset before it is multiplied."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.x = nn.Linear(width, 3 * width, dtype=dtype)
        self.gates, self.new = (nn.Linear(width, n * width, dtype=dtype) for n in (2, 1))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        of_r, of_z, of_new = self.x(x).chunk(3, 1)
        r, z = self.gates(h).chunk(2, 1)
        r, z = torch.sigmoid(of_r + r), torch.sigmoid(of_z + z)
        return z * h + (1 - z) * torch.tanh(of_new + self.new(r * h))


class Tokens(nn.Module):
    """8 tokens that look at 8 others: long sums in many groups."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width, dtype=dtype))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        asked, tokens = x.unflatten(1, (8, -1)), h.unflatten(1, (8, -1))
        return self.scale * (torch.softmax(asked @ tokens.mT, 2) @ tokens).flatten(1)


OWN = {
    "MinimalGRU": (MinimalGRU, 1),
    "Tokens": (Tokens, 1),
    "LayerNormLSTM": (LayerNormLSTM, 2),
    "ResetGRU": (ResetGRU, 1),
}
"""Cells that Cello does not ship, and how many parts their state has."""


def loops(name: str, dtype: torch.dtype, width: int) -> Loops:
    layer: Any
    if name in OWN:
        cell, parts = OWN[name]
        sizes = width if parts == 1 else (width,) * parts
        layer = cello.Recurrent(cell(width, dtype), state_size=sizes)
    else:
        layer = getattr(cello.nn, name)(width, width, dtype=dtype)
    x = torch.zeros(2, 3, width, dtype=dtype)
    layer(x)
    (cell,) = layer._cells()[0]
    state = tuple(x.new_zeros(1, *shape) for shape in cell.state_shapes.values())
    program = compiled(cell, x[0], state, for_storage(dtype))
    everything = Wanted((True,) * len(program.beforehand), (True,) * len(program.statics))
    return program.loops(False, everything)


def needs(
    function: Any, types: dict[str, str], constants: dict[str, Any], how: dict[str, int]
) -> dict[str, Any]:
    """Compile a kernel and read what it needs.

    Args:
        function: the kernel.
        types: of its arguments.
        constants: those that are compiled in.
        how: options of Triton.
    """
    signature = {name: types.get(name, "constexpr") for name in function.arg_names}
    places = {(function.arg_names.index(name),): value for name, value in constants.items()}
    made = triton.compile(
        ASTSource(fn=function, signature=signature, constexprs=places),
        target=TARGET,
        options=how,
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", told).groups())
    return {
        "registers": registers,
        "stack": stack,
        "shared": made.metadata.shared,
        "tensor cores": "mma.sync" in made.asm["ptx"] or "wgmma" in made.asm["ptx"],
        "exchange": sorted(set(EXCHANGE.findall(made.asm["ptx"]))),
        "is one for all sizes": is_one_for_all_sizes(function, signature, constants),
    }


def is_one_for_all_sizes(function: Any, types: dict[str, str], constants: dict[str, Any]) -> bool:
    """Whether Triton would launch the same kernel whatever its whole numbers are."""
    bind = create_function_from_signature(function.signature, function.params, make_backend(TARGET))
    number = torch.zeros(16)
    found = []
    for size in (1, 5, 16):
        given = {n: size if types[n] == "i32" else number for n in types if n not in constants}
        found.append(bind(**given, **constants)[1])
    return found[0] == found[1] == found[2]


def loop_kernel(name: str, dtype: torch.dtype, way: Pass, found: Loops) -> dict[str, Any]:
    """What the kernel of a loop needs that goes through all steps itself."""
    units = UnitWriter(way, frozenset())
    source = (units if units.units else RowWriter(way, frozenset())).write()
    facts = needs(*loop_of(source, found), kernel.options(source))
    both: dict[str, Any] = {}
    exact: dict[str, Any] = {}
    if (TARGET.arch, found.dtype) == (FULL, torch.float32):
        if name not in SLOW:
            both = needs(*loop_of(source, found, "both"), kernel.options(source))
        if (name, dtype) in EXACT:
            exact = needs(*loop_of(source, found, "loop", "ieee"), kernel.options(source))
    return facts | {"units": units.units, "both": both, "exact": exact}


def loop_of(
    source: Any, found: Loops, name: str = "loop", precision: str = "tf32"
) -> tuple[Any, dict[str, str], dict[str, Any]]:
    """A kernel that goes through all steps itself, the types of its arguments and its constants."""
    function = getattr(build(source.text), name)
    types = {"T": "i32", "B": "i32", "starts": "*i64", "counters": "*i64"}
    types |= dict.fromkeys(("descending", "descending_1", "descending_2"), "i32")
    types = {name: type_ for name, type_ in types.items() if name in function.arg_names}
    constants = kernel.constants(source, found.dtype, precision)
    memories = list(getattr(source, "memories", ()))
    for name in set(function.arg_names) - {*types, *constants}:
        dtype = None
        if re.fullmatch(r"w\d+(_\d)?", name):
            dtype = found.static_dtypes[int(name[1:].partition("_")[0])]
        elif re.fullmatch(r"x\d+", name):
            dtype = memories[int(name[1:]) - 1]
        types[name] = f"*{NAMES[dtype or found.dtype]}"
    return function, types, constants


def persistent_kernel(way: Pass, found: Loops) -> dict[str, Any]:
    """What a kernel needs whose programs exchange what is multiplied, for a batch of 16 on an H100."""
    writer = kinds.persistent(way, frozenset(), found.dtype, Room(132, HELD))
    assert isinstance(writer, PersistentWriter), writer
    source = writer.write()
    return needs(*loop_of(source, found), together.options(source))


def graph_kernels(way: Pass, found: Loops) -> Iterator[dict[str, Any]]:
    """What the kernels of a graph of steps need."""
    choice = choose(way, frozenset(), found.dtype)
    source = choice.writer.write()
    functions = build(source.text)
    types = {"table": "*i64", "k": "i32"}
    constants = {"ROWS": graph.ROWS, "DTYPE": in_triton(found.dtype)}
    for launch in {source.before, *(stretch.launch for stretch in source.step)} - {None}:
        function = getattr(functions, launch.name)
        yield needs(function, types, constants, {"num_warps": graph.WARPS}) | {
            "kernel": launch.name,
            "tiles": launch.tiles,
        }
    dtypes = {"T": "i32", "descending": "i32", "table": "*i64", "starts": "*i64"}
    rest = dict.fromkeys(functions.fill.arg_names, "*fp32")
    yield needs(functions.fill, rest | dtypes, {}, {}) | {"kernel": "fill", "tiles": 1}


def main() -> Iterator[dict[str, Any]]:
    for dtype, names in SMALL_CELLS.items():
        for name in names:
            if name in SLOW and TARGET.arch != FULL:
                continue
            found = loops(name, dtype, SMALL)
            for way in ("forward", "backward"):
                facts = {"kind": "loop", "cell": name, "dtype": str(dtype), "way": way}
                yield facts | loop_kernel(name, dtype, getattr(found, way), found)
    for dtype, names in PERSISTENT_CELLS.items():
        for name in names:
            if TARGET.arch == FULL or (name, dtype) == ("LSTM", torch.bfloat16):
                found = loops(name, dtype, LARGE)
                for way in ("forward", "backward"):
                    facts = {"kind": "persistent", "cell": name, "dtype": str(dtype), "way": way}
                    yield facts | persistent_kernel(getattr(found, way), found)
    for dtype, names in LARGE_CELLS.items():
        for name in names:
            found = loops(name, dtype, LARGE)
            for way in ("forward", "backward"):
                for facts in graph_kernels(getattr(found, way), found):
                    yield {"kind": "graph", "cell": name, "dtype": str(dtype), "way": way} | facts


if __name__ == "__main__":
    TARGET = GPUTarget("cuda", int(sys.argv[1]), 32)
    for line in main():
        print(json.dumps(line))
