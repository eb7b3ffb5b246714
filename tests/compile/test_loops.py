"""What a program becomes: its instructions, what is saved between the loops, and the stages of both."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from steps import Step, program_of, random

import cello
from cello.compile import Loops, Program, Wanted, text
from cello.compile.instructions import Assemble, Pointwise, Product
from cello.compile.loops import Streams
from cello.compile.stages import make_stages

F, H, P = 3, 4, 2


class Expected(NamedTuple):
    """What is known of a layer's loops from its equations.

    Attributes:
        saved: numbers of each row that the backward loop can neither read elsewhere nor compute again.
        forward: the terms of the products ahead of the forward loop, and of those of each stage in it.
        backward: the terms of the products in each stage of the backward loop, and the products behind it.
        outers: how many gradients of matrices are gathered.
    """

    saved: int
    forward: tuple[int, list[int]]
    backward: tuple[list[int], int]
    outers: int


LAYERS = {
    # Of tanh(...) the result is enough, and that is the output.
    "RNN": (lambda: cello.nn.RNN(F, H), Expected(0, (1, [0, 1]), ([0, 1], 1), 2)),
    # Four gates and the cell state.
    "LSTM": (lambda: cello.nn.LSTM(F, H), Expected(5 * H, (1, [0, 1]), ([0, 1], 1), 2)),
    # The gradient of the projection comes before that of the gates.
    "projected": (
        lambda: cello.nn.LSTM(F, H, proj_size=P),
        Expected(5 * H, (1, [0, 1, 1]), ([0, 1, 1], 1), 3),
    ),
    # Two gates, the candidate, and what the reset gate was multiplied with.
    "GRU": (lambda: cello.nn.GRU(F, H), Expected(4 * H, (1, [0, 1]), ([0, 1], 1), 2)),
}


def loops_of(program: Program, keep_states: bool = False) -> Loops:
    everything = Wanted((True,) * len(program.beforehand), (True,) * len(program.statics))
    return program.loops(keep_states, everything)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str):
    make, expected = LAYERS[name]
    (cell,) = make()._cells()[0]
    loops = loops_of(program_of(cell, torch.zeros(1, 1, F)))
    forward, backward = make_stages(loops.forward), make_stages(loops.backward)
    assert loops.saved_width == expected.saved
    assert loops.reads_results == (True,)  # the state before the step is an output
    ahead = sum(len(stage.ahead) for stage in forward.steps)
    assert (ahead, [len(stage.addends) for stage in forward.steps]) == expected.forward
    assert forward.behind == []
    during = [len(stage.addends) for stage in backward.steps]
    assert (during, len(backward.behind)) == expected.backward
    assert [len(stage.ahead) for stage in backward.steps] == [0] * len(during)
    assert len(loops.backward.loop.outers) == expected.outers
    assert forward.late == set()
    rows = {value for outer in loops.backward.loop.outers for value in (outer.row, outer.gradient)}
    assert rows <= backward.late


def test_a_gate_has_its_gradient_written_into_that_of_the_product():
    (cell,) = cello.nn.LSTM(F, H)._cells()[0]
    body = loops_of(program_of(cell, torch.zeros(1, 1, F))).backward.loop.body
    (whole,) = [i for i in body if isinstance(i, Assemble)]
    made = {i.out for i in body if isinstance(i, Pointwise)}
    assert [piece.offset for piece in sorted(whole.pieces, key=lambda p: p.offset)] == [0, 4, 8, 12]
    assert all(piece.source.value in made for piece in whole.pieces)
    assert {i.out.width for i in body if isinstance(i, Product)} == {F, H}


def test_sums_of_products_and_vectors_are_one_product():
    def function(c: Any, x: Any, h: Any) -> Any:
        return [torch.tanh(torch.cat([x, h], -1) @ c.w + c.b + h @ c.u + c.d)] * 2

    held = {"w": random(7, 5), "u": random(5, 5), "b": random(5), "d": random(5)}
    loop = program_of(Step(function, [5], **held), torch.zeros(1, 1, 2).double()).loop
    (product,) = [i for i in loop.body if isinstance(i, Product)]
    assert len(loop.body) == 2
    assert sorted((t.row.kind.value, t.K) for t in product.terms) == [
        ("input", 2), ("state", 5), ("state", 5),
    ]  # fmt: skip
    assert len(product.biases) == 2


def test_what_the_backward_loop_computes_again_is_its_own():
    """A multiply-add replaces a product and a sum in both loops, and leaves nothing unread."""
    body = loops_of(
        program_of(
            Step(lambda c, x, h: [torch.sin(h * c.w + x).cos()] * 2, [3], w=random(3)),
            torch.zeros(1, 1, 3).double(),
        )
    )
    for way in (body.forward, body.backward):
        read = {value for i in way.loop.body for value in i.reads()}
        read |= {*way.loop.new_states, *(write.value for write in way.writes)}
        read |= {row_sum.source.value for row_sum in way.loop.row_sums}
        assert [i for i in way.loop.body if i.out not in read] == []
        assert [i.op for i in way.loop.body].count("muladd") == 1


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_streams(name: str, keep: bool):
    (cell,) = LAYERS[name][0]()._cells()[0]
    loops = loops_of(program_of(cell, torch.zeros(1, 1, F)), keep)
    sizes = [P if name == "projected" else H]
    states = [*sizes, *([H] if name in ("LSTM", "projected") else [])]
    results = (*sizes, *(states if keep else []))
    saved = loops.saved_width
    assert loops.forward.streams.in_order() == (F, *results, saved)
    assert loops.backward.streams.in_order() == (*results, F, *results, saved, F)
    assert loops.backward.streams.numbers() == Streams(
        seeds=tuple(range(len(results))),
        inputs=(len(results),),
        results=tuple(range(len(results) + 1, 2 * len(results) + 1)),
        saved=(2 * len(results) + 1,),
        gradients=(2 * len(results) + 2,),
    )


def test_without_gradients_nothing_is_saved():
    (cell,) = cello.nn.LSTM(F, H)._cells()[0]
    program = program_of(cell, torch.zeros(1, 1, F))
    loops = program.loops(False, None)
    assert (loops.backward, loops.saved_width, loops.reads_results) == (None, 0, (False,))
    assert loops.wanted == Wanted((False,), (False,) * 4)
    assert program.loops(False, None) is loops
    assert text.write(text.read(text.write(loops))) == text.write(loops)
