"""Random cells on the native engine and on the reference engine, values and every gradient.

Of an operation with a kink or a jump it is known how near a number comes to that. Where it comes nearer
than rounding goes, which side it falls on is nobody's fault: such a case is counted and not compared. An
exact tie is compared.

Run as a program it tries many cells: ``python tests/random_runs.py 10000 --seed 0``. What it finds it makes
smaller, and prints as Python.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from random_cells import Drawn, draw
from torch import Tensor, nn

import cello
from cello.engines import Engine

Numbers = dict[str, Tensor]


def gap(x: Tensor) -> Tensor:
    """How far the largest number of a row is from the next one."""
    return x.topk(2, -1)[0].diff() if x.shape[-1] > 1 else torch.ones(())


class RandomCell(cello.Cell):
    """The cell of a drawing, with weights that its dtype can hold."""

    def __init__(self, drawn: Drawn, dtype: torch.dtype) -> None:
        super().__init__()
        self.sizes = {f"h{k}": width for k, width in enumerate(drawn.widths[1:])}
        space: dict[str, Any] = {}
        exec(drawn.source(), {"torch": torch, "F": nn.functional}, space)
        self.step = space["step"]
        generator = torch.Generator().manual_seed(drawn.seed)
        for name, (shape, scale) in drawn.held().items():
            weight = (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1) * scale
            parameter = nn.Parameter(weight.to(drawn.dtype).to(dtype), name not in drawn.frozen)
            self.register_parameter(name, parameter)

    @property
    def state_sizes(self) -> Mapping[str, Any]:
        return self.sizes

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        output, *new = self.step(self, x, *state)
        return output, tuple(new)


def numbers(drawn: Drawn, *shape: int, key: int) -> Tensor:
    """Input numbers, within 1, that the drawing's dtype can hold, in float64."""
    generator = torch.Generator().manual_seed(drawn.seed + key)
    x = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    return x.to(drawn.dtype).double()


def used(drawn: Drawn, count: int) -> set[int]:
    """Which of so many results the loss uses: all of them, or some."""
    draw = random.Random(drawn.seed)
    return set(
        range(count) if draw.random() < 0.5 else draw.sample(range(count), draw.randint(1, count))
    )


def run(drawn: Drawn, engine: str | Engine, dtype: torch.dtype, shaken: float = 0.0) -> Numbers:
    """All results and gradients.

    Args:
        drawn: the cell.
        engine: the engine.
        dtype: what to compute in.
        shaken: how far every number that goes in is moved, relatively.
    """
    cell = RandomCell(drawn, dtype)
    generator = torch.Generator().manual_seed(drawn.seed + 99)

    def shake(tensor: Tensor) -> Tensor:
        noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * 2 - 1
        return (tensor.double() * (1 + shaken * noise)).to(dtype)

    if shaken:
        for parameter in cell.parameters():
            parameter.data.copy_(shake(parameter.data))
    layer = cello.Recurrent(cell, reverse=drawn.reverse)
    x = shake(numbers(drawn, drawn.steps, drawn.batch, drawn.widths[0], key=1))
    state = [
        shake(numbers(drawn, 1, drawn.batch, width, key=2 + k))
        for k, width in enumerate(drawn.widths[1:])
    ]
    x.requires_grad_("x" not in drawn.frozen)
    for part in state:
        part.requires_grad_("state" not in drawn.frozen)
    options: dict[str, Any] = {"return_states": True} if drawn.keep_states else {}
    if drawn.lengths is not None:
        options["lengths"] = list(drawn.lengths)
    before = torch.get_num_threads()
    torch.set_num_threads(drawn.threads)
    try:
        with cello.engine(engine, segment=drawn.segment):
            output, final, *rest = layer(x, tuple(state), **options)
            finals = final if isinstance(final, tuple) else (final,)
            found = {"output": output} | {f"final {k}": part for k, part in enumerate(finals)}
            for part in rest:
                found |= {f"states {key}": value for key, value in part.items()}
            variables = {"x": x} | {f"state {k}": part for k, part in enumerate(state)}
            variables |= dict(cell.named_parameters())
            variables = {name: v for name, v in variables.items() if v.requires_grad}
            seen = used(drawn, len(found))
            loss = sum(
                (r * numbers(drawn, *r.shape, key=50 + k).to(dtype)).sum()
                for k, r in enumerate(found.values())
                if k in seen
            )
            got: Sequence[Tensor | None] = [None] * len(variables)
            if variables and loss.requires_grad:
                got = torch.autograd.grad(loss, list(variables.values()), allow_unused=True)
    finally:
        torch.set_num_threads(before)
    for (name, v), g in zip(variables.items(), got, strict=True):
        found[f"gradient of {name}"] = torch.zeros_like(v) if g is None else g
    for name, result in found.items():
        if result.dtype != dtype:
            raise AssertionError(f"{name} is in {result.dtype}")
    return {name: result.detach().double() for name, result in found.items()}


