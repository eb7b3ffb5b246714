"""The trial of a foreign cell: what it finds, what it refuses, and that it leaves no trace."""

from __future__ import annotations

import random
import threading
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from foreign_cells import CELLS
from steps import loop
from torch import Tensor, nn

import cello
from cello.foreign.adapt import CellForm, FunctionCell
from cello.foreign.structure import Structure
from cello.foreign.trial import learn_form

F, H = 5, 6


def form_of(cell, *, features=F, **said) -> CellForm:
    module = cell if isinstance(cell, nn.Module) else FunctionCell(cell)
    return learn_form(module, torch.empty(2, features), **said)


def cell_with(forward, **attributes) -> nn.Module:
    """A cell of two linear maps, F -> H and H -> H, with this forward."""

    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.x, self.h = nn.Linear(F, H), nn.Linear(H, H)
            for name, value in attributes.items():
                setattr(self, name, value)

    Foreign.forward = forward
    return Foreign()


# what is found

SIZES = [(5, 6), (6, 6), (4, 12), (24, 6), (1, 4)]


@pytest.mark.parametrize("name", CELLS)
def test_what_is_found_is_what_the_author_meant_at_any_size(name: str):
    """Found rightly or asked for, never guessed wrongly, however the widths coincide."""
    foreign = CELLS[name]
    for f, h in SIZES:
        if f == 1 and name in ("PhasedLSTM", "TimeAwareLSTM", "ClosedFormContinuous"):
            continue  # the time alone is no input
        torch.manual_seed(0)
        sizes = foreign.state(f, h)
        structure = Structure.of(sizes, is_leaf=lambda s: isinstance(s, int | torch.Size))
        shapes = tuple((s,) if isinstance(s, int) else tuple(s) for s in structure.flatten(sizes))
        cell = foreign.make(f, h)
        asks = foreign.needs_size or (f == 1 and name in ("LeakyFunction", "MomentumFunction"))
        asks = asks or (f == 1 and name == "LearnedAverage")  # one feature broadcasts to any width
        if asks:
            with pytest.raises(cello.CellError, match="Say it with state_size="):
                form_of(cell, features=f)
        found = form_of(cell, features=f, **({"state_size": sizes} if asks else {}))
        assert found.shapes == shapes, (f, h)
        assert found.structure.same_as(structure)
        assert found.returns_output == foreign.returns_output
        assert found.input_shape == (f,)


def test_one_unit_is_found_where_hidden_size_says_so():
    for make in (nn.LSTMCell, nn.GRUCell, CELLS["TutorialLSTM"].make, CELLS["LayerNormLSTM"].make):
        form = form_of(make(3, 1), features=3)
        assert set(form.shapes) == {(1,)}


# what fits by accident


def test_a_tensor_taken_by_index_is_no_state():
    def output_and_first(self, x, state):
        h = torch.tanh(self.x(x) + self.h(state[0]))
        return self.x(x), h  # a longer tuple would go in as well, and the output into the state

    def first(self, x, state):
        return torch.tanh(self.x(x) + self.h(state[0]))  # on one row, row 0 of a tensor fits

    def flat(self, x, state):
        c = torch.tanh(self.x(x) + self.h(state[0])) + state[1]
        return self.x(x), torch.tanh(c), c  # (output, h, c) would fit as three states

    for forward in (output_and_first, first, flat):
        with pytest.raises(cello.CellError, match="cannot find out what state Foreign takes"):
            form_of(cell_with(forward))


def test_indexing_a_pair_is_fine():
    def forward(self, x, state):
        h, c = state[0], state[-1]
        c = c + torch.tanh(self.x(x) + self.h(h))
        return self.x(x), (torch.tanh(c), c)

    form = form_of(cell_with(forward))
    assert (form.shapes, form.returns_output) == (((H,), (H,)), True)


