"""The kernels of shipped cells compile for GPUs that are not here, and fit their registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: make triton-test")


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels(capability: int):
    script = Path(__file__).parent.parent / "triton_ahead.py"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(capability)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    loops = [kernel for kernel in kernels if kernel["kind"] == "loop"]
    graphs = [kernel for kernel in kernels if kernel["kind"] == "graph"]
    persistent = [kernel for kernel in kernels if kernel["kind"] == "persistent"]
    assert len(loops) == (28 if capability == 90 else 26)
    assert len(persistent) == (8 if capability == 90 else 2)
    for kernel in kernels:
        assert kernel["stack"] == 0, kernel  # or what does not fit the registers goes to memory
        assert kernel["registers"] <= 255, kernel
        assert kernel["is one for all sizes"], kernel
        is_persistent = kernel["kind"] == "persistent"
        # Persistent kernels hold the matrices there; a processor of these GPUs has 163 KB and more.
        assert kernel["shared"] <= (163 if is_persistent else 48) * 1024, kernel
        assert kernel["exchange"] == (["acquire", "release"] if is_persistent else []), kernel
    for kernel in persistent:
        assert kernel["tensor cores"], kernel
    for kernel in [kernel for kernel in loops if kernel["both"]]:  # the kernel of two directions
        both = kernel["both"]
        assert (both["stack"], both["shared"]) == (0, kernel["shared"]), kernel
        assert both["is one for all sizes"], kernel
        assert both["tensor cores"] == kernel["tensor cores"], kernel
    for kernel in [
        kernel for kernel in loops if kernel["exact"]
    ]:  # products as torch multiplies first
        exact = kernel["exact"]
        assert (exact["stack"], exact["tensor cores"]) == (0, False), kernel
        assert exact["registers"] <= 255, kernel
    for kernel in loops:
        is_elementwise = kernel["cell"] == "MinimalGRU"
        assert (kernel["units"] > 0) == is_elementwise, kernel
        assert kernel["tensor cores"] == (kernel["cell"] not in ("MinimalGRU", "Tokens")), kernel
    # A product and one kernel make a step of an LSTM, forward and backward; another one comes before.
    lstm = [k for k in graphs if k["cell"] == "LSTM" and k["kernel"] != "fill"]
    assert [(k["way"], k["dtype"]) for k in lstm] == [
        (way, f"torch.{dtype}")
        for dtype in ("float32", "float64")
        for way in ("forward", "backward", "backward")
    ]
    assert {k["tiles"] for k in lstm} == {3}
    # Where a kernel sums over a row, a program owns the row.
    normed = [k for k in graphs if k["cell"] == "LayerNormLSTM" and k["way"] == "forward"]
    assert {k["tiles"] for k in normed} == {1}


OTHERS = """
import torch
from triton.backends.compiler import GPUTarget
import triton_ahead
from cello.engines.triton import kernel
from cello.engines.triton.kinds import choose
triton_ahead.TARGET = GPUTarget("hip", "gfx942", 64)
found = triton_ahead.loops("LSTM", torch.float32, 32)
source = choose(found.forward, frozenset(), torch.float32).writer.write()
function, types, constants = triton_ahead.loop_of(source, found, "loop", "ieee")
signature = {name: types.get(name, "constexpr") for name in function.arg_names}
places = {(function.arg_names.index(name),): value for name, value in constants.items()}
torch.version.hip = "7.0"
how = kernel.options(source)
torch.version.hip = None
backend = triton_ahead.make_backend(triton_ahead.TARGET)
known = vars(backend.parse_options({}))
print([name for name in (*how, *kernel.options(source, "xpu")) if name not in known])
source = triton_ahead.ASTSource(fn=function, signature=signature, constexprs=places)
made = triton_ahead.triton.compile(source, target=triton_ahead.TARGET, options=how)
print("v_mfma" in made.asm["amdgcn"])
"""


def test_a_kernel_for_another_makers_gpu():
    """Triton refuses options that are NVIDIA's only."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [
            str(Path(__file__).parent.parent),
            environment.get("PYTHONPATH", ""),
        ]
    )
    command = [sys.executable, "-W", "ignore", "-c", OTHERS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "True"]


REMAINDERS = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cello.engines.triton.library import build
for name in ("fmod", "remainder", "floor_divide"):
    for dtype in ("fp32", "fp64"):
        kernel = build(f'''@triton.jit
def kernel(p, q):
    i = tl.arange(0, 256)
    tl.store(q + i, F.{name}(tl.load(p + i), tl.load(p + 256 + i)))
''').kernel
        source = ASTSource(fn=kernel, signature={"p": "*" + dtype, "q": "*" + dtype}, constexprs={})
        ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={}).asm["ptx"]
        print("bra" in ptx)
"""


def test_remainders_are_those_of_the_library_of_the_gpu():
    """The operator of Triton rounds the quotient before it takes the whole number below it."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", REMAINDERS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"] * 6  # they loop, as an exact remainder has to
