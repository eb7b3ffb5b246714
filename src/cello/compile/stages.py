"""When a loop computes what: products ahead of it, products and the rest in turn, products behind it.

A step is a sequence of *stages*: matrix products, then a *fusion* of the other instructions, then the
products that depend on those, and so on. What is known before the loop starts is multiplied *ahead* of it,
for many steps at once; results that nothing in the loop waits for are computed *behind* it, and so are the
gradients of statics. Every engine of programs takes a loop apart in this way. Where values lie in memory is
its own affair, and decides which products can be done as one (:func:`joined`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

import torch

from cello.compile.instructions import Instruction, Outer, Product, Term, Value
from cello.compile.loops import Pass


class Addend(NamedTuple):
    """A term of a product, all of whose columns are either the first of their sum or added to it.

    Attributes:
        product: whose result it goes to. The first addend of a column starts from the product's biases.
        term: what is multiplied.
        accumulates: whether it adds to what an earlier addend has left there.
    """

    product: Product
    term: Term
    accumulates: bool


@dataclass
class Stage:
    """Products, and the instructions between them and the products of the next stage.

    Attributes:
        products: the products whose sums are complete here.
        ahead: those of their addends that are computed ahead of the loop.
        addends: the others, computed in this stage.
        fusion: the instructions that follow. An engine computes them together.
    """

    products: list[Product] = field(default_factory=list)
    ahead: list[Addend] = field(default_factory=list)
    addends: list[Addend] = field(default_factory=list)
    fusion: list[Instruction] = field(default_factory=list)


@dataclass(eq=False)
class Stages:
    """The stages of a loop.

    Behind the loop come the products of `behind`, and the gradients of matrices (``way.loop.outers``).
    Gradients of vectors (``way.loop.row_sums``) are sums over the rows of all steps.

    Attributes:
        way: the loop.
        steps: the stages of a step. At the end of the last one the states become the new states.
        behind: the products that nothing in the loop waits for.
        levels: the stage in whose fusion, or ahead of whose fusion, each value of a step is computed.
        late: the values of which the rows of all steps are read behind the loop, for `behind` and for the
            gradients of matrices.
    """

    way: Pass
    steps: list[Stage]
    behind: list[Product]
    levels: dict[Value, int]
    late: set[Value]

    @property
    def last(self) -> int:
        """The number of the last stage."""
        return len(self.steps) - 1

    def is_known(self, value: Value) -> bool:
        """Whether the rows of a value are there before the loop starts."""
        column = self.way.reads.get(value)
        return column is not None and column.origin is None

    def addends_behind(self) -> list[Addend]:
        """The addends of the products behind the loop."""
        return [
            addend for product in self.behind for addend in _addends(product, lambda value: False)
        ]


def make_stages(way: Pass) -> Stages:
    """Take a loop apart."""
    found = Stages(way, [], [], {}, {v for outer in way.loop.outers for v in _operands(outer)})
    read = {value for instruction in way.loop.body for value in instruction.reads()}
    read.update(way.loop.new_states)
    kept = Counter(write.value for write in way.writes)
    whole = {w.value for w in way.writes if (w.first, w.end) == (0, w.value.width)}
    placed: list[tuple[int, Instruction]] = []
    for instruction in way.loop.body:
        out = instruction.out
        level = max((found.levels.get(value, 0) for value in instruction.reads()), default=0)
        if isinstance(instruction, Product):
            in_loop = [term for term in instruction.terms if not found.is_known(term.row)]
            is_read = out in read or out in found.late
            is_leaf = kept[out] == 1 and out in whole and not is_read
            if is_leaf and len(in_loop) == len(instruction.terms):
                found.behind.append(instruction)
                found.late.update(term.row for term in in_loop)
                continue
            level = level + 1 if in_loop else 0
        found.levels[out] = level
        placed.append((level, instruction))
    found.steps = [Stage() for _ in range(max(found.levels.values(), default=0) + 1)]
    for level, instruction in placed:
        stage = found.steps[level]
        if not isinstance(instruction, Product):
            stage.fusion.append(instruction)
            continue
        stage.products.append(instruction)
        for addend in _addends(instruction, found.is_known):
            is_known = found.is_known(addend.term.row)
            (stage.ahead if is_known else stage.addends).append(addend)
    return found


def _operands(outer: Outer) -> tuple[Value, Value]:
    return outer.gradient, outer.row


def _addends(product: Product, is_known: Callable[[Value], bool]) -> list[Addend]:
    """Split terms at each other's borders, those of known rows first."""
    borders = sorted({b for t in product.terms for b in (t.target, t.target + t.N)})  # in a block
    written: set[int] = set()
    found = []
    for term in sorted(product.terms, key=lambda t: not is_known(t.row)):
        inner = [b for b in borders if term.target <= b < term.target + term.N]
        inner.append(term.target + term.N)
        for start, end in pairwise(inner):
            offset = term.w_offset + (start - term.target) * term.n_stride
            part = term._replace(target=start, N=end - start, w_offset=offset)
            found.append(Addend(product, part, start in written))
            written.add(start)
    return found