def test_two_states_as_two_arguments_are_not_an_output_and_a_state():
    def optional(self, x, h=None, c=None):
        h = x.new_zeros(len(x), H) if h is None else h
        c = torch.zeros_like(h) if c is None else c
        c = c + torch.tanh(self.x(x) + self.h(h))
        return torch.tanh(c), c

    def given(self, x, h, c=None):
        return optional(self, x, h, c)

    for forward in (optional, given):
        with pytest.raises(cello.CellError, match="needs both as one tuple"):
            form_of(cell_with(forward))

    def masked(self, x, h, mask=None):
        h = torch.tanh(self.x(x) + self.h(h))
        return 2 * h, h

    assert form_of(cell_with(masked), state_size=H).returns_output


def test_a_second_argument_that_is_no_state():
    def forward(self, x, dt=1.0, state=None):
        h = self.x(x) if state is None else self.x(x) + self.h(state)
        return dt * torch.tanh(h)  # dt would take a state (1, H) without complaint

    with pytest.raises(cello.CellError, match=r"its second argument is 'dt=1\.0'"):
        form_of(cell_with(forward))


def test_a_width_that_nothing_decides_is_asked_for():
    def counter(self, x, state):
        h, n = state
        return torch.tanh(self.x(x) + self.h(h)) / (n + 1), n + 1

    def through(self, x, state):
        return self.x(x), state

    def unused(self, x, state):
        h, note = state
        return torch.tanh(self.x(x) + self.h(h)), note

    def tied(self, x, state):
        h, v = state  # to each other, but to nothing else
        v = 0.5 * v + 0.1 * (h - self.x(x).sum(-1, keepdim=True))
        return h + v, v

    for forward, name in ((counter, " 'c'"), (through, " 'h'"), (unused, " 'c'"), (tied, "")):
        for attributes in ({}, {"hidden_size": H}):
            with pytest.raises(cello.CellError, match=f"how wide the state{name} of Foreign is"):
                form_of(cell_with(forward, **attributes))
    said = form_of(cell_with(counter), state_size={"h": H, "n": 1})
    assert (said.names, said.shapes) == (("h", "n"), ((H,), (1,)))


def test_a_number_of_parts_that_nothing_decides_is_asked_for():
    def every(self, x, state):
        return self.x(x), [torch.tanh(self.x(x) + part) for part in state]

    with pytest.raises(cello.CellError, match="state_size="):
        form_of(cell_with(every))
    assert len(form_of(cell_with(every), state_size=[H] * 3).shapes) == 3


def test_rows_are_rows():
    class OverRows(nn.Module):
        """Takes the rows of x for steps."""

        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(F, H)

        def forward(self, x, state=None):
            return self.lstm(x, state)

    with pytest.raises(cello.CellError, match="it takes one row, but for 3 rows"):
        form_of(OverRows())

    def one_row(self, x, h):
        return torch.tanh(self.x(x) + self.h(h)).mean(0, keepdim=True)

    with pytest.raises(cello.CellError, match=r"for three rows|came out as a tensor"):
        form_of(cell_with(one_row))


def test_a_default_of_none_that_does_not_hold():
    def forward(self, x, state=None):
        h, c = state
        c = c + torch.tanh(self.x(x) + self.h(h))
        return torch.tanh(c), c

    form = form_of(cell_with(forward))
    assert form.shapes == ((H,), (H,))
    assert not form.makes_initial_state


def test_both_readings_of_a_nested_pair():
    def forward(self, x, state=None):
        h = x.new_zeros(len(x), H) if state is None else state[0]
        h = torch.tanh(self.x(x) + self.h(h))
        return h, (h,)  # (h, (h,)) as the next state would go in too

    form = form_of(cell_with(forward))
    assert form.returns_output
    assert str(form.structure) == "(a tensor)"


def test_what_the_cell_returns_decides_how_the_state_nests():
    def forward(self, x, state):
        h, c = state
        c = c + torch.tanh(self.x(x) + self.h(h))
        return [torch.tanh(c), c]

    assert form_of(cell_with(forward)).structure.container is list


# what is refused


def none(self, x, h):
    return None


def mapping(self, x, h):
    return {"h": h}


def grows(self, x, h):
    return torch.cat([x, h], -1)


def scalar(self, x, h):
    return (self.x(x) + self.h(h)).sum(), torch.tanh(self.x(x) + self.h(h))


def one_number(self, x, h):
    return self.h(h).sum(-1), torch.tanh(self.x(x) + self.h(h))


