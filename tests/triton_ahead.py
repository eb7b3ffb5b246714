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
import triton.language as tl
from torch import Tensor, nn
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import cello
from cello.compile import Loops, Wanted, compiled, for_storage
from cello.compile.loops import Pass
from cello.engines.triton import kernel

H = 128
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
NAMES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16"}
TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


class MinimalGRU(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate, self.new = (nn.Linear(H, H, dtype=dtype) for _ in range(2))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z = torch.sigmoid(self.gate(x))
        return (1 - z) * h + z * self.new(x)


def loops(layer: Any, dtype: torch.dtype) -> Loops:
    x = torch.zeros(2, 3, H, dtype=dtype)
    layer(x)
    (cell,) = layer._cells()[0]
    state = tuple(x.new_zeros(1, *shape) for shape in cell.state_shapes.values())
    program = compiled(cell, x[0], state, for_storage(dtype))
    everything = Wanted((True,) * len(program.beforehand), (True,) * len(program.statics))
    return program.loops(False, everything)


def needs(way: Pass, found: Loops, capability: int) -> dict[str, Any]:
    """Compile a loop and read what it needs."""
    source, function = kernel._compiled(way, frozenset())
    sizes = {"T": "i32", "B": "i32", "descending": "i32", "starts": "*i64"}
    constants = {
        "WORK": source.workspace,
        "ROWS": kernel.FEW_ROWS if source.units else kernel.ROWS,
        "DTYPE": TYPES[found.dtype],
        "PRECISION": "tf32",
        "IS_EMULATED": False,
    }
    signature = {}
    for name in function.arg_names:
        dtype = found.static_dtypes[int(name[1:])] if re.fullmatch(r"w\d+", name) else found.dtype
        signature[name] = sizes.get(name, "constexpr" if name in constants else f"*{NAMES[dtype]}")
    places = {(function.arg_names.index(name),): value for name, value in constants.items()}
    made = triton.compile(
        ASTSource(fn=function, signature=signature, constexprs=places),
        target=GPUTarget("cuda", capability, 32),
        options=kernel.options(source),
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
        "units": source.units,
    }


def main(capability: int) -> Iterator[dict[str, Any]]:
    for dtype in (torch.float32, torch.bfloat16):
        for name in ("LSTM", "GRU", "RNN", "MGU", "PeepholeLSTM", "MinimalGRU"):
            own = name == "MinimalGRU"
            layer = cello.Recurrent(MinimalGRU(dtype), state_size=H) if own else None
            found = loops(layer or getattr(cello.nn, name)(H, H, dtype=dtype), dtype)
            for way in ("forward", "backward"):
                facts = {"cell": name, "dtype": str(dtype), "way": way}
                yield facts | needs(getattr(found, way), found, capability)


if __name__ == "__main__":
    for line in main(int(sys.argv[1])):
        print(json.dumps(line))
