"""Any cell as a layer, against a Python loop over the untouched cell."""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from cases import assert_same, exact_derivatives
from foreign_cells import CELLS, Foreign, LSTMState
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import cello
from cello.foreign.adapt import FunctionCell
from cello.foreign.structure import Structure

F, H, T, B = 5, 6, 4, 3
LENGTHS = [2, 4, 1]


def make(name: str, *, train: bool = False) -> Any:
    """The cell in float64 with weights of moderate size, the same every time."""
    torch.manual_seed(0)
    cell = CELLS[name].make(F, H)
    return cell.double().train(train) if isinstance(cell, nn.Module) else cell


def layer_of(name: str, cell: Any, **options: Any) -> cello.Recurrent:
    foreign = CELLS[name]
    if foreign.needs_size:
        options["state_size"] = foreign.state(F, H)
    return cello.Recurrent(cell, **options)


def structure_of(foreign: Foreign) -> tuple[Structure, list[tuple[int, ...]]]:
    sizes = foreign.state(F, H)
    structure = Structure.of(sizes, is_leaf=lambda s: isinstance(s, int | torch.Size))
    return structure, [(s,) if isinstance(s, int) else tuple(s) for s in structure.flatten(sizes)]


def start(foreign: Foreign, batch_size: int = B, rows: int = 1) -> list[Tensor]:
    """A state to start from, (L*D, B, ...) for each part; never negative, for counters."""
    torch.manual_seed(1)
    _, shapes = structure_of(foreign)
    return [torch.rand(rows, batch_size, *s, dtype=torch.float64).requires_grad_() for s in shapes]


def loop(foreign: Foreign, cell: Any, xs: Any, state: Any) -> tuple[Tensor, Any]:
    """The loop that a user would write."""
    outputs = []
    for x in xs:
        # A step without a state is taken in torch, whatever runs the others.
        with nullcontext() if state is None else exact_derivatives():
            returned = cell(x) if state is None else cell(x, state)
        if foreign.returns_output:
            output, state = returned
        else:
            output, state = (returned if isinstance(returned, Tensor) else returned[0]), returned
        outputs.append(output)
    return torch.stack(outputs), state