def by_name(self, x, state):
    return {"h": state["h"]}


def selects(self, x, h):
    return self.h(h)[h[:, 0] > 0]


def typo(self, x, h):
    return self.hidden2hidden(h)


def alone(self, x):
    return self.x(x)


def three_arguments(self, x, h, c):
    return h, c


def keyword(self, x, *, state=None):
    return self.x(x)


REFUSED = [
    (none, "it returned None"),
    (mapping, r"it returned \{'h': "),
    (grows, r"came out as a tensor \(1, 1\d\); a cell keeps the shapes of its state"),
    (scalar, r"its output must be a tensor \(1, \.\.\.\), it is a tensor \(\)"),
    (
        one_number,
        r"it is a tensor \(1,\); a number a row is \(B, 1\): return output.unsqueeze\(-1\)",
    ),
    (selects, "a cell keeps the shapes of its state"),
    (typo, "AttributeError: 'Foreign' object has no attribute 'hidden2hidden'"),
    (alone, "it is called as cell.x, state., but it has the arguments .x.: too many"),
    (three_arguments, "missing a required argument: 'c'"),
    (keyword, "too many positional arguments"),
]


@pytest.mark.parametrize(("forward", "message"), REFUSED, ids=[f.__name__ for f, _ in REFUSED])
@pytest.mark.parametrize("said", [{}, {"state_size": H}], ids=["found", "said"])
def test_what_is_not_a_cell(forward, message, said):
    with pytest.raises(cello.CellError, match=message) as caught:
        form_of(cell_with(forward), **said)
    assert "Foreign" in str(caught.value)
    assert caught.type is cello.CellError
    assert len(str(caught.value)) < 800


def test_names_of_a_state_are_not_its_keys():
    with pytest.raises(cello.CellError, match="A state with names is a tuple all the same"):
        form_of(cell_with(by_name), state_size={"h": H, "c": H})


def test_integers_without_an_axis_of_features():
    embedding = nn.Embedding(9, H)
    layer = cello.Recurrent(lambda token, h: torch.tanh(embedding(token) + h), state_size=H)
    with pytest.raises(cello.CellError, match=r"Integers \(T, B\) are read as one sequence"):
        layer(torch.randint(0, 9, (5, 3)))
    layer = cello.Recurrent(lambda token, h: torch.tanh(embedding(token[:, 0]) + h), state_size=H)
    assert layer(torch.randint(0, 9, (5, 3, 1)))[0].shape == (5, 3, H)


def test_a_structure_that_does_not_fit_what_was_said():
    with pytest.raises(cello.CellError, match="state like the one it was given"):
        form_of(cell_with(lambda self, x, h: [self.h(h)]), state_size=H)
    with pytest.raises(
        cello.CellError, match=r"^state_size: LSTMCell takes the state \(6, 6\), got"
    ):
        form_of(nn.LSTMCell(F, H), state_size=(H, H + 1))


@pytest.mark.parametrize(
    "start", [{torch.zeros(1, F)}, (torch.zeros(1, F), None)], ids=["set", "none"]
)
def test_a_state_of_another_kind_that_a_cell_makes_itself(start):
    class Own(nn.Module):
        def forward(self, x, state=None):
            return x, start if state is None else state

    with pytest.raises(cello.CellError, match="neither that nor its second part can be a state"):
        form_of(Own())


@pytest.mark.parametrize("wrong", ["20", 1.5, {"h": (H, H)}, (), {}])
def test_state_size_is_checked(wrong):
    with pytest.raises(TypeError, match="state_size"):
        form_of(nn.LSTMCell(F, H), state_size=wrong)


def test_contract_cells_are_held_to_the_contract():
    class Bare(cello.Cell):
        state_sizes = {"h": H}  # noqa: RUF012

        def forward(self, x, state):
            return state[0]

    class Naked(Bare):
        def forward(self, x, state):
            return state[0], state[0]

    class Listed(Bare):
        state_sizes = ["h"]  # noqa: RUF012

    class Optional(Bare):
        def forward(self, x):
            return x

    for cell, message in [
        (Bare(), r"a cello.Cell returns \(output, state\)"),
        (Naked(), "changed the structure of its state"),
        (Listed(), "state_sizes must be a dict of names and sizes"),
        (Optional(), "it is called as cell"),
    ]:
        with pytest.raises(cello.CellError, match=message):
            form_of(cell)