def nearest_kink(drawn: Drawn) -> float:
    """How near a number comes to a kink, ties apart, in float64."""
    space: dict[str, Any] = {}
    exec(drawn.source(near=True), {"torch": torch, "F": nn.functional, "gap": gap}, space)
    cell = RandomCell(drawn, torch.float64)
    distances = [math.inf]
    x = numbers(drawn, drawn.steps, drawn.batch, drawn.widths[0], key=1)
    lengths = drawn.lengths or (drawn.steps,) * drawn.batch
    with torch.no_grad():
        state = [
            numbers(drawn, 1, drawn.batch, width, key=2 + k)[0]
            for k, width in enumerate(drawn.widths[1:])
        ]
        for t in range(drawn.steps):
            alive = torch.tensor([t < length for length in lengths])
            if not alive.any():
                break
            rows = torch.tensor(
                [length - 1 - t if drawn.reverse else t for length in lengths]
            ).clamp_min(0)
            near: list[Tensor] = []
            given = x[rows, torch.arange(drawn.batch)]
            _, *new = space["step"](cell, given[alive], *(part[alive] for part in state), near)
            for distance in near:
                found = distance.abs()[distance != 0]
                distances += [found.min().item()] if found.numel() else []
            state = [part.clone() for part in state]
            for part, update in zip(state, new, strict=True):
                part[alive] = update
    return min(distances)


EPS = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8}


class Verdict(NamedTuple):
    """What became of a cell: ``"same"``, ``"kink"``, ``"wild"`` or ``"wrong"``, and why."""

    kind: str
    text: str = ""


def judge(drawn: Drawn) -> Verdict:
    """Compare the engines on one cell.

    Both are held to the exact results, those in float64. How far rounding moves them is measured: as the
    error of the reference engine, and as what happens in float64 where everything that goes in is moved by
    a unit in the last place of the dtype.
    """
    eps = EPS[drawn.dtype]
    if nearest_kink(drawn) < 500 * eps:
        return Verdict("kink")
    exact = run(drawn, "reference", torch.float64)
    moved = [run(drawn, "reference", torch.float64, eps)]
    theirs = run(drawn, "reference", torch.float32 if eps < 1e-15 else drawn.dtype)
    finer = 2.0**-29 if eps < 1e-15 else 1.0
    try:
        ours = run(drawn, "native", drawn.dtype)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{last.filename.rsplit('/', 1)[-1]}:{last.lineno}"
        return Verdict("wrong", f"{type(error).__name__} at {where}: {error}")
    if ours.keys() != exact.keys():
        return Verdict("wrong", f"results are {sorted(ours)}")
    # Numbers within a step are about 1, and what is small is their difference.
    everything = max(1.0, *(norm(truth) for truth in exact.values()))
    for name, truth in exact.items():
        if ours[name].shape != truth.shape:
            return Verdict("wrong", f"{name} has the shape {tuple(ours[name].shape)}")
        scale = max(norm(truth), 0.1 * everything)
        noise = max(norm(truth - other[name]) for other in moved)
        if noise > 1e-2 * scale and drawn.dtype != torch.bfloat16:
            return Verdict("wild")
        error = norm(ours[name] - truth)
        bound = 8 * finer * norm(theirs[name] - truth) + 32 * noise + 32 * eps * scale
        if not error <= bound:
            return Verdict(
                "wrong",
                f"{name} is off by {error:.2e}, the bound is {bound:.2e} and "
                f"its size {scale:.2e}\ngot {ours[name]}\nexact {truth}",
            )
    return Verdict("same")


