"""The table of shapes, held against torch.nn, against real results and against the equations."""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_sequence

import cello
from cello.inspect.shapes import Shape, Shapes

T, B, F, H = 5, 3, 7, 4

LAYERS = [
    {"kind": kind, "num_layers": layers, "bidirectional": both, "bias": bias}
    for kind, layers, both, bias in itertools.product(
        ("RNN", "LSTM", "GRU"), (1, 2), (False, True), (False, True)
    )
] + [{"kind": "LSTM", "num_layers": 2, "bidirectional": both, "proj_size": 2} for both in (0, 1)]


def value(letters: tuple[str, ...], shapes: Shapes) -> tuple[int, ...]:
    """Letters as numbers."""
    return tuple(eval(part, {}, dict(shapes.letters)) for part in letters)


def check(shapes: Shapes) -> None:
    """Every shape in letters is its shape in numbers."""
    told = [*shapes.inputs, *shapes.outputs, *(w for w in shapes.weights if w.letters)]
    for shape in told:
        assert value(shape.letters, shapes) == shape.numbers, shape
    if len(shapes.places) == shapes.letters["L"] * shapes.letters["D"]:
        assert sum(sum(place.counts.values()) for place in shapes.places) == shapes.total


def named(shapes: tuple[Shape, ...]) -> dict[str, tuple[int, ...]]:
    return {shape.name: shape.numbers for shape in shapes}


