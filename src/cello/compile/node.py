"""The tensors of a traced step, and how each is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch

from cello.foreign.path import Path
from cello.foreign.scope import words

Op = torch._ops.OpOverload


@dataclass(frozen=True, eq=False)
class Node:
    """One tensor of a step.

    Attributes:
        op: the operation that makes it, or ``None`` for a tensor that the step is given.
        args: its arguments; tensors among them are nodes.
        kwargs: likewise.
        index: which of the operation's results it is, where there are several.
        shape: its shape, with `Trace.rows` rows where it has one for each row of the batch.
        dtype: its dtype.
        source: what the step was given: ``"x"``, a position in the state, or the path of a tensor that
            the cell holds; or ``"gradient"``, in the backward of a custom function.
        line: where in the cell's code the operation was asked for.
        is_detached: whether no gradient flows into it: it was made under ``torch.no_grad``.
        in_place_of: the node that it overwrote, whose gradient it passes on where it is detached.
        custom: for a result of a custom function, what the function did.
    """

    op: Op | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    index: int | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    source: str | int | Path | None = None
    line: str = ""
    is_detached: bool = False
    in_place_of: Node | None = None
    custom: Custom | None = None

    def inputs(self) -> Iterator[Node]:
        """The nodes among the arguments."""
        yield from nodes_in((self.args, tuple(self.kwargs.values())))

    def view_of(self) -> Node | None:
        """The node that it is a view of, if it is the one result of a view."""
        if self.op is None or not self.op.is_view or self.index is not None or self.kwargs:
            return None
        parts = list(self.inputs())
        return parts[0] if len(parts) == 1 and self.args[0] is parts[0] else None


@dataclass(frozen=True, eq=False)
class Custom:
    """A call of a custom function of autograd, as its forward and backward were traced.

    Attributes:
        function: the class.
        given: the tensors that it was called with.
        results: what its forward made.
        asked: for each result its gradient, which is not known yet.
        gradients: what its backward made of these, for each tensor that it was called with.
    """

    function: Any
    given: tuple[Node, ...]
    results: tuple[Node, ...]
    asked: tuple[Node, ...]
    gradients: tuple[Node | None, ...]


class Assumption(NamedTuple):
    """What is assumed of truth values.

    Attributes:
        node: the truth values.
        value: what they are assumed to be.
        is_everywhere: whether that is said of all of them, and not of at least one in each row.
    """

    node: Node
    value: bool
    is_everywhere: bool


class Question(NamedTuple):
    """A truth value that a step has asked for in Python, and that may be another one at each step.

    Attributes:
        node: the truth value.
        answer: what the step was told.
        assumed: what is enough for that answer.
        told: what it asks, and where.
        is_assertion: whether another answer is known to be an error.
    """

    node: Node
    answer: bool
    assumed: tuple[Assumption, ...]
    told: str
    is_assertion: bool = False


def operation(node: Node) -> str:
    """The name of a node's operation, without namespace and overload."""
    if node.op is None:
        return ""
    return str(node.op._schema.name).removeprefix("aten::")


def reads_shape_only(node: Node) -> bool:
    """Whether an operation reads no more of its operands than their shape and kind."""
    name = operation(node)
    return name.endswith("_like") or name.startswith("new_")


def by_name(node: Node) -> dict[str, Any]:
    """All arguments of the operation that makes a node, as torch calls them."""
    assert node.op is not None
    schema = node.op._schema.arguments
    given = dict(zip((argument.name for argument in schema), node.args, strict=False))
    return {a.name: a.default_value for a in schema} | given | node.kwargs


def nodes_in(value: Any) -> Iterator[Node]:
    """The nodes among arguments."""
    if isinstance(value, Node):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from nodes_in(item)


@dataclass(frozen=True)
class Trace:
    """One step of a cell.

    Attributes:
        nodes: all tensors, each after those that it is made from.
        x: the input.
        state: the state before the step.
        output: the output.
        new_state: the state after the step.
        rows: the number of rows of the traced batch: a prime that divides no other size, so that a
            size says by itself whether it counts rows.
        autocast: the dtype that operands of products were cast to, or ``None`` without torch.autocast.
        calls: what the step has called of torch's.
        lines: where it has called each.
        counted: whether it has asked for a number of rows whose use cannot be seen.
        sets: the paths of the attributes that it sets, which it does not read before.
        questions: the truth values for which the step has asked in Python, in order.
    """

    nodes: tuple[Node, ...]
    x: Node
    state: tuple[Node, ...]
    output: Node
    new_state: tuple[Node, ...]
    rows: int
    autocast: torch.dtype | None = None
    calls: tuple[tuple[Any, ...], ...] = ()
    counted: bool = False
    sets: tuple[Path, ...] = ()
    questions: tuple[Question, ...] = ()
    lines: tuple[str, ...] = ()

    @property
    def answers(self) -> list[bool]:
        """What the step was told where it asked for truth values."""
        return [question.answer for question in self.questions]

    @cached_property
    def is_random(self) -> bool:
        """Whether the step draws random numbers."""
        tag = torch.Tag.nondeterministic_seeded
        return any(node.op is not None and tag in node.op.tags for node in self.nodes)

    @property
    def assumed(self) -> list[Assumption]:
        """What is enough for that."""
        return [one for question in self.questions for one in question.assumed]


