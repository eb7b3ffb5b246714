"""Products at several places, written as products at one place each."""

from __future__ import annotations

from dataclasses import replace

from cello.compile.instructions import Instruction, Loop, Outer, Product


def most_places(loop: Loop) -> int:
    """At how many places a product of a loop is computed, at most."""
    return max((i.places for i in loop.body if isinstance(i, Product)), default=1)


def one_by_one(loop: Loop) -> Loop:
    """The loop for an engine whose products have one place: with a term for each."""
    if most_places(loop) == 1:
        return loop
    body = [_each(i) if isinstance(i, Product) else i for i in loop.body]
    return replace(loop, body=body, outers=[one for outer in loop.outers for one in _sums(outer)])


def _each(product: Product) -> Instruction:
    if product.places == 1:
        return product
    terms = [
        term._replace(
            offset=term.offset + place * term.row_step,
            target=term.target + place * product.block,
            row_step=0,
        )
        for place in range(product.places)
        for term in product.terms
    ]
    return Product(product.out, tuple(terms), product.biases, line=product.line)


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