def gradients(results: list[Tensor], variables: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(2)
    results = [result for result in results if result.requires_grad]
    seeds = [torch.randn(result.shape, dtype=result.dtype) for result in results]
    found = torch.autograd.grad(results, variables, seeds, allow_unused=True)
    return [torch.zeros_like(v) if g is None else g for v, g in zip(variables, found, strict=True)]


def parameters(module: Any) -> list[Tensor]:
    return list(module.parameters()) if isinstance(module, nn.Module) else []


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("has_state", [True, False], ids=["state", "no-state"])
def test_a_layer_is_the_loop_over_its_cell(name: str, has_state: bool):
    foreign, cell = CELLS[name], make(name)
    structure, shapes = structure_of(foreign)
    layer = layer_of(name, cell)
    x = torch.randn(T, B, F, dtype=torch.float64, requires_grad=True)
    parts = start(foreign) if has_state else []
    hx = structure.unflatten(parts) if has_state else None

    output, state = layer(x, hx)

    mine: Any = structure.unflatten([p[0] for p in parts]) if has_state else None
    if mine is None and name not in ("LearnedStart", "StackedInsideOptional", "HardLSTM"):
        mine = structure.unflatten([torch.zeros(B, *s, dtype=torch.float64) for s in shapes])
    expected, end = loop(foreign, cell, x, mine)
    ends = [part.unsqueeze(0) for part in structure.flatten(end)]
    assert_same([output, *structure.flatten(state)], [expected, *ends])
    assert type(state) is type(end)  # the caller gets a named tuple where the cell has one
    variables = [x, *parts, *parameters(cell)]
    assert_same(
        gradients([output, *structure.flatten(state)], variables),
        gradients([expected, *ends], variables),
    )


@pytest.mark.parametrize("name", CELLS)
def test_a_loss_of_one_result_has_the_gradients_of_the_loop(name: str):
    """Those of weights that only lead to other results are ``None``, not zeros, as in the loop."""
    foreign, cell = CELLS[name], make(name)
    structure, _ = structure_of(foreign)
    x = torch.randn(T, B, F, dtype=torch.float64, requires_grad=True)
    parts = start(foreign)
    output, state = layer_of(name, cell)(x, structure.unflatten(parts))
    expected, end = loop(foreign, cell, x, structure.unflatten([p[0] for p in parts]))
    found = [output, *structure.flatten(state)]
    wanted = [expected, *(part.unsqueeze(0) for part in structure.flatten(end))]
    variables = [x, *parameters(cell)]
    for mine, own in zip(found, wanted, strict=True):
        assert mine.requires_grad == own.requires_grad
        if not own.requires_grad:
            continue
        seed = torch.randn(own.shape, dtype=own.dtype)
        of_own, of_mine = (
            torch.autograd.grad(result, variables, seed, retain_graph=True, allow_unused=True)
            for result in (own, mine)
        )
        for variable, a, b in zip(variables, of_own, of_mine, strict=True):
            assert (a is None) == (b is None) or variable is x  # whose gradient may be zeros
            if b is not None:
                assert_same([b], [torch.zeros_like(b) if a is None else a])


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("form", ["lengths", "packed"])
def test_sequences_of_different_length_run_as_if_alone(name: str, form: str):
    foreign, cell = CELLS[name], make(name)
    structure, _ = structure_of(foreign)
    layer = layer_of(name, cell)
    x = torch.randn(T, B, F, dtype=torch.float64)
    parts = start(foreign)
    hx = structure.unflatten(parts)
    if form == "lengths":
        output, state = layer(x, hx, lengths=LENGTHS)
    else:
        packed, state = layer(pack_padded_sequence(x, LENGTHS, enforce_sorted=False), hx)
        output, _ = pad_packed_sequence(packed)

    expected, ends = torch.zeros_like(output), []
    for b, length in enumerate(LENGTHS):
        mine = structure.unflatten([part[0, b : b + 1] for part in parts])
        alone, end = loop(foreign, cell, x[:length, b : b + 1], mine)
        expected[:length, b] = alone[:, 0]
        ends.append(structure.flatten(end))
    final = [torch.cat(column)[None] for column in zip(*ends, strict=True)]
    assert_same([output, *structure.flatten(state)], [expected, *final])
    variables = [*parts, *parameters(cell)]
    assert_same(
        gradients([output, *structure.flatten(state)], variables),
        gradients([expected, *final], variables),
    )


@pytest.mark.parametrize("name", [n for n in CELLS if "Function" not in n])
def test_a_factory_gives_two_layers_of_two_directions(name: str):
    foreign = CELLS[name]
    structure, _ = structure_of(foreign)

    def factory(features: int) -> nn.Module:
        return foreign.make(features, H).double()

    torch.manual_seed(0)
    needed = {"state_size": foreign.state(F, H)} if foreign.needs_size else {}
    if structure_depends_on_input(foreign):
        pytest.skip("the width of its state is that of its input, which differs between layers")
    layer = cello.Recurrent(factory, F, num_layers=2, bidirectional=True, **needed).eval()
    x = torch.randn(T, B, F, dtype=torch.float64)
    parts = start(foreign, rows=4)

    output, state, states = layer(x, structure.unflatten(parts), return_states="all")

    rows, ends = x, []
    for number in range(2):
        both = []
        for direction, suffix in enumerate(("", "_reverse")):
            cell = layer.cells[f"l{number}{suffix}"]
            mine = structure.unflatten([part[2 * number + direction] for part in parts])
            alone, end = loop(foreign, cell, rows.flip(0) if direction else rows, mine)
            both.append(alone.flip(0) if direction else alone)
            ends.append(structure.flatten(end))
        rows = torch.cat(both, -1)
    final = [torch.stack(column) for column in zip(*ends, strict=True)]
    assert_same([output, *structure.flatten(state)], [rows, *final])
    last = list(states)[-1]  # the reverse direction of layer 1 ends at step 0
    assert_same(states[last][0], structure.flatten(state)[-1][-1])
    variables = [*parts, *layer.parameters()]
    assert_same(
        gradients([output, *structure.flatten(state)], variables),
        gradients([rows, *final], variables),
    )


def structure_depends_on_input(foreign: Foreign) -> bool:
    return foreign.state(F, H) != foreign.state(F + 1, H)


@pytest.mark.parametrize("name", CELLS)
def test_steps_and_states_of_all_steps(name: str):
    cell = make(name)
    layer = layer_of(name, cell)
    structure, _ = structure_of(CELLS[name])
    x = torch.randn(T, B, F, dtype=torch.float64)
    output, end, states = layer(x, return_states=True)

    state, outputs, history = None, [], []
    for row in x:
        out, state = layer.step(row, state)
        outputs.append(out)
        history.append(structure.flatten(state))
    assert_same(torch.stack(outputs), output)
    assert_same(list(structure.flatten(state)), list(structure.flatten(end)))
    assert_same([torch.cat(column) for column in zip(*history, strict=True)], list(states.values()))


@pytest.mark.parametrize("name", CELLS)
def test_the_cell_is_untouched(name: str):
    cell = make(name, train=True)
    layer = layer_of(name, cell)
    assert layer.cells["l0"] is cell or "Function" in name
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    hidden = [dict(vars(module)) for module in layer.cells.modules()]
    with torch.no_grad():
        layer.eval()(torch.randn(T, B, F, dtype=torch.float64))
        layer.train()
    assert_same(dict(layer.state_dict()).values(), before.values())
    assert [dict(vars(module)) for module in layer.cells.modules()] == hidden
    if isinstance(cell, nn.Module):
        assert {f"cells.l0.{key}" for key in cell.state_dict()} == set(before)


@pytest.mark.parametrize(
    "name", [n for n in CELLS if n not in ("LeakyFunction", "MomentumFunction")]
)
def test_a_layer_survives_a_copy_a_pickle_and_a_state_dict(name: str):
    layer = layer_of(name, make(name)).eval()
    x = torch.randn(T, B, F, dtype=torch.float64)
    expected, _ = layer(x)
    copies = [copy.deepcopy(layer)]
    if name != "NormalizedWeights":  # torch refuses to pickle a parametrized module
        copies.append(pickle.loads(pickle.dumps(layer)))
    torch.manual_seed(7)
    fresh = layer_of(name, CELLS[name].make(F, H).double()).eval()
    fresh.load_state_dict(layer.state_dict())
    for other in (*copies, fresh):
        torch.testing.assert_close(other(x)[0], expected, rtol=0, atol=0)
    for parameter in layer.parameters():
        parameter.data.mul_(1.5)
    torch.testing.assert_close(copies[0](x)[0], expected, rtol=0, atol=0)


def test_functions_survive_a_copy():
    layer = layer_of("LeakyFunction", make("LeakyFunction"))
    x = torch.randn(T, B, F)
    assert_same(copy.deepcopy(layer)(x)[0], layer(x)[0])


# what the layer adds


def test_a_batch_norm_counts_the_steps_of_training_and_nothing_else():
    cell = make("LiGRU", train=True)
    layer = cello.Recurrent(cell)
    x = torch.randn(T, B, F, dtype=torch.float64)
    layer(x)
    assert int(cell.bn.num_batches_tracked) == T
    layer.eval()(x)
    assert int(cell.bn.num_batches_tracked) == T


def test_dropout_lies_between_layers_only_and_in_training_only():
    layer = cello.Recurrent(lambda f: nn.GRUCell(f, 50), F, num_layers=2, dropout=0.5)
    x = torch.randn(T, B, F)
    torch.manual_seed(3)
    dropped, _ = layer(x)
    assert int((dropped == 0).sum()) == 0
    torch.manual_seed(3)
    between = torch.nn.functional.dropout(
        loop(CELLS["TorchGRU"], layer.cells["l0"], x, None)[0].flatten(0, 1), 0.5
    ).view(T, B, 50)
    expected, _ = loop(CELLS["TorchGRU"], layer.cells["l1"], between, None)
    torch.testing.assert_close(dropped, expected)
    layer.eval()
    torch.testing.assert_close(layer(x)[0], layer(x)[0], rtol=0, atol=0)
    layer.dropout = 1.0
    assert not torch.equal(layer.train()(x)[0], layer.eval()(x)[0])


def test_dropout_inside_a_cell_draws_anew_at_each_step():
    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x, h):
            return self.drop(torch.ones_like(x)) + 0 * h

    layer = cello.Recurrent(Dropped())
    output, _ = layer(torch.zeros(2, 1, 64))
    assert not torch.equal(output[0], output[1])
    assert set(output.unique().tolist()) == {0.0, 2.0}
    assert_same(layer.eval()(torch.zeros(2, 1, 64))[0], torch.ones(2, 1, 64))


