"""A program in words: what is done once, ahead of the loop, at each step, and what that costs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod

from cello.compile.dependence import Form, Verdict, verdicts
from cello.compile.derive import Wanted
from cello.compile.instructions import (
    Assemble,
    Instruction,
    Kind,
    Pointwise,
    Product,
    Reduce,
    Ref,
    Term,
    Value,
    strides_of,
)
from cello.compile.node import Node, operation
from cello.compile.program import Program
from cello.foreign.path import Path
from cello.foreign.scope import words

_SYMBOLS = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "eq": "==",
    "ne": "!=",
}


@dataclass(frozen=True)
class Description:
    """What a program does.

    Attributes:
        static: computed once per call, in torch: what the loop reads, as ``name (shape)``.
        beforehand: computed from the input alone, in torch, once for all steps.
        ahead: matrix products of the input, done for many steps at once or together with those of the
            state, as the engine sees fit.
        equations: the instructions of a step, as ``name = expression``.
        dependence: for each part of the state, how it depends on the state before the step.
        deferred: the gradients of matrices, gathered over many steps at once.
        saved_bytes: kept for the backward pass, for each row of each step, beside input and output.
        multiply_adds: of the products, for each row of each step, forward.
        pointwise: numbers made by all other instructions, for each row of each step, forward.
    """

    static: tuple[str, ...]
    beforehand: tuple[str, ...]
    ahead: tuple[str, ...]
    equations: tuple[str, ...]
    dependence: tuple[str, ...]
    deferred: tuple[str, ...]
    saved_bytes: int
    multiply_adds: int
    pointwise: int

    def lines(self) -> list[str]:
        """The description as text."""
        out = []
        for title, items in (
            ("once per call", self.static),
            ("from the input, for all steps at once", self.beforehand),
            ("each step", self.equations),
            ("how the state depends on the one before", self.dependence),
            ("ready ahead of the loop", self.ahead),
            ("behind the loop, in training", self.deferred),
        ):
            if items:
                out += [f"{title}:", *(f"  {item}" for item in items)]
        out.append(
            f"per row and step: {self.multiply_adds:,} multiply-adds in products, {self.pointwise:,} "
            f"numbers elsewhere, {self.saved_bytes:,} bytes saved for training"
        )
        return out


def describe(program: Program, state_names: Sequence[str]) -> Description:
    """Describe a program.

    Args:
        program: the program.
        state_names: what the parts of the state are called.
    """
    names = _Names(program, state_names)
    loop = program.loop
    everything = Wanted((True,) * len(loop.inputs), (True,) * len(loop.statics))
    products = [i for i in loop.body if isinstance(i, Product)]
    terms = [(term, product.places) for product in products for term in product.terms]
    others = [i for i in loop.body if not isinstance(i, Product)]
    ends = zip(
        (free_name("output", state_names), *(f"{name}'" for name in state_names)),
        (loop.outputs[0], *loop.new_states),
        strict=True,
    )
    return Description(
        static=tuple(
            f"{names.value(value)} {tuple(node.shape)}{_origin(node)}"
            for value, node in zip(loop.statics, program.statics, strict=True)
        ),
        beforehand=tuple(
            f"{names.value(value)} ({value.width}){_origin(node)}"
            for value, node in zip(loop.inputs, program.beforehand, strict=True)
            if node.source != "x"
        ),
        ahead=tuple(names.term(*term) for term in terms if term[0].row.kind is Kind.INPUT),
        equations=(
            *(names.equation(instruction) for instruction in loop.body),
            *(f"{end} = {names.value(value)}" for end, value in ends),
        ),
        dependence=tuple(
            f"{name}' {_dependence(verdict, state_names)}"
            for name, verdict in zip(state_names, verdicts(loop), strict=True)
        ),
        deferred=tuple(
            dict.fromkeys(  # the rows of a kernel read alike
                f"d{names.value(term.weight)} = sum over all rows{' and places' if places > 1 else ''} of "
                f"{names.value(term.row)} times the gradient of the product"
                for term, places in terms
                if term.weight.kind is Kind.STATIC
            )
        ),
        saved_bytes=program.loops(False, everything).saved_width * program.dtype.itemsize,
        multiply_adds=sum(places * term.K * term.N for term, places in terms),
        pointwise=sum(instruction.out.width for instruction in others),
    )


def free_name(name: str, taken: Collection[str]) -> str:
    """Return a name for the input or the output of a step, another one where a part of the state has it."""
    return f"{name}#0" if name in taken else name


def _dependence(verdict: Verdict, state_names: Sequence[str]) -> str:
    parts = " and ".join(state_names[part] for part in verdict.parts)
    if verdict.form is Form.FREE:
        return "does not depend on it"
    if verdict.form is Form.MIXED:
        return f"mixes the units of {parts}{verdict.line}"
    form = "an affine function" if verdict.form is Form.AFFINE else "a function"
    return f"is, unit by unit, {form} of {parts}"


def _name_of(node: Node) -> str:
    """The name of a tensor of the cell, or of a part of a complex one; empty for others."""
    part = ""
    while node.op is not None and operation(node) in _OF_PARTS:
        of = node.args[0]
        if operation(node) == "select":
            part = (".real", ".imag")[node.args[2]] if operation(of) == "view_as_real" else ""
        node = of
    if not isinstance(node.source, Path) or node.dtype.is_complex != bool(part):
        return ""
    return f"{node.source.readable}{part}"


_OF_PARTS = words("clone select view_as_real resolve_conj")
"""What a step with complex numbers does to a tensor of the cell, for its parts."""


def _origin(node: Node) -> str:
    if _name_of(node) or node.op is None:
        return ""
    return f" by {node.op._schema.name.removeprefix('aten::')}{node.line}"


class _Names:
    """Names for values: the cell's own where it has any, v1, v2, ... for the rest."""

    def __init__(self, program: Program, state_names: Sequence[str]) -> None:
        loop = program.loop
        self._names: dict[Value, str] = dict(zip(loop.states, state_names, strict=True))
        for value, node in zip(loop.inputs, program.beforehand, strict=True):
            own = free_name("x", state_names)
            self._names[value] = own if node.source == "x" else f"x{value.index}"
        for value, node in zip(loop.statics, program.statics, strict=True):
            self._names[value] = _name_of(node) or f"w{value.index}"
        self._count = 0

    def value(self, value: Value) -> str:
        if value.kind is Kind.CONSTANT:
            return f"{value.number:g}"
        if value not in self._names:
            self._count += 1
            self._names[value] = f"v{self._count}"
        return self._names[value]

    def ref(self, ref: Ref, shape: tuple[int, ...]) -> str:
        name = self.value(ref.value)
        size = prod(shape)
        if ref.value.kind is Kind.CONSTANT or ref.value.width == 1:
            return name
        if ref.strides == strides_of(shape):
            whole = ref.offset == 0 and ref.value.width == size
            return name if whole else f"{name}[{ref.offset}:{ref.offset + size}]"
        return f"{name}[view]"

    def term(self, term: Term, places: int) -> str:
        row = self.value(term.row)
        if places > 1:
            row += f"[{places} views]"
        elif (term.offset, term.K) != (0, term.row.width):
            row += f"[{term.offset}:{term.offset + term.K}]"
        # A weight (N, K) is used as in F.linear, transposed.
        turned = ".T" if term.k_stride == 1 and term.K > 1 else ""
        return f"{row} @ {self.value(term.weight)}{turned}"

    def equation(self, instruction: Instruction) -> str:
        if isinstance(instruction, Pointwise):
            args = [self.ref(arg, instruction.shape) for arg in instruction.args]
            symbol = _SYMBOLS.get(instruction.op)
            right = f" {symbol} ".join(args) if symbol else f"{instruction.op}({', '.join(args)})"
        elif isinstance(instruction, Reduce):
            args = [self.ref(arg, instruction.shape) for arg in instruction.args]
            right = f"{instruction.op}({', '.join(args)}, last axis)"
        elif isinstance(instruction, Assemble):
            pieces = sorted(instruction.pieces, key=lambda piece: piece.offset)
            parts = ", ".join(self.ref(p.source, p.shape) for p in pieces)
            right = f"[{parts}]"
        else:
            assert isinstance(instruction, Product)
            addends = [self.term(term, instruction.places) for term in instruction.terms]
            if len(addends) > 4:
                addends = [*addends[:3], f"... ({len(addends)} products)"]
            addends += [self.value(bias.value) for bias in instruction.biases]
            right = " + ".join(addends)
        return f"{self.value(instruction.out)} = {right}{instruction.line}"