# no trace


class Tracks(nn.Module):
    """Keeps whatever it sees in every way there is."""

    def __init__(self):
        super().__init__()
        self.norm, self.cell, self.drop = nn.BatchNorm1d(F), nn.GRUCell(F, H), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(H))
        self.seen, self.log, self.count, self.modes = [], {}, 0, set()
        self.last = None

    def forward(self, x, h):
        self.calls += 1
        self.count += 1
        h = self.cell(self.drop(self.norm(x)), h) + 0 * torch.rand(H) * torch.rand_like(h)
        self.mean = 0.9 * self.mean + 0.1 * h.mean(0)
        self.last = h
        self.seen.append(h)
        self.log[self.count] = h
        self.modes.add(self.training)
        self.fresh = h
        return torch.nn.functional.dropout(h, 0.5, training=True)


@pytest.mark.parametrize("said", [{}, {"state_size": H}, {"state_size": H + 1}])
def test_a_trial_leaves_no_trace(said):
    cell = Tracks().train()
    cell.drop.eval()
    hooked = []
    handle = cell.cell.register_forward_hook(lambda *arguments: hooked.append(arguments))
    lists = cell.seen, cell.log, cell.modes
    before = [dict(vars(m)) for m in cell.modules()]
    values = {k: v.clone() for k, v in cell.state_dict().items()}
    torch.manual_seed(0)
    draws = torch.get_rng_state()
    try:
        form_of(cell, **said)
    except cello.CellError:
        assert said == {"state_size": H + 1}
    assert torch.equal(torch.get_rng_state(), draws)
    assert [dict(vars(m)) for m in cell.modules()] == before
    assert (cell.seen, cell.log, cell.modes) == ([], {}, set())
    assert all(a is b for a, b in zip((cell.seen, cell.log, cell.modes), lists, strict=True))
    assert not hasattr(cell, "fresh")
    assert all(torch.equal(v, values[k]) for k, v in cell.state_dict().items())
    assert [m.training for m in cell.modules()] == [True, True, True, False]
    assert hooked == []
    cell(torch.randn(2, F), torch.zeros(2, H))
    assert len(hooked) == 1
    handle.remove()


def test_the_parameters_are_the_same_objects_and_gradients_stay():
    cell = nn.LSTMCell(F, H)
    parameters = list(cell.parameters())
    for p in parameters:
        p.grad = torch.ones_like(p)
    cello.Recurrent(cell)(torch.zeros(3, 2, F))
    assert all(a is b for a, b in zip(cell.parameters(), parameters, strict=True))
    assert all(bool((p.grad == 1).all()) and type(p) is nn.Parameter for p in parameters)


def test_threads_may_call_a_new_layer_at_the_same_time():
    cell = CELLS["MinimalGatedUnit"].make(F, H)
    layer, x = cello.Recurrent(cell), torch.randn(30, 2, F)
    expected, _ = cello.Recurrent(CELLS["MinimalGatedUnit"].make(F, H))(x)  # another cell: warm-up
    results, barrier = [], threading.Barrier(4)

    def call() -> None:
        barrier.wait()
        results.append(layer(x)[0].detach())

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(type(r) is torch.Tensor and torch.equal(r, results[0]) for r in results)
    assert all(type(p) is nn.Parameter for p in cell.parameters())
    assert results[0].shape == expected.shape


def test_other_devices_and_dtypes():
    for device, dtype in (("meta", torch.float32), ("cpu", torch.bfloat16)):
        cell = nn.GRUCell(F, H, device=device, dtype=dtype)
        output, state = cello.Recurrent(cell)(torch.zeros(3, 2, F, device=device, dtype=dtype))
        assert (output.device.type, output.dtype) == (device, dtype)
        assert state.shape == (1, 2, H)


# what a cell keeps beside its state


def _membrane(self, x, h):
    self.mem = 0.9 * self.mem + self.x(x)
    return torch.tanh(self.mem + self.h(h))


