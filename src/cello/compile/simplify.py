"""Fewer instructions for the same result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from math import prod

from cello.compile.instructions import (
    Assemble,
    Instruction,
    Kind,
    Loop,
    Piece,
    Pointwise,
    Product,
    Reduce,
    Ref,
    Ruled,
    Term,
    Value,
    places_among,
    redirect,
    strides_of,
)


def simplify(loop: Loop) -> None:
    """Rewrite the body of a forward loop in place."""
    drop_unread(loop)
    _split_operands(loop)
    _join_sums(loop)
    drop_unread(loop)


def fuse(loop: Loop) -> None:
    """Make one instruction of products of numbers and the sum that is their only reader, in place."""
    reads = _count_reads(loop)
    makers = {instruction.out: instruction for instruction in loop.body}
    gone: set[Value] = set()

    def factors_of(ref: Ref, shape: Sequence[int]) -> tuple[Ref, ...] | None:
        maker = makers.get(ref.value)
        if not isinstance(maker, Pointwise) or maker.op != "mul" or reads[ref.value] > 1:
            return None
        return None if ref.offset else _as_read(maker, ref.strides, shape)

    for instruction in loop.body:
        if isinstance(instruction, Reduce) and instruction.op == "sum":
            (ref,) = instruction.args
            factors = factors_of(ref, instruction.shape)
            if factors is not None:
                instruction.op, instruction.args = "dot", factors
                gone.add(ref.value)
        elif isinstance(instruction, Pointwise) and instruction.op == "add":
            for place in (0, 1):
                ref, rest = instruction.args[place], instruction.args[1 - place]
                factors = factors_of(ref, instruction.shape)
                if factors is not None:
                    instruction.op, instruction.args = "muladd", (*factors, rest)
                    gone.add(ref.value)
                    break
    loop.body = [instruction for instruction in loop.body if instruction.out not in gone]


def _as_read(
    maker: Pointwise, strides: Sequence[int], shape: Sequence[int]
) -> tuple[Ref, ...] | None:
    """The operands of an instruction, with the axes that its result is read with.

    ``None`` if these are not all of its own, in some order.
    """
    own = zip(strides_of(maker.shape), maker.shape, strict=True)
    order = places_among(zip(strides, shape, strict=True), own)
    if order is None:
        return None
    return tuple(
        [arg._replace(strides=tuple([arg.strides[place] for place in order])) for arg in maker.args]
    )


def forget_gradients(forward: Loop, *gradient: Loop) -> None:
    """Leave out what only the derivation of the gradient was to see, in place.

    Args:
        forward: a forward loop. What has the gradient of something else, or none, is a copy now, and copies
            of whole values are what they are copies of.
        gradient: its gradient, which reads its values.
    """
    kept, same = set(_kept(forward)), dict[Value, Value]()
    for place, instruction in enumerate(forward.body):
        if isinstance(instruction, Ruled):
            forward.body[place] = instruction = instruction.plain()
        if isinstance(instruction, Pointwise) and instruction.op == "replace":
            instruction.op, instruction.args = "copy", instruction.args[1:]
        if isinstance(instruction, Pointwise) and instruction.op in ("copy", "stop"):
            (ref,) = instruction.args
            is_whole = ref.offset == 0 and ref.strides == strides_of(instruction.shape)
            is_whole = is_whole and ref.value.width == instruction.out.width
            of_steps = ref.value.kind not in (Kind.STATIC, Kind.CONSTANT)
            if is_whole and of_steps and instruction.out not in kept:
                same[instruction.out] = same.get(ref.value, ref.value)

    def moved(ref: Ref) -> Ref:
        return ref._replace(value=same.get(ref.value, ref.value))

    for loop in (forward, *gradient):
        for instruction in loop.body:
            redirect(instruction, moved)
        loop.outers = [outer._replace(row=same.get(outer.row, outer.row)) for outer in loop.outers]
        loop.row_sums = [total._replace(source=moved(total.source)) for total in loop.row_sums]


def _kept(loop: Loop) -> Iterable[Value]:
    yield from loop.outputs
    yield from loop.new_states
    for outer in loop.outers:
        yield outer.row
        yield outer.gradient
    for row_sum in loop.row_sums:
        yield row_sum.source.value


def _count_reads(loop: Loop) -> Counter[Value]:
    reads = Counter(_kept(loop))
    for instruction in loop.body:
        reads.update(instruction.reads())
    return reads


def drop_unread(loop: Loop) -> None:
    """Leave out what nothing reads, in place."""
    alive = set(_kept(loop))
    body: list[Instruction] = []
    for instruction in reversed(loop.body):
        if instruction.out in alive:
            alive.update(instruction.reads())
            body.append(instruction)
    loop.body = body[::-1]


def _split_operands(loop: Loop) -> None:
    """A product with ``cat([x, h])`` becomes products with x and with h: the former can run ahead."""
    makers = {instruction.out: instruction for instruction in loop.body}
    for instruction in loop.body:
        if isinstance(instruction, Product):
            terms: list[Term] = []
            for term in instruction.terms:
                terms += _split_term(term, instruction.places, makers)
            instruction.terms = tuple(terms)


def _split_term(term: Term, places: int, makers: dict[Value, Instruction]) -> list[Term]:
    maker = makers.get(term.row)
    if not isinstance(maker, Assemble) or maker.has_gaps:
        return [term]
    pieces = [_at_places(piece, places, term.row_step) for piece in maker.pieces]
    out: list[Term] = []
    for piece in sorted(filter(None, pieces), key=lambda piece: piece.offset):
        (_, width), source = piece.shape, piece.source
        start = max(piece.offset, term.offset)
        end = min(piece.offset + width, term.offset + term.K)
        if start < end:
            part = term._replace(
                row=source.value,
                offset=source.offset + start - piece.offset,
                K=end - start,
                w_offset=term.w_offset + (start - term.offset) * term.k_stride,
                row_step=source.strides[0],
            )
            if source.value.kind in (Kind.CONSTANT, Kind.STATIC):
                return [term]
            out += _split_term(part, places, makers)
    return out if sum(part.K for part in out) == term.K else [term]


def _at_places(piece: Piece, places: int, step: int) -> Piece | None:
    """A piece with an axis of places in front, if it has a range of numbers at each of them."""
    if len(piece.shape) == 1 and places == 1:
        source = piece.source._replace(strides=(0, *piece.source.strides))
        piece = piece._replace(shape=(1, *piece.shape), strides=(0, *piece.strides), source=source)
    if len(piece.shape) != 2 or piece.shape[0] != places:
        return None
    if places > 1 and piece.strides[0] != step:
        return None
    strides = piece.strides[1], piece.source.strides[1]
    return piece if strides == (1, 1) or piece.shape[1] == 1 else None


def _is_bias(ref: Ref, add: Pointwise, places: int) -> bool:
    """Whether a static is added to a product as a vector, the same one at all places."""
    if ref.value.kind is not Kind.STATIC:
        return False
    axes = 0
    while prod(add.shape[:axes]) < places:
        axes += 1
    is_repeated = prod(add.shape[:axes]) == places and not any(ref.strides[:axes])
    return is_repeated and ref.strides[axes:] == strides_of(add.shape[axes:])


def _join_sums(loop: Loop) -> None:
    """Sums of whole products and static vectors become one product: ``x W + h U`` is ``[x h] [W; U]``."""
    reads = _count_reads(loop)
    makers = {instruction.out: instruction for instruction in loop.body}

    def only_read_here(ref: Ref, shape: tuple[int, ...]) -> bool:
        is_whole = ref.offset == 0 and ref.strides == strides_of(shape)
        return is_whole and reads[ref.value] == 1 and ref.value.width == prod(shape)

    def addends(add: Pointwise) -> Iterator[Ref]:
        for ref in add.args:
            maker = makers.get(ref.value)
            if (
                isinstance(maker, Pointwise)
                and (maker.op, maker.shape) == ("add", add.shape)
                and only_read_here(ref, add.shape)
            ):
                gone.add(maker.out)
                yield from addends(maker)
            else:
                yield ref

    gone: set[Value] = set()
    replaced: dict[Value, list[Instruction]] = {}
    for add in reversed(loop.body):  # the outermost sum first
        if not isinstance(add, Pointwise) or add.op != "add" or add.out in gone:
            continue
        products: list[Product] = []
        rest: list[Ref] = []
        for ref in addends(add):
            maker = makers.get(ref.value)
            if (
                isinstance(maker, Product)
                and only_read_here(ref, add.shape)
                and (not products or maker.places == products[0].places)
            ):
                products.append(maker)
            else:
                rest.append(ref)
        gone.update(product.out for product in products)
        rest.sort(key=lambda ref: ref.value.kind in (Kind.STATIC, Kind.CONSTANT))
        terms = tuple(term for product in products for term in product.terms)
        line = add.line
        new: list[Instruction] = []
        if products:
            width, places = add.out.width, products[0].places
            biases = [ref for ref in rest if _is_bias(ref, add, places)]
            rest = [ref for ref in rest if ref not in biases]
            vectors = [Ref(bias.value, bias.offset, (1,)) for bias in biases]
            vectors += [bias for product in products for bias in product.biases]
            value = Value(Kind.COMPUTED, width) if rest else add.out
            new.append(Product(value, terms, tuple(vectors), places, line=line))
            rest.insert(0, Ref(value, 0, strides_of(add.shape)))
        total = rest[0]
        for ref in rest[1:]:
            value = add.out if ref is rest[-1] else Value(Kind.COMPUTED, add.out.width)
            new.append(Pointwise(value, "add", add.shape, (total, ref), line=line))
            total = Ref(value, 0, strides_of(add.shape))
        replaced[add.out] = new
    body: list[Instruction] = []
    for instruction in loop.body:
        if instruction.out in replaced:
            body += replaced[instruction.out]
        elif instruction.out not in gone:
            body.append(instruction)
    loop.body = body