@pytest.mark.parametrize("said", ["nothing", "state_size", "first hx"])
def test_a_start_of_its_own_stays_whatever_was_said_about_the_state(said: str):
    cell = make("LearnedStart")
    layer = cello.Recurrent(cell, state_size=H if said == "state_size" else None)
    x = torch.randn(T, B, F, dtype=torch.float64)
    if said == "first hx":
        layer(x, torch.zeros(1, B, H, dtype=torch.float64))
    output, _ = layer(x)
    assert_same(output, loop(CELLS["LearnedStart"], cell, x, None)[0])
    output.sum().backward()
    assert float(cell.h0.grad.abs().sum()) > 0


class Start(cello.Cell):
    """A contract cell with a learned start; `kind` breaks it."""

    state_sizes = {"h": H}  # noqa: RUF012

    def __init__(self, kind: str = "good"):
        super().__init__()
        self.cell, self.h0, self.kind = nn.GRUCell(F, H), nn.Parameter(torch.ones(H)), kind

    def initial_state(self, batch_size, *, dtype, device):
        if self.kind == "bare":
            return self.h0.expand(batch_size, -1)
        if self.kind == "unexpanded":
            return (self.h0,)
        if self.kind == "two":
            return (self.h0.expand(batch_size, -1),) * 2
        return (self.h0.expand(batch_size, -1).to(dtype),)

    def forward(self, x, state):
        h = self.cell(x, state[0])
        return h, (h,)