class Place(NamedTuple):
    """Where something lies: in which memory, and how many numbers behind the start of its row."""

    memory: int
    offset: int

    def after(self, numbers: int) -> Place:
        """The place so many numbers further on."""
        return Place(self.memory, self.offset + numbers)


class Block(NamedTuple):
    """A static as a part of a matrix: W[k0 + k, n0 + n] is number offset + k * k_stride + n * n_stride."""

    static: Value
    offset: int
    k_stride: int
    n_stride: int
    k0: int
    n0: int
    K: int
    N: int


@dataclass(frozen=True)
class Gemm:
    """``out (+)= row W`` for K adjacent numbers of a row, N adjacent numbers of a result, and a matrix.

    Attributes:
        row: where the numbers of the row lie.
        K: how many.
        out: where those of the result lie.
        N: how many.
        accumulates: whether it adds to what is there.
        blocks: what the matrix is put together from.
        places: at how many places this is done.
        row_step: how far the numbers of the row move from place to place.
        out_step: how far those of the result do.
    """

    row: Place
    K: int
    out: Place
    N: int
    accumulates: bool
    blocks: tuple[Block, ...]
    places: int = 1
    row_step: int = 0
    out_step: int = 0

    @property
    def steps(self) -> tuple[int, int, int]:
        """At which places: equal for those that can be joined."""
        return self.places, self.row_step, self.out_step

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of the matrix: all its blocks are of one."""
        return self.blocks[0].static.dtype


def joined(addends: Iterable[Addend], home: Callable[[Value], Place]) -> list[Gemm]:
    """Make one product of addends that share a row, or a result, and are neighbours.

    Args:
        addends: products that may be done in any order, but that those which accumulate come last.
        home: where the numbers of a value lie.
    """
    gemms = []
    for product, term, accumulates in addends:
        block = Block(
            term.weight, term.w_offset, term.k_stride, term.n_stride, 0, 0, term.K, term.N
        )
        row, out = home(term.row).after(term.offset), home(product.out).after(term.target)
        places = product.places
        steps = (places, term.row_step, product.block) if places > 1 else ()
        gemms.append(Gemm(row, term.K, out, term.N, accumulates, (block,), *steps))
    gemms.sort(key=lambda g: (g.accumulates, g.row, g.K, g.out))
    gemms = _join(gemms, _beside)
    # Those of one result with adjacent rows: the first may write where the next accumulate.
    gemms.sort(key=lambda g: (g.out, g.N, g.row))
    gemms = _join(gemms, _below)
    gemms.sort(key=lambda g: g.accumulates)
    return gemms


def _join(gemms: list[Gemm], join: Callable[[Gemm, Gemm], Gemm | None]) -> list[Gemm]:
    out: list[Gemm] = []
    for gemm in gemms:
        both = join(out[-1], gemm) if out else None
        if both is None:
            out.append(gemm)
        else:
            out[-1] = both
    return out


def _beside(a: Gemm, b: Gemm) -> Gemm | None:
    """One row, adjacent results: the matrices side by side."""
    same = (a.row, a.K, a.accumulates, a.dtype) == (b.row, b.K, b.accumulates, b.dtype)
    if not same or a.steps != b.steps or a.out.after(a.N) != b.out:
        return None
    moved = tuple([block._replace(n0=block.n0 + a.N) for block in b.blocks])
    return replace(a, N=a.N + b.N, blocks=a.blocks + moved)


def _below(a: Gemm, b: Gemm) -> Gemm | None:
    """One result, adjacent rows: the matrices one below the other."""
    same = (a.out, a.N, a.dtype, a.steps) == (b.out, b.N, b.dtype, b.steps)
    if not same or a.row.after(a.K) != b.row:
        return None
    moved = tuple([block._replace(k0=block.k0 + a.K) for block in b.blocks])
    accumulates = a.accumulates and b.accumulates
    return replace(a, K=a.K + b.K, accumulates=accumulates, blocks=a.blocks + moved)