def _written_into(self, x, h):
    self.mem.mul_(0.9).add_(self.x(x).detach())
    return torch.tanh(self.mem + self.h(h))


def _from_the_second_step_on(self, x, h):
    i = self.x(x)
    before, self.last = self.last, i
    return torch.tanh(self.h(h) + (i if before is None else i + before))


def _side_by_side(self, x, h):
    last = torch.zeros_like(h) if self.last is None else self.last
    self.last = self.x(x)
    return torch.tanh(self.h(h) + torch.cat([self.last, last], 1)[:, :H])


def _in_a_list(self, x, h):
    self.kept.append(self.x(x))
    return torch.tanh(self.h(h) + torch.stack(self.kept).mean(0))


def _in_a_dict(self, x, h):
    self.table["last"] = self.x(x) + self.table.get("last", 0)
    return torch.tanh(self.h(h) + self.table["last"])


def _in_training(self, x, h):
    i = self.x(x)
    if self.training:
        i, self.last = i + (0 if self.last is None else self.last), i
    return torch.tanh(self.h(h) + i)


CARRIED = {
    "a buffer": (_membrane, "mem", {}, {"mem": torch.zeros(1, H)}),
    "a buffer for one batch": (_membrane, "mem", {}, {"mem": torch.zeros(4, H)}),
    "written in place": (_written_into, "mem", {}, {"mem": torch.zeros(4, H)}),
    "an attribute": (_from_the_second_step_on, "last", {"last": None}, {}),
    "side by side": (_side_by_side, "last", {"last": None}, {}),
    "a list": (_in_a_list, "kept", {"kept": []}, {}),
    "a dict": (_in_a_dict, "table.last", {"table": {}}, {}),
    "in training": (_in_training, "last", {"last": None}, {}),
}


@pytest.mark.parametrize("kind", CARRIED)
def test_what_is_carried_on_beside_the_state_is_named(kind: str):
    forward, name, attributes, buffers = CARRIED[kind]
    cell = cell_with(forward, **attributes)
    for buffer, value in buffers.items():
        cell.register_buffer(buffer, value.clone())
    for said in ({}, {"state_size": H}, {"state": torch.zeros(2, H)}):
        with pytest.raises(
            cello.CellError, match=rf"computes {name} \(B, ...\) at one step and reads"
        ):
            form_of(cell, **said)
    assert all(cell.get_buffer(buffer).equal(value) for buffer, value in buffers.items())
    assert all(getattr(cell, key) in (None, [], {}) for key in attributes)


def test_what_a_cell_of_the_contract_carries_on_is_named():
    class Carries(cello.Cell):
        def __init__(self):
            super().__init__()
            self.last = None

        @property
        def state_sizes(self):
            return {"h": H}

        def forward(self, x, state):
            h = torch.tanh(state[0] + x.sum(1, keepdim=True))
            if self.last is not None:
                h = h + self.last
            self.last = h
            return h, (h,)

    with pytest.raises(cello.CellError, match="computes last"):
        form_of(Carries())


def _shown(self, x, h):
    self.gates = self.x(x)
    self.seen.append(h)
    return torch.tanh(self.gates + self.h(h))


def _overwritten(self, x, h):
    i = self.x(x)
    with torch.no_grad():
        self.last.copy_(i.mean(0))
    return torch.tanh(i + self.h(h))


def _one_mask(self, x, h):
    if self.mask is None:
        self.mask = torch.ones_like(h).bernoulli(0.5)
    return torch.tanh(self.x(x) + self.h(h * self.mask))


def _running_mean(self, x, h):
    if self.training:
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
    return torch.tanh(self.x(x - self.mean) + self.h(h))


