"""The gradient of a loop: for every instruction, from the last to the first, what its operands get.

Those of pointwise instructions are in `rules.py`. Where a value is read in parts (the gates of an LSTM are
slices of one product) its gradient is put together from parts too, so that what comes out is again one
matrix product, and not a sum of padded ones.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import NamedTuple

from cello.compile.arithmetic import Numbers
from cello.compile.build import Builder
from cello.compile.instructions import (
    OF_PAIRS,
    Assemble,
    Kind,
    Loop,
    Outer,
    Piece,
    Pointwise,
    Product,
    Reduce,
    Ref,
    RowSum,
    Rule,
    Ruled,
    Term,
    Value,
    places_among,
    strides_of,
)
from cello.compile.rules import RULES

Shape = tuple[int, ...]


class _Contribution(NamedTuple):
    """What one reader of a value adds to its gradient: block `shape` of it at `offset` with `strides`."""

    shape: Shape
    offset: int
    strides: Shape
    gradient: Ref


class _Share(NamedTuple):
    """A product at several places that gives a value gradients: at each place not more than `step`.

    Attributes:
        start: the first number of the value that gets any.
        step: how far they move from place to place.
        places: how many places there are.
        gradient: what is multiplied, a block of it at each place.
        margin: how many blocks of zeros it has in front and behind.
        block: how many numbers a block has.
        term: the product at the first place, with its numbers of the block.
    """

    start: int
    step: int
    places: int
    gradient: Ref
    margin: int
    block: int
    term: Term


class _Axis(NamedTuple):
    """An axis of a contribution, with its stride in the value and its step in the gradient."""

    size: int
    stride: int
    step: int

    def is_around(self, inner: _Axis) -> bool:
        """Whether both are one longer axis, of which `inner` is the inner part."""
        return (self.stride, self.step) == (inner.size * inner.stride, inner.size * inner.step)


@dataclass(frozen=True, eq=False)
class _Block(Numbers):
    """Numbers of one shape."""

    ref: Ref
    shape: Shape
    build: Builder

    def apply(self, op: str, *operands: _Block | float) -> _Block:
        refs = [o.ref if isinstance(o, _Block) else o for o in operands]
        return replace(self, ref=self.build.pointwise(op, self.shape, *refs))


class Wanted(NamedTuple):
    """Which gradients are wanted: one flag for each input and static of the loop."""

    inputs: tuple[bool, ...]
    statics: tuple[bool, ...]


Used = tuple[bool, ...]
"""For each output and then for each final state whether the loss uses it, so that it has a gradient."""


def derive(forward: Loop, wanted: Wanted, used: Used | None = None) -> Loop:
    """Return the gradient of a loop.

    Its states are the gradients of the new states, its inputs those of the outputs, and its outputs those
    of the wanted inputs. It reads values of the forward loop, which must be saved or computed again.

    Args:
        forward: the loop.
        wanted: which gradients are wanted.
        used: what has a gradient itself, or ``None`` for everything. As in torch nothing is computed for
            what only leads to the rest.
    """
    count = len(forward.outputs)
    used = used or (True,) * (count + len(forward.new_states))
    carried = used[count:]
    while True:  # a state without a gradient at the last step may get one at an earlier one
        derivation = _Derivation(forward, wanted, used[:count], carried)
        gradient = derivation.run()
        reached = derivation.reached
        if carried == reached:
            return gradient
        carried = reached


class _Derivation:
    """One derivation.

    Attributes:
        reached: for each state whether its gradient is more than zero, at this step or at a later one.
    """

    reached: tuple[bool, ...]

    def __init__(
        self, forward: Loop, wanted: Wanted, used: tuple[bool, ...], carried: tuple[bool, ...]
    ) -> None:
        self.forward, self.wanted = forward, wanted
        self.used, self.carried = used, carried
        self.build = Builder()
        self.contributions: dict[Value, list[_Contribution]] = defaultdict(list)
        self.terms: dict[Value, list[Term]] = defaultdict(list)
        self.shares: dict[Value, list[_Share]] = defaultdict(list)
        self.padded: dict[tuple[Value, int, int, int], Ref] = {}
        self.outers: list[Outer] = []
        self.row_sums: list[RowSum] = []
        flags = zip(forward.inputs, wanted.inputs, strict=True)
        self.active = {value for value, flag in flags if flag} | set(forward.states)
        flags = zip(forward.statics, wanted.statics, strict=True)
        self.active |= {value for value, flag in flags if flag}
        for instruction in forward.body:
            if any(value in self.active for value in instruction.reads()):
                self.active.add(instruction.out)

    def run(self) -> Loop:
        seeds = [Value(Kind.INPUT, v.width, i) for i, v in enumerate(self.forward.outputs)]
        carried = [Value(Kind.STATE, v.width, i) for i, v in enumerate(self.forward.new_states)]
        pairs = zip(
            (*self.forward.outputs, *self.forward.new_states), (*seeds, *carried), strict=True
        )
        for (value, seed), is_given in zip(pairs, (*self.used, *self.carried), strict=True):
            if is_given:
                self._give(value, (value.width,), 0, (1,), Ref(seed, 0, (1,)))
        for instruction in reversed(self.forward.body):
            self.build.line = instruction.line
            if isinstance(instruction, Pointwise) and not isinstance(instruction, Ruled):
                spread = self._as_it_is(instruction)
                if spread is not None:
                    self._pointwise(instruction, spread)
                    continue
            gradient = self._take(instruction.out)
            if gradient is None:
                continue
            if isinstance(instruction, Ruled):
                self._ruled(instruction.rule, gradient)
            elif isinstance(instruction, Pointwise):
                strides = strides_of(instruction.shape)
                self._pointwise(instruction, gradient._replace(strides=strides))
            elif isinstance(instruction, Reduce):
                self._reduce(instruction, gradient)
            elif isinstance(instruction, Assemble):
                for piece in instruction.pieces:
                    part = Ref(gradient.value, gradient.offset + piece.offset, piece.strides)
                    source = piece.source
                    self._give(source.value, piece.shape, source.offset, source.strides, part)
            elif isinstance(instruction, Product):
                self._product(instruction, gradient)
        flags = zip(self.forward.inputs, self.wanted.inputs, strict=True)
        outputs = [self._whole(value, self._take(value)) for value, flag in flags if flag]
        states = self.forward.states
        gradients = [self._take(state) for state in states]
        new_states = [
            self._whole(s, gradient) for s, gradient in zip(states, gradients, strict=True)
        ]
        found = [gradient is not None for gradient in gradients]
        self.reached = tuple([a or b for a, b in zip(self.carried, found, strict=True)])
        return Loop(
            inputs=seeds,
            states=carried,
            statics=self.forward.statics,
            body=self.build.body,
            outputs=outputs,
            new_states=new_states,
            outers=self.outers,
            row_sums=self.row_sums,
        )

    def _whole(self, value: Value, gradient: Ref | None) -> Value:
        """The gradient of a value as a value of its own."""
        if gradient is None:
            gradient = self.build.constant(0.0, (value.width,))
        if gradient.value.kind is Kind.COMPUTED and gradient.value.width == value.width:
            return gradient.value
        return self.build.pointwise("copy", (value.width,), gradient).value

    def _give(self, value: Value, shape: Shape, offset: int, strides: Shape, gradient: Ref) -> None:
        """Add to the gradient of a block of `value`, which may be broadcast in it (stride 0)."""
        if value not in self.active:
            return
        for axis in range(len(shape) - 1, -1, -1):
            if strides[axis] == 0 and shape[axis] > 1:
                order = [a for a in range(len(shape)) if a != axis]
                moved = Ref(
                    gradient.value,
                    gradient.offset,
                    tuple(gradient.strides[a] for a in (*order, axis)),
                )
                gradient = self.build.reduce("sum", tuple(shape[a] for a in (*order, axis)), moved)
                shape = tuple(shape[a] for a in order)
                strides = tuple(strides[a] for a in order)
        if value.kind is Kind.STATIC:
            self.row_sums.append(RowSum(shape, gradient, value, offset, strides))
        else:
            self.contributions[value].append(_Contribution(shape, offset, strides, gradient))

    def _take(self, value: Value) -> Ref | None:
        """The sum of all gradients of `value`, as one contiguous block, or ``None`` for zero."""
        for offset, width in sorted({(term.target, term.N) for term in self.terms[value]}):
            chosen = [t for t in self.terms[value] if (t.target, t.N) == (offset, width)]
            product = self.build.product(width, [t._replace(target=0) for t in chosen])
            self.contributions[value].append(
                _Contribution((width,), offset, (1,), Ref(product, 0, (1,)))
            )
        self._multiply_at_places(value)
        given = [_flattened(contribution) for contribution in self.contributions[value]]
        if not given:
            return None
        ranges = [one for one in given if one.strides == (1,)]
        total = self._sum_ranges(value.width, ranges) if ranges else None
        for one in given:
            if one.strides != (1,):
                piece = Piece(one.shape, one.gradient, one.offset, one.strides)
                scattered = Ref(self.build.assemble(value.width, [piece]), 0, (1,))
                total = scattered if total is None else self._add(value.width, total, scattered)
        assert total is not None
        return self.build.contiguous(total, (value.width,))

    def _as_it_is(self, instruction: Pointwise) -> Ref | None:
        """The gradient that the only reader of a result gives it, as a sum does: one number for many.

        ``None`` where there are several, or it does not read all numbers with the axes of the result.
        """
        value, shape = instruction.out, instruction.shape
        if len(self.contributions[value]) != 1 or self.terms[value] or self.shares[value]:
            return None
        (one,) = self.contributions[value]
        own = zip(strides_of(shape), shape, strict=True)
        order = places_among(own, zip(one.strides, one.shape, strict=True))
        if one.offset or order is None:
            return None
        return one.gradient._replace(strides=tuple([one.gradient.strides[k] for k in order]))

    def _add(self, width: int, a: Ref, b: Ref) -> Ref:
        return self.build.pointwise("add", (width,), a, b)

    def _sum_ranges(self, width: int, given: list[_Contribution]) -> Ref:
        """Add up gradients of ranges: one piece between any two borders."""
        borders = sorted({0, width, *(e for g in given for e in (g.offset, g.offset + g.shape[0]))})
        pieces = []
        for start, end in itertools.pairwise(borders):
            covering = [g for g in given if g.offset <= start and end <= g.offset + g.shape[0]]
            if not covering:
                continue
            total: Ref | None = None
            for one in covering:
                ref = one.gradient
                if ref.strides != (0,):
                    ref = ref._replace(offset=ref.offset + (start - one.offset) * ref.strides[0])
                total = ref if total is None else self._add(end - start, total, ref)
            assert total is not None
            pieces.append(Piece((end - start,), total, start, (1,)))
        if len(pieces) == 1 and pieces[0].shape == (width,):
            return pieces[0].source
        return Ref(self.build.assemble(width, pieces), 0, (1,))

    def _pointwise(self, instruction: Pointwise, gradient: Ref) -> None:
        shape = instruction.shape
        rules = RULES.get(instruction.op, (None,) * len(instruction.args))
        g, y, *args = (
            _Block(ref, shape, self.build)
            for ref in (
                gradient,
                Ref(instruction.out, 0, strides_of(shape)),
                *instruction.args,
            )
        )
        for arg, rule in zip(instruction.args, rules, strict=True):
            if rule is not None and arg.value in self.active:
                given = rule(g, y, *args).ref
                self._give(arg.value, shape, arg.offset, arg.strides, given)

    def _ruled(self, rule: Rule, gradient: Ref) -> None:
        """Write the backward of a custom function, for a gradient that is now known."""
        if gradient.value.kind is Kind.CONSTANT:
            gradient = self.build.pointwise("copy", (rule.asked.width,), gradient)
        known = {rule.asked: gradient}

        def moved(ref: Ref) -> Ref:
            start = known.get(ref.value)
            if start is None:
                return ref
            return ref._replace(value=start.value, offset=start.offset + ref.offset)

        for instruction in rule.body:
            known[instruction.out] = Ref(self.build.again(instruction, moved), 0, (1,))
        for shape, target, given in rule.given:
            self._give(target.value, shape, target.offset, target.strides, moved(given))

    def _reduce(self, instruction: Reduce, gradient: Ref) -> None:
        if instruction.op in OF_PAIRS:
            if instruction.op == "select" and instruction.args[2].value in self.active:
                self._select(instruction, gradient)
            return
        shape, (arg,) = instruction.shape, instruction.args
        kept = strides_of(shape[:-1])
        spread = gradient._replace(strides=(*kept, 0))
        if instruction.op != "sum":  # equal shares to all places that have the extremum
            out = Ref(instruction.out, 0, (*kept, 0))
            hit = self.build.pointwise("eq", shape, arg, out)
            count = self.build.reduce("sum", shape, hit)
            share = self.build.pointwise("div", shape[:-1], gradient._replace(strides=kept), count)
            spread = self.build.pointwise("mul", shape, hit, share._replace(strides=(*kept, 0)))
        self._give(arg.value, shape, arg.offset, arg.strides, spread)

    def _select(self, instruction: Reduce, gradient: Ref) -> None:
        """What is selected gets the gradients of all places where it is."""
        shape, (*_, chosen) = instruction.shape, instruction.args
        spread = gradient._replace(strides=(*strides_of(shape[:-1]), 0))
        # If the operand has stride 0 along an axis, another `select` sums the gradients along it.
        axes = range(len(shape))
        along = next((k for k in axes if chosen.strides[k] == 0 and shape[k] > 1), None)
        if along is None:
            where = self.build.pointwise("eq", shape, *instruction.args[:2])
            given = self.build.pointwise("where", shape, where, spread, 0.0)
            self._give(chosen.value, shape, chosen.offset, chosen.strides, given)
            return
        order = [k for k in axes if k != along] + [along]
        sizes = tuple(shape[k] for k in order)
        args = [
            ref._replace(strides=tuple(ref.strides[k] for k in order))
            for ref in (*instruction.args[:2], spread)
        ]
        given = self.build.reduce("select", sizes, *args)
        strides = tuple(chosen.strides[k] for k in order[:-1])
        self._give(chosen.value, sizes[:-1], chosen.offset, strides, given)

    def _product(self, instruction: Product, gradient: Ref) -> None:
        gradient = self.build.contiguous(gradient, (instruction.out.width,))
        if gradient.value.kind in (Kind.STATE, Kind.CONSTANT):  # gone, or nowhere, after the step
            gradient = self.build.pointwise("copy", (instruction.out.width,), gradient)
        places, block = instruction.places, instruction.block
        margin = self._margin(instruction)
        if margin:
            gradient = self._with_margins(gradient, instruction.out.width, margin * block)
        for bias in instruction.biases:
            spread = gradient._replace(strides=(block, 1))
            self._give(bias.value, (places, block), bias.offset, (0, 1), spread)
        for term in instruction.terms:
            at = gradient.offset + term.target
            if term.row in self.active:
                back = Term(
                    gradient.value,
                    at,
                    term.N,
                    term.weight,
                    term.w_offset,
                    term.n_stride,
                    term.k_stride,
                    term.K,
                    term.offset,
                )
                self._multiply_back(term, back, gradient, margin, instruction)
            if term.weight in self.active:
                self.outers.append(
                    Outer(
                        term.row,
                        term.offset,
                        term.K,
                        gradient.value,
                        at,
                        term.N,
                        term.weight,
                        term.w_offset,
                        term.k_stride,
                        term.n_stride,
                        *((places, term.row_step, block) if places > 1 else ()),
                    )
                )

    def _margin(self, product: Product) -> int:
        """By how many places the rows of a product are moved against each other, at most."""
        if product.places == 1:
            return 0
        starts: dict[tuple[Value, int, int], list[int]] = defaultdict(list)
        for term in product.terms:
            step = term.row_step
            if term.row in self.active and step > 0:
                for first in range(term.offset, term.offset + term.K, step):
                    starts[term.row, step, first % step].append(first // step)
        spans = (max(found) - min(found) for found in starts.values())
        return max((span for span in spans if span < product.places), default=0)

    def _with_margins(self, gradient: Ref, width: int, margin: int) -> Ref:
        """A gradient with zeros in front and behind: it is put together with them, if at all."""
        maker = self.build.maker(gradient.value)
        pieces = [Piece((width,), gradient, 0, (1,))]
        if isinstance(maker, Assemble) and maker.out.width == width:
            pieces = list(maker.pieces)
        moved = [piece._replace(offset=piece.offset + margin) for piece in pieces]
        value = self.build.assemble(width + 2 * margin, moved)
        return Ref(value, margin, (1,))

    def _multiply_back(
        self, term: Term, back: Term, gradient: Ref, margin: int, product: Product
    ) -> None:
        """Note what gives the row of a term its gradient.

        Args:
            term: the term.
            back: the product with its matrix transposed, at the first place.
            gradient: of the product's result.
            margin: how many blocks of zeros the gradient has in front and behind.
            product: the product.
        """
        step, places, block = term.row_step, product.places, product.block
        if places == 1:
            self.terms[term.row].append(back)
        elif step <= 0:
            self.terms[term.row] += [
                back._replace(offset=back.offset + p * block, target=back.target + p * step)
                for p in range(places)
            ]
        else:  # where places overlap, each part as wide as a step is a product of its own
            for first in range(0, term.K, step):
                width = min(step, term.K - first)
                part = back._replace(
                    w_offset=back.w_offset + first * back.n_stride, N=width, target=0
                )
                share = _Share(term.offset + first, step, places, gradient, margin, block, part)
                self.shares[term.row].append(share)

    def _multiply_at_places(self, value: Value) -> None:
        """Multiply what gives a value gradients at several places, places that overlap at once."""
        groups: dict[tuple[int, ...], list[_Share]] = defaultdict(list)
        for share in sorted(self.shares[value], key=lambda share: share.start):
            key = (share.step, share.term.N, share.places, share.start % share.step)
            group = groups[key]
            # Those that lie apart are no sums: each range is a product of its own.
            if group and share.start >= group[0].start + share.places * share.step:
                self._multiply_shares(value, groups.pop(key))
            groups[key].append(share)
        for shares in groups.values():
            self._multiply_shares(value, shares)

    def _multiply_shares(self, value: Value, shares: list[_Share]) -> None:
        """Multiply gradients with the matrices of shares whose blocks are moved by whole steps."""
        low, high = shares[0].start, shares[-1].start
        step, width, count = shares[0].step, shares[0].term.N, shares[0].places
        span = (high - low) // step
        places = count + span
        terms = []
        for share in shares:  # with zeros around, all blocks can be multiplied at all places
            term = share.term._replace(row_step=share.block)
            offset = term.offset + (low - share.start) // step * share.block
            if span > share.margin:
                size, margin = count * share.block, span * share.block
                key = share.gradient.value, share.gradient.offset, size, margin
                if key not in self.padded:
                    self.padded[key] = self._with_margins(share.gradient, size, margin)
                padded = self.padded[key]
                offset += padded.offset - share.gradient.offset
                term = term._replace(row=padded.value)
            terms.append(term._replace(offset=offset))
        product = self.build.product(places * width, terms, places=places)
        self.contributions[value].append(
            _Contribution((places, width), low, (step, 1), Ref(product, 0, (width, 1)))
        )


def _flattened(given: _Contribution) -> _Contribution:
    """The same with as few axes as its layout and its gradient's allow."""
    axes: list[_Axis] = []
    sizes = zip(given.shape, given.strides, given.gradient.strides, strict=True)
    for axis in (_Axis(*numbers) for numbers in sizes):
        if axis.size == 1:
            continue
        last = axes[-1] if axes else None
        if last is not None and last.is_around(axis):
            axes[-1] = axis._replace(size=last.size * axis.size)
        else:
            axes.append(axis)
    if not axes:
        axes = [_Axis(1, 1, 1)]
    return _Contribution(
        tuple([axis.size for axis in axes]),
        given.offset,
        tuple([axis.stride for axis in axes]),
        given.gradient._replace(strides=tuple([axis.step for axis in axes])),
    )