def all_inputs(node: Node, ends: Sequence[Node] = ()) -> Iterator[Node]:
    """A node, and all that it is made from, but for what is behind some other nodes."""
    ended = {id(end) for end in ends}
    seen: set[int] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if id(current) not in seen:
            seen.add(id(current))
            yield current
            if id(current) not in ended:
                stack += current.inputs()


CHOSEN, MOST_MASKS = 10**12 + 256, 100
"""From the first on a size stands for how many numbers a mask chooses: none of so many is a multiple of a
number of rows that a step is traced with."""


def are_chosen(shape: Sequence[int]) -> bool:
    """Whether a tensor holds what a mask has chosen."""
    return any(size >= CHOSEN for size in shape)


def is_random(node: Node) -> bool:
    """Whether a node is made from random numbers."""
    return any(
        part.op is not None and torch.Tag.nondeterministic_seeded in part.op.tags
        for part in all_inputs(node)
    )


def are_equal(a: Node, b: Node, known: dict[tuple[int, int], bool]) -> bool:
    """Whether two nodes are made in the same way from the same nodes; `known` remembers it of each pair."""
    stack = [(a, b)]
    while stack:  # no recursion: a function of many operations is deep
        one, two = stack[-1]
        if (id(one), id(two)) in known:
            stack.pop()
            continue
        if one is two or one.op is None or not _are_alike(one, two):
            known[id(one), id(two)] = one is two
            continue
        parts = [*zip(one.inputs(), two.inputs(), strict=True)]
        missing = [pair for pair in parts if (id(pair[0]), id(pair[1])) not in known]
        if missing:
            stack += missing
            continue
        known[id(one), id(two)] = all(known[id(p), id(q)] for p, q in parts)
    return known[id(a), id(b)]


def hold_the_same(a: Node, b: Node) -> bool:
    """Whether two nodes are sure to hold the same numbers."""
    return a is b or (are_equal(a, b, {}) and not is_random(a))


def _are_alike(a: Node, b: Node) -> bool:
    """Whether two nodes are made by the same operation, with the same arguments beside nodes."""
    made = (a.op, a.index, a.dtype, a.is_detached) == (b.op, b.index, b.dtype, b.is_detached)
    return made and _without_nodes((a.args, a.kwargs)) == _without_nodes((b.args, b.kwargs))


def _without_nodes(value: Any) -> Any:
    if isinstance(value, Node):
        return Node
    if isinstance(value, dict):
        return {key: _without_nodes(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(map(_without_nodes, value))
    return type(value), value


def depends_on_rows(node: Node, known: dict[int, bool]) -> bool:
    """Whether a node is made from the input or the state; `known` remembers it of each."""
    stack = [node]
    while stack:  # no recursion: a step of many operations is deep
        current = stack[-1]
        missing = [part for part in current.inputs() if id(part) not in known]
        if missing and id(current) not in known:
            stack += missing
            continue
        is_given = current.source in ("x", "gradient") or isinstance(current.source, int)
        known[id(current)] = is_given or any(known[id(part)] for part in current.inputs())
        stack.pop()
    return known[id(node)]


VIEWS = words(
    "view _unsafe_view reshape expand permute transpose t unsqueeze squeeze slice select "
    "split split_with_sizes unsafe_split unsafe_split_with_sizes unbind alias _reshape_alias "
    "narrow as_strided_"
)
"""Operations that only look at their operand in another way."""


FACTORIES = words(
    "zeros ones full empty zeros_like ones_like full_like empty_like new_zeros new_ones "
    "new_full new_empty scalar_tensor fill zero empty_strided new_empty_strided"
)
"""Operations that make a tensor of one number."""


SIZED = words(
    "view _unsafe_view reshape _reshape_alias expand repeat zeros ones full empty rand randn randint "
    "new_zeros new_ones new_full new_empty empty_strided new_empty_strided as_strided bernoulli "
    "split_with_sizes"
)
"""Operations of which a list of sizes may count rows."""


COUNTING = words("slice narrow split unsafe_split native_group_norm slice_scatter arange")
"""Operations of which any number may count rows."""


def may_count(node: Node, argument: Any) -> bool:
    """Whether integers in an argument of a node's operation may count rows."""
    name = operation(node)
    return name in COUNTING or (name in SIZED and isinstance(argument, list | tuple))
