"""What a cell becomes: its instructions by kind, its products, and what is kept for the gradient.

Every number follows from the equations of the cell, as the comment beside it says. F, H and P are the
widths of the input, the state and the projection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from steps import Step, program_of, random
from torch import Tensor
from torch.nn import functional

import cello
from cello.compile import Program, Wanted
from cello.compile.derive import derive
from cello.compile.describe import describe
from cello.compile.instructions import (
    Assemble,
    Instruction,
    Kind,
    Loop,
    Pointwise,
    Product,
    Reduce,
    Value,
)
from cello.compile.simplify import drop_unread

F, H, P = 3, 4, 2


def kind_of(instruction: Instruction) -> str:
    if isinstance(instruction, Pointwise | Reduce):
        return instruction.op
    return "product" if isinstance(instruction, Product) else "assemble"


def kinds(loop: Loop) -> list[str]:
    return [kind_of(instruction) for instruction in loop.body]


def counted(text: str) -> Counter[str]:
    """The counts in a text like ``3 sigmoid 2 tanh``."""
    words = text.split()
    return Counter(dict(zip(words[1::2], map(int, words[::2]), strict=True)))


def gradient_of(program: Program) -> Loop:
    """The gradient for the input and all weights, with nothing that is not read."""
    loop = program.loop
    gradient = derive(loop, Wanted((True,) * len(loop.inputs), (True,) * len(loop.statics)))
    drop_unread(gradient)
    return gradient


def terms_of(loop: Loop) -> list[tuple[str, int, int]]:
    """For each term of a product: where its rows come from, how wide they are, and the result."""
    products = [i for i in loop.body if isinstance(i, Product)]
    return sorted((t.row.kind.value, t.K, t.N) for product in products for t in product.terms)


def products_in_turn(loop: Loop) -> int:
    """How many products of a step wait for one another, the input being known ahead."""
    level: dict[Value, int] = {}
    for instruction in loop.body:
        waits = max((level.get(value, 0) for value in instruction.reads()), default=0)
        if isinstance(instruction, Product):
            waits += any(term.row.kind is not Kind.INPUT for term in instruction.terms)
        level[instruction.out] = waits
    return max(level.values(), default=0)


def saved_by(program: Program) -> int:
    """The numbers kept for each row of each step, beside the input and the output."""
    names = [f"s{k}" for k in range(len(program.loop.states))]
    return describe(program, names).saved_bytes // program.dtype.itemsize


# Layers


class Expected(NamedTuple):
    """What is known of a layer's program from its equations.

    Attributes:
        step: its instructions.
        terms: (source, K, N) of its products.
        in_turn: how many of them wait for one another.
        gradient: the instructions of its gradient.
        back: the terms of these.
        saved: the numbers that are kept.
    """

    step: str
    terms: list[tuple[str, int, int]]
    in_turn: int
    gradient: str
    back: list[tuple[str, int, int]]
    saved: int


LAYERS: dict[str, tuple[Callable[[], Any], Expected]] = {
    "RNN": (
        lambda: cello.nn.RNN(F, H),
        Expected(
            # h' = tanh(W x + U h + b + d): both products and both vectors are one instruction.
            step="1 product 1 tanh",
            terms=[("input", F, H), ("state", H, H)],
            in_turn=1,
            # The gradients of the output and of the next step are added up.
            gradient="1 add 1 tanh_gradient 2 product",
            back=[("computed", H, F), ("computed", H, H)],
            saved=0,  # that of tanh is made from its result, which is the output
        ),
    ),
    "LSTM": (
        lambda: cello.nn.LSTM(F, H),
        Expected(
            # i f o; g and tanh(c'); f * c, i * g and o * tanh(c'); their sum.
            step="1 product 3 sigmoid 2 tanh 3 mul 1 add",
            terms=[("input", F, 4 * H), ("state", H, 4 * H)],
            in_turn=1,
            # One of each for each of those; two for each product of two; h' and c' are read at the next
            # step too; the gates' gradients are four pieces of one row.
            gradient="2 add 6 mul 3 sigmoid_gradient 2 tanh_gradient 1 assemble 2 product",
            back=[("computed", 4 * H, F), ("computed", 4 * H, H)],
            saved=5 * H,  # four gates and the cell state
        ),
    ),
    "LSTM with a projection": (
        lambda: cello.nn.LSTM(F, H, proj_size=P),
        Expected(
            step="2 product 3 sigmoid 2 tanh 3 mul 1 add",
            terms=[("computed", H, P), ("input", F, 4 * H), ("state", P, 4 * H)],
            in_turn=2,  # the projection waits for the gates
            gradient="2 add 6 mul 3 sigmoid_gradient 2 tanh_gradient 1 assemble 3 product",
            back=[("computed", P, H), ("computed", 4 * H, P), ("computed", 4 * H, F)],
            saved=5 * H,  # what is projected is computed again
        ),
    ),
    "GRU": (
        lambda: cello.nn.GRU(F, H),
        Expected(
            # The reset gate multiplies a part of U h alone, which keeps the two products apart. Sums: of
            # the two in r, z and n, and h'. Products: r * (U h)_n, (1 - z) * n and z * h.
            step="2 product 2 sigmoid 1 tanh 1 sub 3 mul 4 add",
            terms=[("input", F, 3 * H), ("state", H, 3 * H)],
            in_turn=1,
            # h', h and z are read twice: three sums. 1 - z has a sign. W x and U h have a row of gates
            # each.
            gradient="3 add 6 mul 1 neg 2 sigmoid_gradient 1 tanh_gradient 2 assemble 2 product",
            back=[("computed", 3 * H, F), ("computed", 3 * H, H)],
            saved=4 * H,  # two gates, the candidate, and what the reset gate is multiplied with
        ),
    ),
}


def layer_program(name: str) -> Program:
    (cell,) = LAYERS[name][0]()._cells()[0]
    return program_of(cell, torch.zeros(1, 1, F))


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer(name: str):
    expected = LAYERS[name][1]
    program = layer_program(name)
    assert Counter(kinds(program.loop)) == counted(expected.step)
    assert terms_of(program.loop) == sorted(expected.terms)
    assert products_in_turn(program.loop) == expected.in_turn
    assert saved_by(program) == expected.saved
    assert [node.source for node in program.beforehand] == ["x"]


@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_of_a_layer(name: str):
    expected = LAYERS[name][1]
    program = layer_program(name)
    gradient = gradient_of(program)
    assert Counter(kinds(gradient)) == counted(expected.gradient)
    assert terms_of(gradient) == sorted(expected.back)
    # The gradient of a matrix is gathered from each product with it, and that of a vector from each sum.
    assert len(gradient.outers) == len(expected.terms)
    assert len(gradient.row_sums) == 2
    assert {outer.weight for outer in gradient.outers} | {s.vector for s in gradient.row_sums} == {
        *program.loop.statics
    }


def test_a_gates_gradient_is_written_into_its_place():
    gradient = gradient_of(layer_program("LSTM"))
    (whole,) = [i for i in gradient.body if isinstance(i, Assemble)]
    makers = {i.out: kind_of(i) for i in gradient.body}
    places = {piece.offset: makers[piece.source.value] for piece in whole.pieces}
    # The order of the gates along the weights: i, f, g, o.
    assert places == {
        0: "sigmoid_gradient",
        H: "sigmoid_gradient",
        2 * H: "tanh_gradient",
        3 * H: "sigmoid_gradient",
    }
    assert all(piece.is_range and piece.shape == (H,) for piece in whole.pieces)
    read = [t for i in gradient.body if isinstance(i, Product) for t in i.terms]
    assert [(t.row, t.offset, t.K) for t in read] == [(whole.out, 0, 4 * H)] * 2


# Products


class Sum(NamedTuple):
    """A step with products, and what is known of them.

    Attributes:
        function: the step, (cell, x, h) -> h'.
        held: the shapes of the parameters.
        step: the instructions.
        terms: (source, K, N) of the products.
        in_turn: how many of them wait for one another.
        biases: the vectors that products start from.
    """

    function: Callable[..., Tensor]
    held: dict[str, tuple[int, ...]]
    step: str
    terms: list[tuple[str, int, int]]
    in_turn: int
    biases: int


SUMS = {
    "sums of products become one product": Sum(
        lambda c, x, h: torch.tanh(x @ c.W + c.b + h @ c.U + c.d),
        {"W": (F, H), "U": (H, H), "b": (H,), "d": (H,)},
        step="1 product 1 tanh",
        terms=[("input", F, H), ("state", H, H)],
        in_turn=1,
        biases=2,
    ),
    "a product of both is two, so that the input's can run ahead": Sum(
        lambda c, x, h: torch.tanh(torch.cat([x, h], 1) @ c.W),
        {"W": (F + H, H)},
        step="1 product 1 tanh",
        terms=[("input", F, H), ("state", H, H)],
        in_turn=1,
        biases=0,
    ),
    "four matrices are four products": Sum(
        lambda c, x, h: torch.sigmoid(x @ c.W + h @ c.U) * torch.tanh(x @ c.V + h @ c.T),
        {"W": (F, H), "V": (F, H), "U": (H, H), "T": (H, H)},
        step="2 product 1 sigmoid 1 tanh 1 mul",
        terms=[("input", F, H)] * 2 + [("state", H, H)] * 2,
        in_turn=1,
        biases=0,
    ),
    "a product that is read twice stays alone": Sum(
        lambda c, x, h: (p := h @ c.U) * (p + x @ c.W),
        {"W": (F, H), "U": (H, H)},
        step="2 product 1 add 1 mul",
        terms=[("input", F, H), ("state", H, H)],
        in_turn=1,
        biases=0,
    ),
    "one after the other": Sum(
        lambda c, x, h: torch.tanh(torch.relu(h @ c.U) @ c.V + x @ c.W),
        {"W": (F, H), "U": (H, P), "V": (P, H)},
        step="2 product 1 relu 1 tanh",
        terms=[("computed", P, H), ("input", F, H), ("state", H, P)],
        in_turn=2,
        biases=0,
    ),
    "of the input alone": Sum(
        lambda c, x, h: torch.relu(x @ c.W + c.u * h),
        {"W": (F, H), "u": (H,)},
        step="1 product 1 mul 1 add 1 relu",
        terms=[("input", F, H)],
        in_turn=0,
        biases=0,
    ),
    "a product for each head": Sum(  # two heads of two numbers, by one matrix of two by two each
        lambda c, x, h: torch.tanh(
            torch.bmm(h.view(-1, 2, 2).transpose(0, 1), c.W).transpose(0, 1).reshape(-1, 4)
        ),
        {"W": (2, 2, 2)},
        step="1 product 1 tanh",
        terms=[("state", 2, 2)] * 2,
        in_turn=1,
        biases=0,
    ),
}


@pytest.mark.parametrize("name", SUMS)
def test_products(name: str):
    function, held, step, terms, in_turn, biases = SUMS[name]
    weights = {key: random(*shape) for key, shape in held.items()}
    cell = Step(lambda c, x, h: [function(c, x, h)] * 2, [H], **weights)
    loop = program_of(cell, torch.zeros(1, 1, F).double()).loop
    assert Counter(kinds(loop)) == counted(step)
    assert terms_of(loop) == sorted(terms)
    assert products_in_turn(loop) == in_turn
    assert sum(len(i.biases) for i in loop.body if isinstance(i, Product)) == biases


# Operations of torch

MADE_OF: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    # Views and parts are no instructions.
    "views": (
        lambda h: h.view(-1, 2, 2).transpose(1, 2)[:, 1, :, None].expand(-1, 2, 2).sin(),
        "sin",
    ),
    "cat": (lambda h: torch.cat([h[:, 2:], h[:, :2]], 1).sin(), "assemble sin"),
    "flip": (lambda h: h.flip(1).sin(), "sin"),
    # As their definitions say.
    "silu": (functional.silu, "sigmoid mul"),
    "gelu": (functional.gelu, "mul mul erf add mul"),
    "softplus": (functional.softplus, "gt where exp log1p where"),
    "mish": (functional.mish, "gt where exp log1p where tanh mul"),
    "elu": (functional.elu, "gt where expm1 where"),
    "leaky_relu": (functional.leaky_relu, "gt mul where"),
    "hardsigmoid": (functional.hardsigmoid, "mul add hardtanh"),
    "glu": (functional.glu, "sigmoid mul"),
    "square": (torch.square, "mul"),
    "cube": (lambda h: h**3, "mul mul"),
    "root": (lambda h: h**0.5, "sqrt"),
    "lerp": (lambda h: torch.lerp(h, h.sin(), 0.4), "sin sub mul add"),
    "lerp from the other end": (lambda h: torch.lerp(h, h.sin(), 0.5), "sin sub mul sub"),
    # A sum and a quotient each; what stands for infinity in softmax has no gradient.
    "mean": (lambda h: h.mean(-1), "sum div"),
    "softmax": (lambda h: h.softmax(-1), "amax stop sub exp sum div"),
    "log_softmax": (lambda h: h.log_softmax(-1), "amax stop sub exp sum log sub"),
    "layer_norm": (
        lambda h: functional.layer_norm(h, (H,)),
        "sum div sub mul sum div add rsqrt mul",
    ),
    "norm": (lambda h: h.norm(dim=-1), "mul sum eq where sqrt where"),
    # A comparison, a test for NaN and a choice for each number but the first.
    "max": (lambda h: h.max(-1).values, "amax ne ne eq where where amin stop select"),
    "cumsum": (lambda h: h.cumsum(-1), "add assemble " * 2),  # of 4 numbers
    # All pairs are compared once, and what follows an order needs no places.
    "sort": (lambda h: h.sort(-1).values, "rank select"),
    "winners": (
        lambda h: torch.zeros_like(h).scatter(-1, h.topk(2).indices, 1.0),
        "rank lt where",
    ),
    "gather": (lambda h: h.gather(-1, h.topk(2).indices), "rank select"),
    # What is asked for twice is computed once.
    "twice": (lambda h: torch.sigmoid(h) * h.sigmoid(), "sigmoid mul"),
}


@pytest.mark.parametrize("name", MADE_OF)
def test_an_operation(name: str):
    function, made_of = MADE_OF[name]
    cell = Step(lambda c, x, h: (function(h), h + x), [H])
    body = program_of(cell, torch.zeros(1, 1, H).double()).loop.body
    assert sorted(kind_of(i) for i in body) == sorted([*made_of.split(), "add"])


def test_work_that_does_not_change_from_step_to_step_is_no_instruction():
    """A weight made of weights stays in torch, once per call; an embedding once for all steps."""

    def function(c: Any, x: Tensor, h: Tensor) -> list[Tensor]:
        return [functional.embedding(x[:, 0], c.table) + h * (c.w / c.w.norm())] * 2

    cell = Step(function, [H], table=random(9, H).float(), w=random(H).float())
    program = program_of(cell, torch.zeros(1, 1, 1, dtype=torch.long))
    assert sorted(kinds(program.loop)) == ["add", "mul"]
    assert [(node.shape[1:], value.width) for node, value in zip(
        program.beforehand, program.loop.inputs, strict=True
    )] == [((H,), H)]  # fmt: skip
    assert [node.shape for node in program.statics] == [(H,)]


class Saving(NamedTuple):
    """A step, and the numbers that it keeps for its gradient.

    Attributes:
        function: the step, (cell, x, h) -> (output, h').
        saved: how many.
    """

    function: Callable[..., Any]
    saved: int


SAVED = {
    # tanh and sigmoid: the result, which is the state after the step; the state before it is one step away.
    "a result that is the output": Saving(lambda c, x, h: [torch.tanh(h * c.w + x)] * 2, 0),
    # The output is another one, so that the state has to be kept.
    "a state that is no output": Saving(lambda c, x, h: (c.w * h, torch.tanh(h * c.w + x)), H),
    # The sine's derivative is the cosine of its operand, which the input and the state before give again.
    "what follows from the input": Saving(lambda c, x, h: [torch.sin(h * c.w + x)] * 2, 0),
    # A sum of all has a gradient of ones: nothing.
    "a sum": Saving(lambda c, x, h: [x + h] * 2, 0),
    # A product is not computed again: its H results are kept, and nothing of what is made from them.
    "behind a product": Saving(lambda c, x, h: [torch.sin(h @ c.W).cos().sin() + x] * 2, H),
    # One number of each row stands between H and H.
    "a narrow place": Saving(lambda c, x, h: [x * torch.exp(torch.sin(h @ c.v))[:, None]] * 2, 1),
}


@pytest.mark.parametrize("name", SAVED)
def test_what_is_saved(name: str):
    function, saved = SAVED[name]
    cell = Step(function, [H], w=random(H), W=random(H, H), v=random(H))
    assert saved_by(program_of(cell, torch.zeros(1, 1, H).double())) == saved
