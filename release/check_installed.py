"""Check an installed Cello: its layers compute what torch's compute, on the engine that it should have.

It needs nothing but torch, and finds no compiler. `make wheel` and the workflow call it in an empty
environment:

python -I release/check_installed.py [--pure]
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path

os.environ["PATH"] = os.devnull  # no compiler, and no other program

import torch
from torch import Tensor, nn


class Leaky(nn.Module):
    """A cell that torch has no kernel for."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(12, 8)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Compute one step."""
        return 0.9 * h + 0.1 * torch.tanh(self.project(torch.cat([x, h], -1)))


def main(is_pure: bool) -> None:
    """Compare values and gradients, and print what was found."""
    start = time.perf_counter()
    import cello

    took = time.perf_counter() - start
    python = ".".join(map(str, sys.version_info[:3]))
    print(f"cello {cello.__version__} on torch {torch.__version__} and Python {python}")
    print(f"imported in {took:.1f} s from {Path(cello.__file__).parent}")
    expect("site-packages" in cello.__file__, "cello is not installed, this is a checkout")
    expect((Path(cello.__file__).parent / "py.typed").exists(), "py.typed is missing")

    from cello.engines.native.library import library

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = library()
    if is_pure:
        expect(module is None, "a wheel for all platforms has a native engine")
        expect("without its native engine" in str(caught[0].message), "there was no warning")
    else:
        expect(module is not None, "the native engine is missing")
        print(f"native engine: {', '.join(module.instruction_sets())}; ", end="")
        print(f"threads {'of torch' if module.shares_threads() else 'of its own'}")
        if torch.backends.openmp.is_available():
            expect(module.shares_threads(), "the engine does not use torch's threads")
    engine = "vendor" if is_pure else "native"
    for threads in (1, 2):
        torch.set_num_threads(threads)
        compare_with_torch(engine)
        compare_with_loop("reference" if is_pure else "native")
    print(f"LSTM and GRU agree with torch.nn on {engine!r}, and a custom cell with a loop over it")


def compare_with_torch(engine: str) -> None:
    """Run layers of torch and of Cello with the same weights."""
    import cello

    for name in ("LSTM", "GRU"):
        torch.manual_seed(0)
        theirs = getattr(nn, name)(16, 32, num_layers=2, bidirectional=True)
        ours = getattr(cello.nn, name)(16, 32, num_layers=2, bidirectional=True)
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(20, 64, 16)
        explained = str(cello.explain(ours, x))
        expect(f"on '{engine}'" in explained, f"{name} is not on {engine!r}:\n{explained}")
        results = []
        for layer in (theirs, ours):
            entry = x.clone().requires_grad_()
            output = layer(entry)[0]
            output.square().sum().backward()
            results.append([output, entry.grad, *(p.grad for p in layer.parameters())])
        for their, our in zip(*results, strict=True):
            torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4)


def compare_with_loop(engine: str) -> None:
    """Run a custom cell in a layer and in a loop of Python."""
    import cello

    torch.manual_seed(0)
    cell, x = Leaky(), torch.randn(20, 64, 4)
    h, outputs = torch.zeros(64, 8), []
    for x_t in x:
        h = cell(x_t, h)
        outputs.append(h)
    layer = cello.Recurrent(cell)
    explained = str(cello.explain(layer, x))
    expect(f"on '{engine}'" in explained, f"the cell is not on {engine!r}:\n{explained}")
    torch.testing.assert_close(layer(x)[0], torch.stack(outputs))


def expect(holds: bool, otherwise: str) -> None:
    """End with a sentence where something does not hold."""
    if not holds:
        sys.exit(otherwise)


if __name__ == "__main__":
    main("--pure" in sys.argv[1:])
