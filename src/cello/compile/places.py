"""Products at several places of a row, written as products at one place each."""

from __future__ import annotations

from dataclasses import replace

from cello.compile.instructions import (
    Instruction,
    Kind,
    Loop,
    Outer,
    Pointwise,
    Product,
    Ref,
    Value,
    strides_of,
)


def most_places(loop: Loop) -> int:
    """At how many places a product of a loop is computed, at most."""
    return max((i.places for i in loop.body if isinstance(i, Product)), default=1)


def one_by_one(loop: Loop) -> Loop:
    """The loop for an engine whose products have one place: with a term for each."""
    if most_places(loop) == 1:
        return loop
    body: list[Instruction] = []
    for instruction in loop.body:
        body += _each(instruction) if isinstance(instruction, Product) else [instruction]
    return replace(loop, body=body, outers=[one for outer in loop.outers for one in _sums(outer)])


def _each(product: Product) -> list[Instruction]:
    if product.places == 1:
        return [product]
    terms = [
        term._replace(
            offset=term.offset + place * term.row_step,
            target=term.target + place * product.block,
            row_step=0,
        )
        for place in range(product.places)
        for term in product.terms
    ]
    width, shape = product.out.width, (product.places, product.block)
    values = [Value(Kind.COMPUTED, width) for _ in product.biases] + [product.out]
    made: list[Instruction] = [Product(values[0], tuple(terms), line=product.line)]
    for before, bias, value in zip(values, product.biases, values[1:], strict=False):
        args = Ref(before, 0, strides_of(shape)), bias._replace(strides=(0, 1))
        made.append(Pointwise(value, "add", shape, args, line=product.line))
    return made


def _sums(outer: Outer) -> list[Outer]:
    return [
        outer._replace(
            offset=outer.offset + place * outer.row_step,
            g_offset=outer.g_offset + place * outer.g_step,
            places=1,
            row_step=0,
            g_step=0,
        )
        for place in range(outer.places)
    ]