def test_a_contract_cell_has_its_learned_start():
    cell = Start().double()
    x = torch.randn(T, B, F, dtype=torch.float64)
    output, (end,) = cello.Recurrent(cell)(x, lengths=[4, 0, 2])
    expected, _ = loop(CELLS["TorchGRU"], cell.cell, x, cell.h0.expand(B, -1))
    assert_same(output[:, 0], expected[:, 0])
    assert_same(end[0, 1], cell.h0)
    end[0, 1].sum().backward()
    assert_same(cell.h0.grad, torch.ones(H, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["bare", "unexpanded", "two"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_wrong_initial_state_is_named(kind: str, batch_size: int):
    with pytest.raises(cello.CellError, match="initial_state of Start must return a tuple of one"):
        cello.Recurrent(Start(kind))(torch.zeros(T, batch_size, F))


def test_sequences_of_length_zero_keep_a_zero_start_and_leave_buffers_alone():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.bn = nn.GRUCell(F, H), nn.BatchNorm1d(F)

        def forward(self, x, h=None):
            return self.cell(self.bn(x), h)

    cell = Normed()
    _, end = cello.Recurrent(cell)(torch.randn(2, B, F), lengths=[2, 0, 2])
    assert_same(end[0, 1], torch.zeros(H))
    assert int(cell.bn.num_batches_tracked) == 2


def test_a_start_that_is_not_zero_is_not_guessed_for_length_zero():
    layer = cello.Recurrent(make("LearnedStart"))
    x = torch.randn(T, B, F, dtype=torch.float64)
    with pytest.raises(cello.CellError, match="state of a sequence of length 0 is unknown"):
        layer(x, lengths=[4, 0, 2])
    _, end = layer(x, torch.ones(1, B, H, dtype=torch.float64), lengths=[4, 0, 2])
    assert_same(end[0, 1], torch.ones(H, dtype=torch.float64))


class ConvLSTM(nn.Module):
    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.conv = nn.Conv2d(channels + hidden, 4 * hidden, 3, padding=1)

    def forward(self, x, state):
        h, c = state
        i, f, g, o = self.conv(torch.cat([x, h], 1)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


@pytest.mark.parametrize("said", ["state_size", "hx"])
def test_a_convolutional_cell_over_images(said: str):
    cell = ConvLSTM(2, 3).double()
    x = torch.randn(T, B, 2, 4, 5, dtype=torch.float64)
    zeros = torch.zeros(1, B, 3, 4, 5, dtype=torch.float64)
    size = torch.Size([3, 4, 5])
    if said == "hx":
        output, (h, c) = cello.Recurrent(cell)(x, (zeros, zeros), lengths=LENGTHS)
    else:
        output, (h, c) = cello.Recurrent(cell, state_size=(size, size))(x, lengths=LENGTHS)
    for b, length in enumerate(LENGTHS):
        expected, (mine, memory) = loop(
            CELLS["TorchLSTM"], cell, x[:length, b : b + 1], (zeros[0, :1], zeros[0, :1])
        )
        assert_same(output[:length, b], expected[:, 0])
        assert_same((h[0, b], c[0, b]), (mine[0], memory[0]))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.cell = nn.Embedding(11, F), nn.GRUCell(F, H)

    def forward(self, word, h):
        return self.cell(self.embed(word[:, 0]), h)


def test_integer_input_for_an_embedding_inside(request):
    torch.set_default_dtype(torch.float64)
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    cell = Words()
    words = torch.randint(11, (T, B, 1))
    output, state = cello.Recurrent(cell)(words, lengths=LENGTHS)
    expected, _ = loop(CELLS["TorchGRU"], cell.cell, cell.embed(words[..., 0]), None)
    for b, length in enumerate(LENGTHS):
        assert_same(output[:length, b], expected[:length, b])
    assert state.dtype is torch.float64


class Clock(NamedTuple):
    h: Tensor
    tick: Tensor


class Ticking(nn.Module):
    """An integer counter that chooses a row of a table."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(F, H)
        self.register_buffer("phase", torch.linspace(0, 1, 3))

    def forward(self, x, state=None):
        if state is None:
            state = Clock(x.new_zeros(len(x), H), torch.zeros(len(x), 1, dtype=torch.long))
        h = self.cell(x * self.phase[state.tick.remainder(3)], state.h)
        return h, Clock(h, state.tick + 1)


@pytest.mark.parametrize("given", [False, True])
def test_an_integer_counter_in_the_state(given: bool):
    cell, x = Ticking(), torch.randn(T, B, F)
    hx = Clock(torch.zeros(1, B, H), torch.zeros(1, B, 1, dtype=torch.long)) if given else None
    output, state = cello.Recurrent(cell)(x, hx, lengths=LENGTHS)
    assert isinstance(state, Clock)
    assert state.tick.dtype is torch.long
    assert state.tick[0, :, 0].tolist() == LENGTHS
    scaled = x * cell.phase[torch.arange(T) % 3][:, None, None]
    expected, _ = loop(CELLS["TorchGRU"], cell.cell, scaled, None)
    torch.testing.assert_close(output[:, 1], expected[:, 1])


def test_names_come_from_a_named_tuple_or_from_a_dict():
    x = torch.randn(T, B, F)
    *_, states = cello.Recurrent(CELLS["NamedStateLSTM"].make(F, H))(x, return_states=True)
    assert list(states) == ["hidden", "memory"]
    named = cello.Recurrent(CELLS["MGU2"].make(F, H), state_size={"memory": H})
    with pytest.raises(cello.CellError):  # a dict of one part is a tuple of one
        named(x)
    layer = cello.Recurrent(CELLS["Janet"].make(F, H), state_size={"out": H, "mem": H})
    assert list(layer(x, return_states=True)[2]) == ["out", "mem"]


class Named(nn.Module):
    """A state in a dict, as world models have it."""

    def __init__(self, starts: bool):
        super().__init__()
        self.starts, self.cell, self.prior = starts, nn.GRUCell(F + 3, H), nn.Linear(H, 3)

    def forward(self, x, state=None):
        if state is None and self.starts:
            state = {"deter": x.new_zeros(len(x), H), "stoch": x.new_zeros(len(x), 3)}
        deter = self.cell(torch.cat([x, state["stoch"]], -1), state["deter"])
        stoch = torch.tanh(self.prior(deter))
        return torch.cat([deter, stoch], -1), {"stoch": stoch, "deter": deter}


@pytest.mark.parametrize("way", ["it makes its own", "sizes", "hx", "named hx"])
def test_a_state_in_a_dict(way: str):
    torch.manual_seed(0)
    cell, x = Named(way == "it makes its own"), torch.randn(T, B, F)
    sizes = {"deter": H, "stoch": 3} if way in ("sizes", "named hx") else None
    layer = cello.Recurrent(cell, state_size=sizes)
    start = {"deter": torch.zeros(1, B, H), "stoch": torch.zeros(1, B, 3)}
    hx = start if "hx" in way else None
    assert cello.explain(layer, x, hx).plans[0].engine == "native"
    output, final, states = layer(x, hx, return_states=True)
    assert final.keys() == {"deter", "stoch"}
    assert states.keys() == {"deter", "stoch"}
    state = {name: part[0] for name, part in start.items()}
    for t, row in enumerate(x):
        expected, state = cell(row, state)
        torch.testing.assert_close(output[t], expected)
        torch.testing.assert_close(states["stoch"][t], state["stoch"])
    torch.testing.assert_close({name: part[0] for name, part in final.items()}, state)
    # From there on, in streams, and with sequences of several lengths.
    more, _ = layer.step(x[0], final)
    torch.testing.assert_close(more, cell(x[0], state)[0])
    _, short = layer(x, hx, lengths=LENGTHS)
    last = LENGTHS[1] - 1
    torch.testing.assert_close(short["stoch"][0, 1], states["stoch"][last, 1])
    with pytest.raises(RuntimeError, match=r"hx: expected \{.*'deter': a tensor"):
        layer(x, (start["deter"], start["stoch"]))


def test_a_named_tuple_of_sizes_says_what_the_cell_reads():
    cell = CELLS["ReadsNamesLSTM"].make(F, H)
    _, state = cello.Recurrent(cell, state_size=LSTMState(H, H))(torch.randn(T, B, F))
    assert isinstance(state, LSTMState)


def test_layers_of_different_widths():
    widths = iter([4, 7])
    layer = cello.Recurrent(lambda f: nn.LSTMCell(f, next(widths)), F, num_layers=2)
    x = torch.randn(T, B, F)
    _, (h, c) = layer(x)
    assert [tuple(part.shape) for part in (*h, *c)] == [(1, B, 4), (1, B, 7)] * 2
    assert_same(layer(x, (h, c))[0], layer(x, ([*h], [*c]))[0])


@pytest.mark.parametrize("merge", ["concat", "sum", "mean", "mul", "none"])
def test_merges(merge: str):
    layer = cello.Recurrent(
        lambda f: CELLS["WideStateNarrowOutput"].make(f, H),
        F,
        num_layers=2,
        bidirectional=True,
        merge=merge,
    )
    x = torch.randn(T, B, F)
    output, _ = layer(x)
    first = [cello_direction(layer, x, f"l0{s}") for s in ("", "_reverse")]
    join = {
        "sum": lambda a, b: a + b,
        "mean": lambda a, b: (a + b) / 2,
        "mul": lambda a, b: a * b,
    }.get(merge, lambda a, b: torch.cat([a, b], -1))
    second = [cello_direction(layer, join(*first), f"l1{s}") for s in ("", "_reverse")]
    torch.testing.assert_close(output, tuple(second) if merge == "none" else join(*second))


def cello_direction(layer: cello.Recurrent, x: Tensor, name: str) -> Tensor:
    zeros = torch.zeros(B, H + 2)
    rows = x.flip(0) if name.endswith("reverse") else x
    output, _ = loop(CELLS["WideStateNarrowOutput"], layer.cells[name], rows, zeros)
    return output.flip(0) if name.endswith("reverse") else output


def test_unbatched_and_batch_first():
    cell = make("NestedLSTM")
    layer, turned = cello.Recurrent(cell), cello.Recurrent(cell, batch_first=True)
    x = torch.randn(T, B, F, dtype=torch.float64)
    output, state = layer(x)
    assert_same(turned(x.transpose(0, 1)), (output.transpose(0, 1), state))
    alone, end = layer(x[:, 1])
    assert_same((alone, *end), (output[:, 1], *(part[:, 1] for part in state)))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's tracer looks at it
def test_torch_compile_before_the_first_call():
    cell = CELLS["MinimalGatedUnit"].make(F, H)
    x = torch.randn(T, B, F)
    expected, _ = cello.Recurrent(cell)(x)
    compiled = torch.compile(cello.Recurrent(cell), backend="eager")
    torch.testing.assert_close(compiled(x)[0], expected)
    torch.testing.assert_close(compiled(x)[0], expected)


def test_functional_call_and_vmap_see_other_weights():
    cell = make("PeepholeLSTM")
    layer = cello.Recurrent(cell)
    x = torch.randn(T, B, F, dtype=torch.float64)
    expected, _ = layer(x)
    doubled = {k: torch.stack([v, 2 * v]).detach() for k, v in layer.named_parameters()}

    def run(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layer, weights, (x,))[0]

    both = torch.func.vmap(run)(doubled)
    assert_same(both[0], expected)
    for parameter in layer.parameters():
        parameter.data.mul_(2)
    assert_same(both[1], layer(x)[0])


# what is refused


def test_what_is_not_a_cell_is_refused_at_once():
    for wrong in (3, "LSTM", None):
        with pytest.raises(cello.CellError, match="must be a module or a function"):
            cello.Recurrent(wrong)
    for layer in (nn.LSTM(F, H), cello.nn.GRU(F, H), cello.Recurrent(nn.GRUCell(F, H))):
        with pytest.raises(
            cello.CellError, match="is a layer already, which runs over whole sequences"
        ):
            cello.Recurrent(layer)
    with pytest.raises(cello.CellError, match="is a layer"):
        cello.Recurrent(lambda f: nn.LSTM(f, H), F)
    with pytest.raises(cello.CellError, match=r"cell\(5\) must return a cell, it returned 7"):
        cello.Recurrent(lambda f: 7, F)


def test_one_cell_is_one_layer():
    cell = nn.GRUCell(F, H)
    for options in ({"num_layers": 2}, {"bidirectional": True}):
        with pytest.raises(ValueError, match="one cell is one layer"):
            cello.Recurrent(cell, **options)
    with pytest.raises(ValueError, match="the same module twice"):
        cello.Recurrent(lambda f: cell, F, bidirectional=True)
    with pytest.raises(ValueError, match="it needs input_size="):
        cello.Recurrent(lambda f: nn.GRUCell(f, H))
    with pytest.raises(ValueError, match="the class GRUCell; give an instance"):
        cello.Recurrent(nn.GRUCell)


def test_a_state_of_the_wrong_shape_is_the_callers_mistake_and_not_the_cells():
    layer = cello.Recurrent(nn.GRUCell(F, H))
    x = torch.zeros(T, B, F)
    with pytest.raises(RuntimeError, match=r"each part of hx must be \(L\*D, B, \.\.\.\)"):
        layer(x, torch.zeros(B, H))
    with pytest.raises(RuntimeError, match="hx: expected a tensor, or a tuple"):
        layer(x, {torch.zeros(1, B, H)})
    with pytest.raises(RuntimeError, match=r"Expected hx size \(1, 3, 6\), got {'h': a tensor"):
        layer(x, {"h": torch.zeros(1, B, H)})
    layer(x)
    with pytest.raises(RuntimeError, match=r"Expected hx size \(1, 3, 6\), got \(1, 3, 7\)"):
        layer(x, torch.zeros(1, B, H + 1))
    with pytest.raises(RuntimeError, match="input must have the features"):
        layer(torch.zeros(T, B, F + 1))


@pytest.mark.parametrize("module", [nn, cello.nn], ids=["torch", "cello"])
@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
def test_torchs_cells_run_as_layers_of_their_equations(module, name):
    def make():
        torch.manual_seed(0)
        return getattr(module, name)(4, 6).double()

    x = torch.randn(5, 3, 4, dtype=torch.float64)
    layer = cello.Recurrent(make())
    assert [plan.engine for plan in cello.explain(layer, x).plans] == ["native"]
    with cello.engine("vendor"):  # no cell but one of torch's equations runs there
        assert [plan.engine for plan in cello.explain(layer, x).plans] == ["vendor"]
    steps = []
    watched = make()
    watched.register_forward_hook(lambda *_: steps.append(1))
    watched = cello.Recurrent(watched)  # a hook is to see every step
    assert [plan.engine for plan in cello.explain(watched, x).plans] == ["reference"]
    assert len(steps) == 5
    torch.testing.assert_close(layer(x)[0], watched(x)[0], rtol=1e-12, atol=1e-12)
    normed = make()
    torch.nn.utils.parametrizations.weight_norm(normed, "weight_hh")  # now a subclass
    plan = cello.explain(cello.Recurrent(normed), x).plans[0]
    assert plan.engine == "native"
    with pytest.raises(cello.EngineError, match="not a cell like"), cello.engine("vendor"):
        cello.Recurrent(normed)(x)


def test_symbols_into_weights_of_another_dtype():
    """A cell that reads indices says nothing by its input about the dtype of its state."""

    class Speller(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden_size = 5
            self.of_symbol, self.h = nn.Embedding(7, 5), nn.Linear(5, 5)

        def forward(self, symbol, h):
            return torch.tanh(self.of_symbol(symbol[:, 0]) + self.h(h))

    layer = cello.Recurrent(Speller().double())
    output, state = layer(torch.randint(7, (4, 3, 1)))
    assert output.dtype == state.dtype == torch.float64
    assert output.shape == (4, 3, 5)


def test_states_without_an_axis_of_both_directions():
    """Each direction has a column of its own."""

    def summed(x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        total = total + x.sum(-1)
        return total[:, None].expand_as(x), total

    layer = cello.Recurrent(
        lambda features: FunctionCell(summed), F, bidirectional=True, state_size=torch.Size([])
    )
    x = torch.randn(T, B, F, dtype=torch.float64)
    _, end, states = layer(x, return_states=True)
    there, back = x.sum(-1).cumsum(0), x.sum(-1).flip(0).cumsum(0).flip(0)
    (found,) = states.values()
    assert_same(found, torch.stack([there, back], -1))
    assert_same(end, torch.stack([there[-1], back[0]]))
