"""What a step of a recurrent layer should cost on a GPU: `python -m benchmarks.gpu_model`.

A model, not a measurement. Time is latency (of a launch, of a barrier over all blocks, of products that
wait for each other), bytes over bandwidth, and operations over the speed of the tensor cores. It says
which way of running a layer is worth building, and what a measurement should be near to. With the
`gpu.json` of `python -m benchmarks.gpu` it prints what was measured beside what it expects.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Card:
    """A GPU in numbers; times in microseconds.

    Attributes:
        name: as its vendor calls it.
        processors: streaming multiprocessors.
        shared: bytes of shared memory of each.
        registers: bytes of registers of each.
        memory: bytes a second from its memory.
        cache: bytes a second from the L2 cache, all processors together.
        half: operations a second on tensor cores, float16 and bfloat16.
        tf32: the same in TF32.
        share: the part of these that products reach.
        launch: of one operation of torch from Python.
        kernel: from one kernel of a CUDA graph to the next, without their work.
        barrier: one barrier over all blocks.
        multiply: one product of tensor cores (K of 16) to the next that adds to the same sum.
        pointwise: the gates and the state of a step, from the sums to the new state.
    """

    name: str
    processors: int
    shared: float
    registers: float
    memory: float
    cache: float
    half: float
    tf32: float
    share: float
    launch: float
    kernel: float
    barrier: float
    multiply: float
    pointwise: float

    def speed(self, size: int) -> float:
        """Operations a second that products of numbers of `size` bytes reach."""
        return self.share * (self.half if size == 2 else self.tf32)

    def fits(self, weights: int) -> bool:
        """Whether a processor holds so many bytes of weights beside what else it needs."""
        return weights <= 0.66 * self.shared


H100 = Card(
    name="H100 SXM",
    processors=132,
    shared=227 * 1024,
    registers=256 * 1024,
    memory=3.35e12,
    cache=5.5e12,
    half=989e12,
    tf32=494e12,
    share=0.5,
    launch=10.0,
    kernel=2.25,
    barrier=0.9,
    multiply=0.02,
    pointwise=0.26,
)
CARDS = {"H100": H100, "H200": replace(H100, name="H200 SXM", memory=4.8e12)}

ROWS = 16
"""Rows of a tile, as many as tensor cores want."""

WARPS = 4
"""How many parts a sum over K has that are computed at the same time."""


class Layer(NamedTuple):
    """A layer in numbers.

    Attributes:
        steps: T.
        batch: B.
        features: F.
        hidden: H.
        gates: blocks of H that are made from the input.
        is_elementwise: whether no number of the state meets another one.
        operations: calls of torch in a step that a Python loop runs.
        size: bytes of a number in products.
    """

    steps: int
    batch: int
    features: int
    hidden: int
    gates: int = 4
    is_elementwise: bool = False
    operations: int = 15
    size: int = 2

    @property
    def weights(self) -> int:
        """Bytes of the recurrent weights."""
        return 0 if self.is_elementwise else self.gates * self.hidden**2 * self.size

    @property
    def tiles(self) -> int:
        """Tiles of rows in a batch."""
        return -(-self.batch // ROWS)


class Times(NamedTuple):
    """What a layer takes, in milliseconds: the forward pass, and both passes."""

    forward: float
    training: float


KINDS = {
    "cuDNN": "torch.nn's kernels; float16 persistent, else two kernels a step",
    "loop": "the Python loop over the cell",
    "E": "elementwise: a program owns rows x units for all steps",
    "S": "small: a program owns 16 rows for all steps",
    "G": "a product and a kernel a step, in a CUDA graph",
    "G fused": "one kernel a step, in a CUDA graph",
    "P": "persistent: weights on the chip, one barrier a step",
}


def model(kind: str, layer: Layer, card: Card, *, is_float16: bool = False) -> Times | None:
    """Return what a kind of kernels should take, or ``None`` where it cannot run the layer.

    Args:
        kind: a key of `KINDS`.
        layer: the layer.
        card: the GPU.
        is_float16: whether numbers are float16, for which cuDNN's heuristics choose the persistent kernel.
    """
    ways = [_step(kind, layer, card, is_backward, is_float16) for is_backward in (False, True)]
    if ways[0] is None or ways[1] is None:
        return None
    forward, backward = (1e-3 * layer.steps * step for step in ways if step is not None)
    speed = card.speed(layer.size)
    rows = layer.steps * layer.batch
    width = layer.gates * layer.hidden
    projection = 1e3 * 2 * rows * layer.features * width / speed
    recurrent = 0 if layer.is_elementwise else 1e3 * 2 * rows * layer.hidden * width / speed
    if kind == "loop":  # a product of each step is in the time of its launch
        return Times(forward, forward + backward)
    forward += projection
    return Times(forward, forward + backward + 2 * projection + recurrent)


def _step(kind: str, layer: Layer, card: Card, is_backward: bool, is_float16: bool) -> float | None:
    """Microseconds of a step, without what is done for all steps at once."""
    speed = card.speed(layer.size)
    depth = layer.hidden * (layer.gates if is_backward else 1)
    chain = -(-depth // ROWS) / WARPS * card.multiply
    if kind == "loop":
        return card.launch * layer.operations * (2 if is_backward else 1)
    if layer.is_elementwise:
        if kind not in ("E", "G"):
            return None
        numbers = layer.batch * layer.hidden * (layer.gates + 1) * (2 if is_backward else 1)
        bytes_moved = 1e6 * numbers * layer.size / card.memory
        return max(0.06, bytes_moved) if kind == "E" else card.kernel + bytes_moved
    if kind == "E":
        return None
    from_cache = 1e6 * layer.tiles * layer.weights / card.cache
    work = 1e6 * 2 * layer.batch * layer.gates * layer.hidden**2 / speed
    if kind == "cuDNN":
        kind = "P" if is_float16 and _step("P", layer, card, is_backward, True) else "G"
    if kind == "G":
        return 2 * card.kernel + max(1e6 * layer.weights / card.cache, work)
    if kind == "G fused":
        return card.kernel + max(1e6 * layer.weights / card.cache, work)
    if kind == "S":
        rounds = -(-layer.tiles // card.processors)
        one = 1e6 * 2 * ROWS * layer.gates * layer.hidden**2 / (speed / card.processors)
        alone = 1e6 * layer.weights / (card.cache / card.processors)
        read = 0 if card.fits(layer.weights) else max(from_cache, alone)
        return rounds * (max(one, read) + chain + (2 if is_backward else 1) * card.pointwise)
    for units in (16, 32) if is_backward else (8, 16, 32):
        blocks = -(-layer.hidden // units) * layer.tiles
        own = layer.weights * units / layer.hidden
        if blocks <= card.processors and own <= 0.5 * (card.shared + card.registers):
            exchanged = 1e6 * blocks * ROWS * depth * layer.size / card.cache
            return card.barrier + exchanged + chain + card.pointwise
    return None


ANCHORS = [
    ("LSTM", Layer(1024, 16, 768, 768)),
    ("LSTM", Layer(256, 64, 512, 512)),
    *(("LSTM", Layer(1024, batch, 128, 128)) for batch in (16, 64, 256)),
    ("minimal GRU, float32", Layer(1024, 16, 768, 768, 2, True, 6, 4)),
]
"""The layers of the printed table, in bfloat16 but for the last."""

LAYERS = {
    "LSTM": (4, False, 15),
    "GRU": (3, False, 15),
    "hand-written LSTM, hard gates": (4, False, 15),
    "layer-norm LSTM": (4, False, 18),
    "minimal GRU": (2, True, 6),
    "leaky neuron": (1, True, 6),
}
"""For the layers of :mod:`benchmarks.gpu`: gates, whether elementwise, operations of a step."""


def table(card: Card) -> Iterator[str]:
    """The anchor shapes, a line each."""
    yield f"{card.name}, modelled, not measured. Milliseconds: forward / training."
    yield ""
    yield f"| layer | (B, T, H) | {' | '.join(KINDS)} |"
    yield "|" + "---|" * (2 + len(KINDS))
    for name, layer in ANCHORS:
        cells = [_shown(model(kind, layer, card, is_float16=True)) for kind in KINDS]
        shape = layer.batch, layer.steps, layer.hidden
        yield f"| {name} | {shape} | {' | '.join(cells)} |"


def compared(rows: list[dict[str, Any]], card: Card) -> Iterator[str]:
    """What was measured beside what is expected; `rows` as `python -m benchmarks.gpu` writes them."""
    yield "| layer | (T, B, F, H) | dtype | way | kind | measured | modelled | ratio |"
    yield "|" + "---|" * 8
    for row in rows:
        if row["forward_ms"] is None or row["layer"] not in LAYERS or row["options"]:
            continue
        gates, is_elementwise, operations = LAYERS[row["layer"]]
        size = 4 if row["dtype"].startswith("float32") else 2
        layer = Layer(*row["shape"], gates, is_elementwise, operations, size)
        kind = _kind(row["way"], layer, card)
        found = model(kind, layer, card, is_float16=row["dtype"] == "float16")
        measured = Times(row["forward_ms"], row["training_ms"])
        ratio = "" if found is None else f"{measured.forward / found.forward:.2f}"
        about = f"{row['layer']} | {tuple(row['shape'])} | {row['dtype']} | {row['way']} | {kind}"
        yield f"| {about} | {_shown(measured)} | {_shown(found)} | {ratio} |"


_KINDS = {
    "vendor": "cuDNN",
    "reference": "loop",
    "triton, by rows": "S",
    "triton, as a graph": "G",
    "triton, persistent": "P",
}


def _kind(way: str, layer: Layer, card: Card) -> str:
    if way != "triton":
        return _KINDS[way]
    if layer.is_elementwise:
        return "E"
    return "S" if card.fits(layer.weights) else "G"


def _shown(times: Times | None) -> str:
    return "-" if times is None else " / ".join(f"{t:.{2 if t < 9.5 else 0}f}" for t in times)


def main() -> int:
    """Print the table, and the comparison where there are results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_model", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, help="gpu.json of benchmarks.gpu")
    parser.add_argument("--card", default="H100", choices=CARDS)
    arguments = parser.parse_args()
    card = CARDS[arguments.card]
    print("\n".join(table(card)))
    if arguments.results is not None:
        try:
            content = json.loads(arguments.results.read_text("utf-8"))
            lines = list(compared(content["rows"], card))
        except (OSError, ValueError, TypeError, KeyError) as error:
            print(f"{arguments.results} is no results of benchmarks.gpu: {error}", file=sys.stderr)
            return 1
        print(f"\nMeasured: {content['about']}\n")
        print("\n".join(lines) if len(lines) > 2 else "There are no times in it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
