"""Cells drawn at random, as Python source, and how each is to be run.

Numbers stay bounded, so that a difference is one of arithmetic and not of chaos.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from random_operations import BINARY, ROWS, UNARY

WIDEST_BOUND = 4.0
"""What a number of a step may reach before it is scaled down."""


KEYS = ("seed", "steps", "batch", "lengths", "reverse", "segment", "threads", "keep_states")


SINGLE = ("hardsigmoid", "hardswish", "celu")
"""torch has their derivatives in single precision only."""


class Made(NamedTuple):
    """An operation before it has a place in a cell.

    Attributes:
        code: with ``{0}``, ``{1}``, ... for its operands.
        args: their positions.
        width: how many numbers of a row it makes.
        bound: how large they may be.
        kinks: expressions that are zero at a kink or a jump.
    """

    code: str
    args: tuple[int, ...]
    width: int
    bound: float
    kinks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawn:
    """A cell and how it is run.

    Attributes:
        widths: of the input and of each state.
        values: the operations in order; positions count the input and the states first.
        parameters: the names, shapes and scales of parameters.
        output: the position of the output.
        new_states: the positions of the new states.
        dtype: of everything.
        seed: of all numbers.
        steps: T.
        batch: B.
        lengths: of the sequences, or ``None``.
        reverse: whether time runs backwards.
        segment: how many steps are run at a time, or 0.
        threads: torch's number of threads.
        keep_states: whether the states of all steps are wanted.
        frozen: parameters that get no gradient, and ``"x"`` and ``"state"``.
    """

    widths: tuple[int, ...]
    values: tuple[Made, ...]
    parameters: tuple[tuple[str, tuple[int, ...], float], ...]
    output: int
    new_states: tuple[int, ...]
    dtype: torch.dtype
    seed: int
    steps: int = 1
    batch: int = 1
    lengths: tuple[int, ...] | None = None
    reverse: bool = False
    segment: int = 0
    threads: int = 1
    keep_states: bool = False
    frozen: frozenset[str] = frozenset()

    def name(self, position: int) -> str:
        given = len(self.widths)
        if position == 0:
            return "x"
        return f"h{position - 1}" if position < given else f"v{position - given}"

    def width(self, position: int) -> int:
        given = len(self.widths)
        return self.widths[position] if position < given else self.values[position - given].width

    def used(self) -> list[int]:
        """The operations that the results need, in order."""
        given, seen = len(self.widths), set()
        stack = [self.output, *self.new_states]
        while stack:
            position = stack.pop()
            if position >= given and position not in seen:
                seen.add(position)
                stack += self.values[position - given].args
        return sorted(seen)

    def held(self) -> dict[str, tuple[tuple[int, ...], float]]:
        """The parameters that are used: their shapes and scales."""
        code = " ".join(self.values[p - len(self.widths)].code for p in self.used())
        names = set(re.findall(r"self\.(\w+)", code))
        return {name: (shape, scale) for name, shape, scale in self.parameters if name in names}

    def source(self, near: bool = False) -> str:
        """The step; with `near` it notes how far every number is from a kink."""
        states = ", ".join(self.name(1 + k) for k in range(len(self.widths) - 1))
        lines = [f"def step(self, x, {states}{', near' if near else ''}):"]
        for position in self.used():
            value = self.values[position - len(self.widths)]
            names = [self.name(a) for a in value.args]
            if near:
                lines += [f"    near.append({kink.format(*names)})" for kink in value.kinks]
            lines.append(f"    {self.name(position)} = {value.code.format(*names)}")
        results = ", ".join(self.name(p) for p in (self.output, *self.new_states))
        return "\n".join([*lines, f"    return {results}"])

    def __str__(self) -> str:
        options = {
            key: getattr(self, key)
            for key in (
                [
                    "seed",
                    "steps",
                    "batch",
                    "lengths",
                    "reverse",
                    "segment",
                    "threads",
                    "keep_states",
                ]
            )
        }
        held = {name: shape for name, (shape, _) in self.held().items()}
        return (
            f"{self.source()}\n# widths {self.widths}, held {held}\n# {self.dtype}, "
            f"frozen {sorted(self.frozen)}, {options}"
        )


class _Drawing:
    """Draws one cell."""

    def __init__(self, rng: random.Random, dtype: torch.dtype) -> None:
        self.rng, self.dtype = rng, dtype
        # In bfloat16 nearly every number is near a kink.
        self.is_smooth = dtype == torch.bfloat16
        widths = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 17, 33]
        self.choice = rng.sample(widths, 3) if rng.random() < 0.97 else [100, 130, 5]
        count = rng.choice([1, 1, 1, 2, 2, 3])
        self.widths = tuple(rng.choice(self.choice) for _ in range(count + 1))
        self.values: list[Made] = []
        self.parameters: list[tuple[str, tuple[int, ...], float]] = []

    def cell(self) -> Drawn:
        rng = self.rng
        for _ in range(rng.randint(3, 14)):
            self.add(rng.choice(self.makers())())
        output = rng.choice(self.all())
        new_states = []
        for k, width in enumerate(self.widths[1:]):
            new_states.append(self.bounded(self.as_wide(self.favourite(), width), k))
        steps, batch = rng.randint(1, 8), rng.choice([1, 1, 2, 3, 4, 5, 9, 17, 17, 33, 40])
        lengths = None
        if rng.random() < 0.35:
            lengths = tuple(rng.randint(0, steps) for _ in range(batch))
            if not any(lengths):
                lengths = None
        drawn = Drawn(
            widths=self.widths,
            values=tuple(self.values),
            parameters=tuple(self.parameters),
            output=output,
            new_states=tuple(new_states),
            dtype=self.dtype,
            seed=rng.randrange(1 << 30),
            steps=steps,
            batch=batch,
            lengths=lengths,
            reverse=rng.random() < 0.2,
            segment=rng.choice([0, 0, 0, 0, 1, 2, 3]),
            threads=rng.choice([1, 1, 1, 2, 3]),
            keep_states=rng.random() < 0.3,
        )
        if rng.random() < 0.5:
            return drawn
        names = [*sorted(drawn.held()), "x", "state"]
        return replace(drawn, frozen=frozenset(n for n in names if rng.random() < 0.3))

    def all(self) -> list[int]:
        return list(range(len(self.widths) + len(self.values)))

    def any(self) -> int:
        """Any value; the last ones more often."""
        values = self.all()
        return self.rng.choice(values if self.rng.random() < 0.5 else values[-4:])

    def favourite(self) -> int:
        return self.rng.choice(self.all()[-6:]) if self.rng.random() < 0.85 else self.any()

    def width(self, position: int) -> int:
        given = len(self.widths)
        return self.widths[position] if position < given else self.values[position - given].width

    def bound(self, position: int) -> float:
        given = len(self.widths)
        return 1.0 if position < given else self.values[position - given].bound

    def add(self, made: Made) -> int:
        if made.bound > WIDEST_BOUND:
            scale = 2.0 ** -round(torch.tensor(made.bound / 2).log2().item())
            made = made._replace(code=f"({made.code}) * {scale}", bound=made.bound * scale)
        self.values.append(made)
        return self.all()[-1]

    def bounded(self, position: int, state: int) -> int:
        """A value that may be a state: within 1."""
        if position < len(self.widths):
            return position
        if self.bound(position) <= 1:
            return position
        code = self.rng.choice(["torch.tanh({0})", "torch.sin({0})", None])
        if code is None:
            return self.add(
                Made(
                    f"{{0}} * {0.9 / self.bound(position):.3f}",
                    (position,),
                    self.width(position),
                    1.0,
                )
            )
        return self.add(Made(code, (position,), self.width(position), 1.0))

    def as_wide(self, position: int, width: int) -> int:
        """A value of this width made of another one."""
        have = self.width(position)
        if have == width:
            return position
        if have > width and self.rng.random() < 0.4:
            start = self.rng.randint(0, have - width)
            code = f"{{0}}[:, {start}:{start + width}]"
            return self.add(Made(code, (position,), width, self.bound(position)))
        if have == 1 and self.rng.random() < 0.4:
            code = f"{{0}}.expand(-1, {width})"
            return self.add(Made(code, (position,), width, self.bound(position)))
        return self.add(self.linear(position, width))

    def parameter(self, shape: tuple[int, ...], scale: float) -> str:
        """The name of a parameter of this shape, an old one now and then."""
        old = [name for name, known, _ in self.parameters if known == shape]
        if old and self.rng.random() < 0.35:
            return self.rng.choice(old)
        name = f"{'W' if len(shape) > 1 else 'b'}{len(self.parameters)}"
        self.parameters.append((name, shape, scale))
        return name

    def linear(self, position: int, width: int) -> Made:
        K = self.width(position)
        bound = 1.5 * self.bound(position)
        form = self.rng.randrange(8)
        if form <= 2:
            name = self.parameter((K, width), 1.5 / K)
            return Made(f"{{0}} @ self.{name}", (position,), width, bound)
        if form <= 4:
            name = self.parameter((width, K), 1.5 / K)
            b = self.parameter((width,), 0.5)
            code = f"F.linear({{0}}, self.{name}, self.{b})"
            return Made(code, (position,), width, bound + 0.5)
        if form == 5:
            name = self.parameter((K + 2, width), 1.5 / K)
            return Made(f"{{0}} @ self.{name}[1:-1]", (position,), width, bound)
        if form == 6:
            name = self.parameter((width, K), 1.5 / K)
            code = f"torch.einsum('bi,oi->bo', {{0}}, self.{name}.tanh())"
            return Made(code, (position,), width, bound)
        name = self.parameter((width, K), 1.5 / K)
        return Made(f"(self.{name} @ {{0}}.t()).t()", (position,), width, bound)

    def makers(self) -> list[Callable[[], Made]]:
        return [
            self.draw_linear,
            self.draw_linear,
            self.draw_pair,
            self.draw_unary,
            self.draw_unary,
            self.draw_unary,
            self.draw_binary,
            self.draw_binary,
            self.draw_binary,
            self.draw_vector,
            self.draw_row,
            self.draw_row,
            self.draw_view,
            self.draw_view,
            self.draw_cat,
            self.draw_read_again,
            self.draw_choice,
            self.draw_constant,
            self.draw_heads,
        ]

    def pick(self, items: Sequence[Any]) -> Any:
        """An operation that may be compared in this dtype."""
        while True:
            chosen = self.rng.choice(items)
            if self.is_smooth and chosen.kinks:
                continue
            if self.dtype == torch.float64 and any(name in chosen.code for name in SINGLE):
                continue
            return chosen

    def draw_linear(self) -> Made:
        return self.linear(self.any(), self.rng.choice(self.choice))

    def draw_pair(self) -> Made:
        """Two products and a bias, as in a gate."""
        width = self.rng.choice(self.choice)
        first, second = self.linear(self.any(), width), self.linear(self.any(), width)
        code = f"{first.code} + {second.code.replace('{0}', '{1}')}"
        args = first.args + second.args
        return Made(code, args, width, first.bound + second.bound)

    def draw_unary(self) -> Made:
        a, op = self.any(), self.pick(UNARY)
        return Made(op.code, (a,), self.width(a), op.bound(self.bound(a)), op.kinks)

    def draw_binary(self) -> Made:
        a, op = self.any(), self.pick(BINARY)
        equal = [p for p in self.all() if self.width(p) == self.width(a)]
        single = [p for p in self.all() if self.width(p) == 1]
        is_glu = "cat" in op.code
        b = self.rng.choice(single if single and not is_glu and self.rng.random() < 0.2 else equal)
        return Made(
            op.code, (a, b), self.width(a), op.bound(self.bound(a), self.bound(b)), op.kinks
        )

    def draw_vector(self) -> Made:
        """A vector of parameters beside a value, in front of it or behind it."""
        a = self.any()
        op = self.pick([op for op in BINARY if "cat" not in op.code and "{0}.m" not in op.code])
        width = self.width(a)
        name = f"self.{self.parameter(self.rng.choice([(width,), (1,), (1, width)]), 1.0)}"
        names, bounds = [("{0}", name), (name, "{0}")], [(self.bound(a), 1.0), (1.0, self.bound(a))]
        k = self.rng.randrange(2)
        code, *kinks = (text.format(*names[k]) for text in (op.code, *op.kinks))
        # An operation may have left the value out, or the width be that of the vector.
        return Made(f"({code}).expand(len(x), -1)", (a,), width, op.bound(*bounds[k]), tuple(kinks))

    def draw_row(self) -> Made:
        a, op = self.any(), self.pick(ROWS)
        while self.width(a) < op.least:
            a, op = self.any(), self.pick(ROWS)
        width = self.width(a)
        return Made(
            op.code, (a,), width if op.is_whole else 1, op.bound(self.bound(a), width), op.kinks
        )

    def draw_view(self) -> Made:
        a = self.any()
        width, bound = self.width(a), self.bound(a)
        if width == 1:
            wide = self.rng.choice(self.choice)
            code = f"{{0}}.{self.rng.choice(['expand(-1', 'repeat(1'])}, {wide})"
            return Made(code, (a,), wide, bound)
        start = self.rng.randint(0, width - 1)
        stop = self.rng.randint(start + 1, width)
        step = self.rng.choice([1, 1, 2, 3])
        forms = [
            (f"{{0}}[:, {start}:{stop}]", stop - start),
            (f"{{0}}[:, {start}:{stop}:{step}]", -(-(stop - start) // step)),
            (f"{{0}}[:, {start}][:, None]", 1),
            (f"{{0}}.narrow(1, {start}, {stop - start})", stop - start),
            ("{0}.chunk(2, 1)[0]", -(-width // 2)),
            ("torch.stack({0}.unbind(1)[::-1], 1)", width),
            (f"F.pad({{0}}, (1, 1), value=0.3)[:, {start}:{stop}]", stop - start),
            ("{0}.t().contiguous().t()", width),
            (
                f"torch.slice_scatter({{0}}, {{0}}[:, {start}:{stop}] * 0.5, 1, {start}, {stop})",
                width,
            ),
            (f"torch.select_scatter({{0}}, {{0}}[:, 0] * 0.5, 1, {start})", width),
        ]
        if width % 2 == 0:
            half = width // 2
            forms += [
                (
                    f"{{0}}.view(-1, 2, {half}).transpose(1, 2).reshape(-1, {width})",
                    width,
                ),
                (f"{{0}}.reshape(-1, {half}).tanh().view(-1, {width})", width),
                (f"{{0}}.reshape(-1, {half}, 2).mean(-1)", half),
                (f"{{0}}.view(-1, 2, {half}).softmax(1).flatten(1)", width),
            ]
        code, wide = self.rng.choice(forms)
        return Made(code, (a,), wide, max(bound, 1.0))

    def draw_cat(self) -> Made:
        parts = [self.any() for _ in range(self.rng.choice([2, 2, 3]))]
        names = ", ".join(f"{{{k}}}" for k in range(len(parts)))
        width = sum(map(self.width, parts))
        bound = max(map(self.bound, parts))
        if width > 200:
            return self.draw_unary()
        form = self.rng.randrange(3)
        if form == 0:
            return Made(f"torch.cat([{names}], 1)", tuple(parts), width, bound)
        out = self.rng.choice(self.choice)
        name = self.parameter((width, out), 1.5 / width)
        code = f"torch.cat([{names}], 1) @ self.{name}"
        return Made(code, tuple(parts), out, 1.5 * bound)

    def draw_read_again(self) -> Made:
        """A value that stands beside another one, and is read again behind a product of both."""
        again = self.add(self.rng.choice([self.draw_unary, self.draw_binary])())
        parts = [again, self.any()]
        self.rng.shuffle(parts)
        width, bound = sum(map(self.width, parts)), max(map(self.bound, parts))
        beside = self.add(Made("torch.cat([{0}, {1}], 1)", tuple(parts), width, bound))
        op = self.pick(UNARY)
        active = self.add(Made(op.code, (beside,), width, op.bound(bound), op.kinks))
        product = self.linear(active, self.width(again))
        code = f"{product.code} + {{1}}"
        return Made(code, (active, again), product.width, product.bound + self.bound(again))

    def draw_choice(self) -> Made:
        """What the place of an extremum chooses."""
        if self.is_smooth:  # which of two is larger, rounding decides
            return self.draw_unary()
        a = self.any()
        if self.width(a) < 2:
            a = self.add(self.linear(a, self.rng.randint(2, 6)))
        width = self.width(a)
        b = self.rng.choice([p for p in self.all() if self.width(p) == width])
        place, near = self.rng.choice(
            [
                ("{0}.argmax(-1, True)", "gap({0})"),
                ("{0}.min(-1, keepdim=True)[1]", "gap(-{0})"),
            ]
        )
        form = self.rng.randrange(5)
        if form == 0:
            return Made(f"{{1}}.gather(1, {place})", (a, b), 1, self.bound(b), (near,))
        if form == 1:
            code = f"{{1}}.scatter(1, {place}, {self.rng.choice(['0.3', '{0}[:, :1]'])})"
            return Made(code, (a, b), width, max(self.bound(a), self.bound(b)), (near,))
        if form == 2:
            code = f"{{1}}.scatter_add(1, {place}, {{0}}[:, 1:2])"
            return Made(code, (a, b), width, self.bound(a) + self.bound(b), (near,))
        if form == 3:
            code = f"F.one_hot(({place})[:, 0], {width}).to({{0}}.dtype) * {{1}}"
            return Made(code, (a, b), width, self.bound(b), (near,))
        out = self.rng.choice(self.choice)
        name = self.parameter((width, out), 1.0)
        code = f"self.{name}[({place})[:, 0]]"
        return Made(code, (a,), out, 1.0, (near,))

    def draw_constant(self) -> Made:
        a = self.any()
        width = self.width(a)
        code = self.rng.choice(
            [
                "torch.zeros_like({0}) + 0.2",
                "{0} * torch.ones_like({0})",
                "{0} + x.new_full((len(x), 1), 0.3)",
                f"{{0}} - torch.ones(len(x), {width}).to({{0}})",
                f"{{0}} + torch.arange({width}).to({{0}}.dtype) * 0.01",
            ]
        )
        if self.rng.random() < 0.2:
            name = self.parameter((width, width), 1.5 / width)
            code = f"{{0}} + torch.ones_like({{0}}) @ self.{name}"
            return Made(code, (a,), width, self.bound(a) + 1.5)
        return Made(code, (a,), width, self.bound(a) + 2)

    def draw_heads(self) -> Made:
        """Blocks of a value, each with its matrix; or all pairs of two values."""
        a, b = self.any(), self.any()
        width = self.width(a)
        if width % 2 == 0 and self.rng.random() < 0.6:
            half = width // 2
            name = self.parameter((2, half, half), 1.5 / half)
            code = (
                f"torch.bmm({{0}}.reshape(-1, 2, {half}).transpose(0, 1), self.{name})"
                f".transpose(0, 1).reshape(-1, {width})"
            )
            return Made(code, (a,), width, 1.5 * self.bound(a))
        bound = self.bound(a) * self.bound(b)
        code = self.rng.choice(
            [
                "({0}[:, :, None] * {1}[:, None, :]).mean(2)",
                "({0}[:, :, None] * {1}[:, None, :]).tanh().sum(2) * 0.1",
                "torch.bmm({0}[:, :, None], {1}[:, None, :]).mean(2)",
            ]
        )
        return Made(code, (a, b), width, max(bound, self.width(b) / 10.0))


DTYPES = (torch.float64, torch.float64, torch.float64, torch.float32, torch.bfloat16)


def draw(seed: int) -> Drawn:
    """The cell of a seed."""
    rng = random.Random(seed)
    return _Drawing(rng, rng.choice(DTYPES)).cell()