@pytest.mark.parametrize(
    ("forward", "attributes", "buffers"),
    [
        (_shown, {"seen": []}, {}),
        (_overwritten, {}, {"last": torch.zeros(H)}),
        (_one_mask, {"mask": None}, {}),
        (_running_mean, {}, {"mean": torch.zeros(F)}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_kept_and_not_carried_on_is_no_state(forward, attributes, buffers):
    """What is only looked at, a mask that no value of x is in, and averages over batches."""
    cell = cell_with(forward, **attributes)
    for buffer, value in buffers.items():
        cell.register_buffer(buffer, value)
    assert form_of(cell).shapes == ((H,),)


# where a step on meta tensors is not a step


def _by_hand(cell: nn.Module, x: torch.Tensor) -> torch.Tensor:
    h, rows = torch.zeros(x.shape[1], H, dtype=x.dtype), []
    for step in x:
        h = cell(step, h)
        rows.append(h)
    return torch.stack(rows)


def _least_squares(self, x, h):
    return torch.tanh(self.x(x) + torch.linalg.lstsq(self.h.weight, h.t()).solution.t())


def _fake_quantized(self, x, h):
    return torch.fake_quantize_per_tensor_affine(torch.tanh(self.x(x) + self.h(h)), 0.1, 0, -9, 9)


def _energy(self, x, h):
    with torch.enable_grad():
        h = h.detach().requires_grad_()
        (slope,) = torch.autograd.grad(torch.tanh(self.h(h)).square().sum(), h, create_graph=True)
    return torch.tanh(self.x(x) - slope)


def _gradient_of_a_weight(self, x, h):
    y = torch.tanh(self.x(x) + self.h(h))
    (slope,) = torch.autograd.grad(y.sum(), self.h.bias, create_graph=True)
    return y - 0.1 * slope


def _keeps_its_gradient(self, x, h):
    h = torch.tanh(self.x(x) + self.h(h))
    h.retain_grad()
    return h


def _held_rows(self, x, h):
    return torch.tanh(self.x(x) + self.h(h * self.drop))


def _branches(self, x, h):
    h = torch.tanh(self.x(x) + self.h(h))
    return 0.5 * h if h.sum() > 0 else h


def _branches_in_training(self, x, h):
    h = torch.tanh(self.x(x) + self.h(h))
    return h * 2 if self.training and h.mean() > 0 else h


def _pauses(self, x, h):
    for _ in range(3):  # adaptive computation time
        h = torch.tanh(self.x(x) + self.h(h))
        if h.abs().mean().item() > 0.4:
            break
    return h


def _item(self, x, h):
    return self.x(x) * h.mean().item() + torch.tanh(self.h(h))


def _selects(self, x, h):
    h = torch.tanh(self.x(x) + self.h(h))
    return h + h[h > 0].sum()


def _numpy(self, x, h):
    return torch.tanh(self.x(x) + self.h(h)) + torch.from_numpy(np.sign(h.detach().numpy()))


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(np.sign(x.detach().numpy()))

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 0.5


def _own_function(self, x, h):
    return torch.tanh(self.x(x) + _Sign.apply(self.h(h)))


def _function_transform(self, x, h):
    return torch.tanh(self.x(x) + torch.func.grad(lambda h: torch.tanh(self.h(h)).sum())(h))


def _distribution(self, x, h):
    mean = torch.tanh(self.x(x) + self.h(h))
    torch.manual_seed(3)
    return torch.distributions.Normal(mean, 0.1 + mean.square()).rsample()


@pytest.mark.parametrize(
    "forward",
    [
        _least_squares,
        _fake_quantized,
        _energy,
        _gradient_of_a_weight,
        _keeps_its_gradient,
        _held_rows,
        _branches,
        _branches_in_training,
        _pauses,
        _item,
        _selects,
        _numpy,
        _own_function,
        _function_transform,
        _distribution,
    ],
    ids=lambda forward: forward.__name__,
)
def test_a_cell_that_runs_in_a_loop_of_ones_own_runs_here(forward):
    torch.manual_seed(0)
    cell = cell_with(forward, drop=(torch.rand(4, H) < 0.5).double()).double()
    x, ones_own = torch.randn(7, 4, F, dtype=torch.float64), {}
    layer = cello.Recurrent(cell)
    for run in (lambda: _by_hand(cell, x), lambda: layer(x)[0]):
        cell.zero_grad()
        out = run()
        out.square().sum().backward()
        gradients = {name: p.grad for name, p in cell.named_parameters()}
        ones_own = ones_own or {"out": out, **gradients}
    torch.testing.assert_close(out, ones_own.pop("out"))
    torch.testing.assert_close(gradients, ones_own)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
def test_scripted_and_quantized_cells():
    torch.manual_seed(0)
    gru = nn.GRUCell(F, H)
    quantized = cell_with(lambda self, x, h: torch.tanh(self.x(x) + self.h(h)))
    torch.ao.quantization.quantize_dynamic(quantized, {nn.Linear}, inplace=True)
    x = torch.randn(7, 4, F)
    for cell in (torch.jit.script(gru), quantized):
        layer = cello.Recurrent(cell, state_size=H)
        torch.testing.assert_close(layer(x)[0], _by_hand(cell, x))
        assert "reference" in str(cello.explain(layer, x))
    assert "made by torch.jit" in str(cello.explain(cello.Recurrent(torch.jit.script(gru)), x))


def test_a_lazy_cell_is_to_be_called_once():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.x, self.h = nn.LazyLinear(H), nn.Linear(H, H)

        def forward(self, x, h):
            return torch.tanh(self.x(x) + self.h(h))

    cell, x = Lazy(), torch.randn(7, 4, F)
    with pytest.raises(cello.CellError, match="call it once as cell"):
        cello.Recurrent(cell)(x)
    cell(x[0], torch.zeros(4, H))
    torch.testing.assert_close(cello.Recurrent(cell)(x)[0], _by_hand(cell, x))


def test_a_trial_on_numbers_leaves_nothing_behind():
    generators = (torch.Generator(), np.random.default_rng(3), random.Random(3))
    kept = torch.ones(H)

    def forward(self, x, h):
        self.kept.add_(1)
        self.h.bias.data.add_(1)
        noise = [g.random() for g in self.generators[1:]]
        noise += [
            np.random.rand(),
            random.random(),
            torch.rand(()),
            torch.rand((), generator=self.generators[0]),
        ]
        h = torch.tanh(self.x(x) + self.h(h) + sum(noise))
        return h if h.sum() > 0 else -h

    cell = cell_with(forward, kept=kept, generators=generators)
    before = {name: value.clone() for name, value in cell.state_dict().items()}
    states = (
        lambda: torch.get_rng_state().tolist(),
        lambda: generators[0].get_state().tolist(),
        lambda: str(generators[1].bit_generator.state),
        generators[2].getstate,
        random.getstate,
        lambda: str(np.random.get_state()),
        kept.tolist,
    )
    was = [state() for state in states]
    assert form_of(cell).shapes == ((H,),)
    assert [state() for state in states] == was
    torch.testing.assert_close(dict(cell.state_dict()), before)


def test_a_step_finds_its_parameters_by_name():
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(3, 3)
            self.register_buffer("factor", torch.full((3,), 0.5))

        def forward(self, x, h):
            weight = self.get_parameter("lin.weight")
            assert isinstance(weight, nn.Parameter)
            assert isinstance(self.get_submodule("lin"), nn.Linear)
            return torch.tanh(x @ weight.T + h * self.get_buffer("factor"))

    cell, x = ByName(), torch.randn(4, 2, 3)
    torch.testing.assert_close(cello.Recurrent(cell)(x)[0], loop(cell, x, torch.zeros(2, 3)))


class Counts(nn.Module):
    """Advances what is no tensor and no list."""

    def __init__(self):
        super().__init__()
        self.steps, self.pairs = count(1), [count(0, 2)]
        self.same_steps = self.steps
        self.visits, self.things = np.zeros(20_000), np.array([0, None], dtype=object)

    def forward(self, x, h):
        self.visits[0] += 1
        self.things[0] += 1
        self.pairs[0] = self.pairs[0]
        steps = next(self.steps) + next(self.same_steps)
        return torch.tanh(x + h / (steps + next(self.pairs[0])))


def test_counters_and_large_arrays_are_put_back():
    cell, by_hand = Counts(), Counts()
    x, h = torch.randn(5, 2, 3), torch.zeros(2, 3)
    output, _ = cello.Recurrent(cell, state_size=3)(x)
    for row in x:
        h = by_hand(row, h)
    torch.testing.assert_close(output[-1], h)
    for one in (cell, by_hand):
        assert (repr(one.steps), repr(one.pairs)) == ("count(11)", "[count(10, 2)]")
        assert (one.visits[0], one.things[0]) == (5, 5)


def _squeezes(self, x, h):
    return torch.tanh(self.x(x) + self.h(h))[:, None].squeeze()


def _normed_over_the_batch(self, x, h):
    return nn.functional.group_norm(self.x(x) + self.h(h), H)


@pytest.mark.parametrize("forward", [_squeezes, _normed_over_the_batch])
def test_a_cell_that_takes_no_single_row(forward):
    cell, x = cell_with(forward), torch.randn(4, 3, F)
    torch.testing.assert_close(cello.Recurrent(cell, state_size=H)(x)[0], _by_hand(cell, x))


class Propagates(nn.Module):
    """An echo state network, whose weights are sparse."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        weight = 0.5 * torch.eye(4)
        self.register_buffer("A", getattr(weight, layout)() if layout else weight)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh((self.A @ h.t()).t() + x)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr", "to_sparse_csc"])
def test_sparse_weights(layout: str):
    x = torch.randn(6, 3, 4)
    dense = cello.Recurrent(Propagates(""), state_size=4)
    assert cello.explain(dense, x).plans[0].engine == "native"
    layer = cello.Recurrent(Propagates(layout), state_size=4)
    plan = cello.explain(layer, x).plans[0]
    assert plan.engine == "reference"
    assert "computes with A, a tensor of torch.sparse_" in plan.reasons["native"][0]
    assert "hold it as a dense one" in plan.reasons["native"][0]
    torch.testing.assert_close(layer(x)[0], dense(x)[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_module_of_torchscript_with_a_script_method():
    class Scripted(torch.jit.ScriptModule):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.eye(4))

        @torch.jit.script_method
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(x + torch.mm(h, self.w))

    x = torch.randn(6, 3, 4)
    output = cello.Recurrent(Scripted(), state_size=4)(x)[0]
    h = torch.zeros(3, 4)
    for row in x:
        h = torch.tanh(row + h)
    torch.testing.assert_close(output[-1], h)


def test_cells_that_are_paired_with_their_states():
    class Paired(nn.Module):
        """`zip` would take fewer states, too."""

        def __init__(self) -> None:
            super().__init__()
            self.cells = nn.ModuleList([nn.LSTMCell(4, 4) for _ in range(3)])

        def forward(self, x: Tensor, hidden: Any = None) -> Any:
            if hidden is None:
                hidden = [(x.new_zeros(x.size(0), 4),) * 2 for _ in self.cells]
            new = []
            for cell, state in zip(self.cells, hidden, strict=False):
                x, c = cell(x, state)
                new.append((x, c))
            return x, new

    cell, x = Paired(), torch.randn(6, 3, 4)
    layer = cello.Recurrent(cell)
    output, final = layer(x)
    state = None
    for row in x:
        expected, state = cell(row, state)
    torch.testing.assert_close(output[-1], expected)
    assert len(final) == 3
    assert cello.explain(layer, x).plans[0].engine == "native"


def test_a_cell_that_refuses_zeros_is_tried_with_the_state_that_is_given():
    class Filter(nn.Module):
        """A hidden Markov model's forward step, whose state must be a distribution."""

        def __init__(self):
            super().__init__()
            self.moves, self.seen = nn.Parameter(torch.randn(4, 4)), nn.Linear(3, 4)

        def forward(self, x, p):
            before = torch.distributions.Categorical(probs=p, validate_args=True).probs
            p = before @ self.moves.softmax(-1) * self.seen(x).softmax(-1)
            p = p / p.sum(-1, keepdim=True)
            return p.log(), p

    cell, x = Filter(), torch.randn(5, 2, 3)
    start = torch.full((1, 2, 4), 0.25)
    for size in (None, 4):
        output, last = cello.Recurrent(cell, state_size=size)(x, start)
        p = start[0]
        for t in range(5):
            expected, p = cell(x[t], p)
            torch.testing.assert_close(output[t], expected)
        torch.testing.assert_close(last[0], p)
    with pytest.raises(cello.CellError, match="Simplex"):
        cello.Recurrent(cell, state_size=4)(x)
