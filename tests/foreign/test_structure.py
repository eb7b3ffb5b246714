"""How a state nests."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cello.foreign.structure import LEAF, Structure, describe


class Pair(NamedTuple):
    left: object
    right: object


def nests(leaves):
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.tuples(inner, inner).map(lambda pair: Pair(*pair)),
        ),
        max_leaves=8,
    )


@given(nests(st.integers()))
@example(([0],))  # as many leaves as children, and still not flat
@settings(deadline=None, max_examples=100)
def test_unflatten_inverts_flatten(nested):
    structure = Structure.of(nested, is_leaf=lambda item: isinstance(item, int))
    leaves = structure.flatten(nested)
    again = structure.unflatten(leaves)
    assert again == nested
    assert type(again) is type(nested)
    assert len(structure) == len(leaves)
    assert structure.same_as(structure)
    with pytest.raises(TypeError, match="tensors for"):
        structure.unflatten((*leaves, 0))


@given(nests(st.integers()))
@settings(deadline=None, max_examples=100)
def test_no_structure_contains_itself(nested):
    """Why (output, state) and state cannot be taken for each other."""
    inner = Structure.of(nested, is_leaf=lambda item: isinstance(item, int))
    assert not inner.same_as(Structure(tuple, (LEAF, inner)))


def test_a_tuple_a_list_and_a_named_tuple_are_the_same():
    a, b, c = (Structure.of(make) for make in ((t(), t()), [t(), t()], Pair(t(), t())))
    assert a.same_as(b)
    assert b.same_as(c)
    assert not a.same_as(Structure.of((t(),)))
    assert not a.same_as(LEAF)
    assert a.flatten([1, 2]) == b.flatten(Pair(1, 2)) == (1, 2)
    assert (a.has_names(), c.has_names(), Structure(tuple, (c,)).has_names()) == (False, True, True)


def t() -> torch.Tensor:
    return torch.zeros(2, 3)


def test_names():
    assert Structure.of(t()).names() == ("h",)
    assert Structure.of((t(), t())).names() == ("h", "c")
    assert Structure.of(Pair(t(), t())).names() == ("left", "right")
    assert Structure.of(Pair(t(), (t(), t()))).names() == ("s0", "s1", "s2")


def test_a_dict():
    nested = {"h": t(), "more": (t(), {"c": t()})}
    structure = Structure.of(nested)
    assert len(structure) == 3
    assert structure.has_names()
    assert structure.names() == ("s0", "s1", "s2")
    assert Structure.of({"left": t(), "right": t()}).names() == ("left", "right")
    built = structure.unflatten([1, 2, 3])
    assert built == {"h": 1, "more": (2, {"c": 3})}
    assert structure.flatten({"more": [2, {"c": 3}], "h": 1}) == (1, 2, 3)
    assert structure.same_as(Structure.of({"more": [t(), {"c": t()}], "h": t()}))
    assert not structure.same_as(Structure.of((t(), (t(), (t(),)))))
    assert not Structure.of({"h": t()}).same_as(Structure.of({"c": t()}))
    assert describe(nested) == (
        "{'h': a tensor (2, 3), 'more': (a tensor (2, 3), {'c': a tensor (2, 3)})}"
    )


def test_what_does_not_nest_is_described():
    with pytest.raises(TypeError, match="got dict"):
        Structure.of({})
    with pytest.raises(TypeError, match="got set"):
        Structure.of({t()})
    with pytest.raises(
        TypeError, match=r"expected \{'h': a tensor\}, got \{'c': a tensor \(2, 3\)\}"
    ):
        Structure.of({"h": t()}).flatten({"c": t()})
    with pytest.raises(TypeError, match=r"expected \(a tensor, a tensor\), got a tensor \(2, 3\)"):
        Structure.of((t(), t())).flatten(t())
    with pytest.raises(TypeError, match=r"got \(a tensor \(2, 3\), None"):
        Structure.of((t(), t(), t())).flatten((t(), None))
    assert describe([t(), (3, "x")]) == "[a tensor (2, 3), (int, str)]"
    assert describe(((t(),), None)) == "((a tensor (2, 3),), None)"