@pytest.mark.parametrize("options", LAYERS, ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
def test_shapes_are_those_of_torch(options, batch_first):
    options = {key: bool(v) if key == "bidirectional" else v for key, v in options.items()}
    kind = options.pop("kind")
    stock = getattr(nn, kind)(F, H, batch_first=batch_first, **options)
    ours = getattr(cello.nn, kind)(F, H, batch_first=batch_first, **options)
    x = torch.randn(B, T, F) if batch_first else torch.randn(T, B, F)
    output, state = stock(x)
    h_n, *c_n = state if isinstance(state, tuple) else (state,)
    shapes = cello.explain(ours, x).shapes
    check(shapes)
    assert named(shapes.weights) == {k: tuple(p.shape) for k, p in stock.named_parameters()}
    states = {"h": h_n, "c": c_n[0]} if c_n else {"h": h_n}
    assert named(shapes.outputs) == {
        "output": tuple(output.shape), **{f"{k}_n": tuple(v.shape) for k, v in states.items()}
    }  # fmt: skip
    assert named(shapes.inputs) == {
        "input": tuple(x.shape), **{f"{k}_0": tuple(v.shape) for k, v in states.items()}
    }  # fmt: skip
    assert shapes.total == sum(p.numel() for p in stock.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bidirectional": True},
        {"num_layers": 2, "bidirectional": True, "merge": "none"},
        {"num_layers": 2, "bidirectional": True, "merge": "sum"},
        {"reverse": True},
        {"batch_first": True, "bidirectional": True},
        {"proj_size": 2, "bidirectional": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["batch", "lengths", "one"])
def test_where_the_final_state_is_in_the_output(options, form):
    layer = cello.nn.LSTM(F, H, **options)
    x = torch.randn(T, F) if form == "one" else torch.randn(B, T, F)
    if form != "one" and not layer.batch_first:
        x = x.transpose(0, 1)
    lengths = [2, 5, 1] if form == "lengths" else None
    output, (h_n, _) = layer(x, lengths=lengths)
    shapes = cello.explain(layer, x, lengths=lengths).shapes
    check(shapes)
    names = {"output": output, "lengths": lengths, **shapes.letters}
    found = [place for place in shapes.places if place.output]
    expected = 0 if layer.merge == "sum" else layer.num_directions
    assert [place.layer for place in found] == [layer.num_layers - 1] * expected
    for place in found:
        there = eval(place.output, {"h_n": h_n, "range": range, **names})
        torch.testing.assert_close(there, eval(f"h_n{place.index}", {"h_n": h_n}))


def test_no_place_in_the_output_where_a_sequence_has_no_step():
    shapes = cello.explain(cello.nn.GRU(F, H), torch.randn(T, B, F), lengths=[0, 2, 3]).shapes
    assert [place.output for place in shapes.places] == [""]


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", "ifgo"), ("GRU", "rzn"), ("RNN", "h")])
def test_the_rows_of_a_gate_move_that_gate(kind, gates):
    """A change in the rows that the table gives a gate changes this gate and no other one."""
    layer = getattr(cello.nn, kind)(F, H)
    x = torch.randn(1, B, F)
    told = cello.explain(layer, x).shapes.gates
    assert "".join(gate.name for gate in told) == gates
    before = cello.record(layer, x)
    for gate in told:
        first, last = (eval(end, {"H": H}) for end in gate.rows.split(":"))
        with torch.no_grad():
            layer.bias_ih_l0[first:last] += 0.5
        after = cello.record(layer, x)
        moved = [name for name in gates if not torch.equal(before[name], after[name])]
        with torch.no_grad():
            layer.bias_ih_l0[first:last] -= 0.5
        assert moved == ([gate.name] if gate.name != "r" else ["r", "n"])  # n depends on r


def test_functions_of_gates():
    layer = cello.nn.LSTM(F, H, gate_activation="hardsigmoid", activation="softsign")
    told = cello.explain(layer, torch.randn(T, B, F)).shapes.gates
    assert [gate.function for gate in told] == [
        "hardsigmoid", "hardsigmoid", "softsign", "hardsigmoid",
    ]  # fmt: skip


def test_widths_that_differ_merge_and_learned_states():
    layer = cello.nn.LSTM(
        F, (6, 5), num_layers=2, bidirectional=True, merge="sum", learn_initial_state=True
    )
    shapes = cello.explain(layer, torch.randn(T, B, F), return_states="all").shapes
    check(shapes)
    letters = {w.name: w.letters for w in shapes.weights}
    assert letters["weight_ih_l1"] == ("G*H1", "H0")
    assert letters["initial_c_l1_reverse"] == ("H1",)
    assert named(shapes.outputs)["h_n[1]"] == (2, B, 5)
    assert {s.name for s in shapes.outputs} >= {"states['c_l0']", "states['h_l1_reverse']"}
    assert shapes.places[3].index == "[1][1]"
    assert shapes.places[3].counts["initial states"] == 10


def test_states_of_all_steps_with_a_projection():
    layer = cello.nn.LSTM(F, H, proj_size=2, bidirectional=True)
    shapes = cello.explain(layer, torch.randn(T, B, F), return_states=True).shapes
    check(shapes)
    assert named(shapes.outputs)["states['h']"] == (T, B, 4)
    assert named(shapes.outputs)["states['c']"] == (T, B, 8)
    assert all(place.counts["projection"] == 2 * H for place in shapes.places)


def test_packed():
    x = pack_sequence([torch.randn(5, F), torch.randn(2, F)])
    shapes = cello.explain(cello.nn.LSTM(F, H, bidirectional=True), x).shapes
    check(shapes)
    assert shapes.letters["N"] == 7
    assert named(shapes.inputs)["input"] == (7, F)
    assert named(shapes.outputs)["output"] == (7, 2 * H)
    assert [place.after for place in shapes.places] == [
        "after the sequence's own last step",
        "after step 0",
    ]


class Pair(nn.Module):
    """A cell with an output of its own and a state of two widths."""

    def __init__(self, features):
        super().__init__()
        self.mix = nn.Linear(features + 4, 4)
        self.out = nn.Linear(4, 9)
        self.register_buffer("rate", torch.ones(()))

    def forward(self, x, state):
        h, m = state
        h = torch.tanh(self.mix(torch.cat([x, h], -1)))
        return self.out(h), (h, m + self.rate)


def test_a_foreign_cell():
    layer = cello.Recurrent(Pair, F, num_layers=2, bidirectional=True, state_size=(4, 2))
    shapes = cello.explain(layer, torch.randn(T, B, F)).shapes
    check(shapes)
    assert named(shapes.outputs) == {"output": (T, B, 18), "h_n": (4, B, 4), "c_n": (4, B, 2)}
    assert shapes.places[2].counts == {"mix": (18 + 4) * 4 + 4, "out": 45}
    assert named(shapes.weights)["cells.l1_reverse.mix.weight"] == (4, 22)
    assert [w.meaning for w in shapes.weights if w.name.endswith("rate")] == [
        "buffer, not trained"
    ] * 4
    assert shapes.gates == ()
    assert [place.output for place in shapes.places] == [""] * 4  # the output is no state


def test_who_makes_the_initial_state():
    class Warm(cello.Cell):
        state_sizes = {"h": F}  # noqa: RUF012  # as in the documentation

        def initial_state(self, batch_size, *, dtype, device):
            return (torch.ones(batch_size, F, dtype=dtype, device=device),)

        def forward(self, x, state):
            return x, (state[0] + x,)

    layers = {
        "zeros": cello.nn.GRU(F, H),
        "parameters initial_h_l*": cello.nn.GRU(F, H, learn_initial_state=True),
        "what the cell makes": cello.Recurrent(Warm()),
    }
    for start, layer in layers.items():
        (_, h_0) = cello.explain(layer, torch.randn(T, B, F)).shapes.inputs
        assert h_0.meaning == f"h before the first step; {start} unless hx is given"


def test_the_letters_of_torchs_cell_in_a_recurrent_layer():
    shapes = cello.explain(cello.Recurrent(nn.GRUCell(F, H)), torch.randn(T, B, F)).shapes
    check(shapes)
    assert shapes.weights[0].letters == ("G*H", "F")
    assert [gate.name for gate in shapes.gates] == ["r", "z", "n"]
    assert shapes.places[0].counts == {"input weights": 84, "recurrent weights": 48, "biases": 24}


def test_weights_that_are_computed_count_by_what_is_trained():
    normed = cello.nn.RNN(F, H)
    parametrizations.weight_norm(normed, "weight_hh_l0")
    pruned = cello.nn.RNN(F, H)
    prune.l1_unstructured(pruned, "weight_hh_l0", amount=3)
    for layer, count in ((normed, H * H + H), (pruned, H * H)):
        shapes = cello.explain(layer, torch.randn(T, B, F)).shapes
        check(shapes)
        assert shapes.places[0].counts["recurrent weights"] == count
        assert named(shapes.weights)["weight_hh_l0"] == (H, H)


def test_what_a_subclass_adds_is_of_the_layer_itself():
    class Scaled(cello.nn.LSTM):
        def __init__(self, *args):
            super().__init__(*args)
            self.initial_scale = nn.Parameter(torch.ones(7))
            self.register_buffer("mean", torch.zeros(2))

    class Own(cello.Recurrent):
        def __init__(self, cell):
            super().__init__(cell)
            self.scale = nn.Parameter(torch.ones(7))

    for layer, added in (
        (Scaled(F, H), {"initial_scale": (7,), "mean": (2,)}),
        (Own(nn.GRUCell(F, H)), {"scale": (7,)}),
    ):
        shapes = cello.explain(layer, torch.randn(T, B, F)).shapes
        tensors = dict([*layer.named_parameters(), *layer.named_buffers()])
        assert named(shapes.weights) == {name: tuple(t.shape) for name, t in tensors.items()}
        assert added.items() <= named(shapes.weights).items()
        cells = sum(sum(place.counts.values()) for place in shapes.places)
        assert cells + 7 == shapes.total == sum(p.numel() for p in layer.parameters())
        assert "    and 7 of the layer itself" in str(shapes).splitlines()
    pruned = cello.nn.RNN(F, H)
    prune.l1_unstructured(pruned, "weight_hh_l0", amount=3)
    shapes = cello.explain(pruned, torch.randn(T, B, F)).shapes
    assert named(shapes.weights)["weight_hh_l0_mask"] == (H, H)


class Long(NamedTuple):
    h: torch.Tensor
    c_left: torch.Tensor
    x_l1: torch.Tensor


@pytest.mark.parametrize("which", ["last", "all"])
def test_states_whose_names_have_an_l(which):
    class Three(nn.Module):
        def forward(self, x, state):
            return x, Long(state.h + x, state.c_left + x[:, :3], state.x_l1)

    layer = cello.Recurrent(lambda f: Three(), F, num_layers=2, state_size=Long(F, 3, 2))
    shapes = cello.explain(layer, torch.randn(T, B, F), return_states=which).shapes
    check(shapes)
    told = {shape.name: shape.meaning for shape in shapes.outputs if "states[" in shape.name}
    ends = ("",) if which == "last" else ("_l0", "_l1")
    assert told == {
        f"states['{name}{end}']": f"{name} after every step"
        for end in ends
        for name in Long._fields
    }


def test_both_directions_of_an_image_lie_in_its_channels():
    class Decay(nn.Module):
        def forward(self, x, h):
            return x + 0.5 * h

    size = (3, 2, 2)
    layer = cello.Recurrent(
        lambda f: Decay(), size, bidirectional=True, state_size=torch.Size(size)
    )
    x = torch.randn(T, B, *size)
    output = layer(x)[0]
    told = cello.explain(layer, x).shapes.outputs[0]
    forward, backward = re.findall(r"\[[^]]*\]", told.meaning)
    for indices, reverse in ((forward, False), (backward, True)):
        one = cello.Recurrent(Decay(), state_size=torch.Size(size), reverse=reverse)
        torch.testing.assert_close(eval(f"output{indices}", {"output": output}), one(x)[0])


def test_frozen_parameters():
    layer = cello.nn.GRU(F, H)
    layer.weight_ih_l0.requires_grad_(False)
    explanation = cello.explain(layer, torch.randn(T, B, F))
    assert explanation.shapes.frozen == 3 * H * F
    assert "    84 of them are frozen" in str(explanation)


def test_many_parts_stand_below_each_other():
    class Gates(nn.Module):
        def __init__(self, features):
            super().__init__()
            for name in "abcdefg":
                setattr(self, name, nn.Linear(features, H, bias=False))

        def forward(self, x, h):
            return h + self.a(x)

    layer = cello.Recurrent(Gates, F, bidirectional=True, state_size=H)
    lines = str(cello.explain(layer, torch.randn(T, B, F)).shapes).splitlines()
    start = lines.index("  parameters") + 1
    assert lines[start].split() == ["layer", "0", "forward", "layer", "0", "backward", "all"]
    assert [line.split() for line in lines[start + 1 :]] == [
        *([name, "28", "28", "56"] for name in "abcdefg"),
        ["total", "196", "196", "392"],
    ]


def test_no_parameters():
    layer = cello.Recurrent(lambda x, h: x + h, state_size=F)
    assert str(cello.explain(layer, torch.randn(T, B, F)).shapes).endswith("  parameters\n    none")


def test_the_text():
    text = str(cello.explain(cello.nn.LSTM(28, 4, num_layers=2), torch.zeros(3, 10, 28)))
    for line in (
        "LSTM(28, 4, num_layers=2)",
        "  T=3 time, B=10 batch, F=28 features, H=4 hidden, G=4 gates, L=2 layers, D=1 directions",
        "    weight_ih_l0  (G*H, F) = (16, 28)",
        "    weight_ih_l1  (G*H, D*H) = (16, 4)",
        "    bias_hh_l1    (G*H,) = (16,)",
        "    f  forget gate  sigmoid  rows H:2*H = 4:8",
        "    [1]  layer 1 forward  after step T-1  = output[-1, :]",
        "    all                        512                128      64    704",
    ):
        assert line in text.splitlines()
    assert max(map(len, text.splitlines())) <= 120