def norm(x: Tensor) -> float:
    return float(x.square().mean().sqrt()) if x.numel() else 0.0


# How a failure is made small


def shrink(drawn: Drawn, attempts: int = 300) -> Drawn:
    """A smaller cell that is wrong too."""
    while True:
        for smaller in simpler(drawn):
            attempts -= 1
            if attempts < 0:
                return drawn
            try:
                is_wrong = judge(smaller).kind == "wrong"
            except Exception:  # it is no cell any more
                continue
            if is_wrong:
                drawn = smaller
                break
        else:
            return drawn


def simpler(drawn: Drawn) -> Iterator[Drawn]:
    """Cells one step simpler."""
    changes: list[dict[str, Any]] = [
        {"threads": 1},
        {"segment": 0},
        {"lengths": None},
        {"reverse": False},
        {"keep_states": False},
        {"frozen": frozenset()},
        {"dtype": torch.float64},
    ]
    for change in changes:
        if any(getattr(drawn, key) != value for key, value in change.items()):
            yield replace(drawn, **change)
    if drawn.lengths is None:
        for key in ("steps", "batch"):
            for value in (1, 2, getattr(drawn, key) - 1):
                if value < getattr(drawn, key) and value > 0:
                    yield replace(drawn, **{key: value})
    given = len(drawn.widths)
    for position in (drawn.output, *drawn.new_states):
        others = [p for p in (*range(given), *drawn.used()) if p < position]
        for other in sorted(others, key=lambda p: p >= given):
            if position == drawn.output and other < given + len(drawn.values):
                yield replace(drawn, output=other)
            if position in drawn.new_states and drawn.width(other) == drawn.width(position):
                states = tuple(other if p == position else p for p in drawn.new_states)
                yield replace(drawn, new_states=states)
    for position in reversed(drawn.used()):
        value = drawn.values[position - given]
        for arg in value.args:
            if drawn.width(arg) == value.width:
                yield instead(drawn, position, arg)
    if given > 2:
        for k in range(1, given):
            used = {a for p in drawn.used() for a in drawn.values[p - given].args}
            if k not in {*used, drawn.output, *drawn.new_states}:
                yield without_state(drawn, k)


def instead(drawn: Drawn, position: int, other: int) -> Drawn:
    """The cell that uses another value in the place of one."""

    def swap(p: int) -> int:
        return other if p == position else p

    values = tuple(v._replace(args=tuple(map(swap, v.args))) for v in drawn.values)
    states = tuple(map(swap, drawn.new_states))
    return replace(drawn, values=values, output=swap(drawn.output), new_states=states)


def without_state(drawn: Drawn, state: int) -> Drawn:
    def moved(p: int) -> int:
        return p - (p > state)

    return replace(
        drawn,
        widths=(*drawn.widths[:state], *drawn.widths[state + 1 :]),
        values=tuple(v._replace(args=tuple(map(moved, v.args))) for v in drawn.values),
        output=moved(drawn.output),
        new_states=tuple(moved(p) for k, p in enumerate(drawn.new_states, 1) if k != state),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Try random cells.")
    parser.add_argument("count", type=int, help="how many cells")
    parser.add_argument("--seed", type=int, default=0, help="of the first; they are numbered")
    parser.add_argument("--most", type=int, default=5, help="failures to print before the end")
    options = parser.parse_args()
    begin, kinds, found = time.time(), Counter[str](), 0
    for seed in range(options.seed, options.seed + options.count):
        drawn = draw(seed)
        verdict = judge(drawn)
        kinds[verdict.kind] += 1
        if verdict.kind == "wrong":
            small = shrink(drawn)
            print(f"seed {seed}: {judge(small).text}\n{small}\n", flush=True)
            found += 1
            if found == options.most:
                break
    print(f"{dict(kinds)} in {time.time() - begin:.0f} s, seeds from {options.seed}")
    return found > 0


if __name__ == "__main__":
    sys.exit(main())
