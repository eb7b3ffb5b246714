"""Laws that hold for every layer, over random cells, shapes and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from cases import assert_same
from cases import flatten as tensors
from foreign_cells import CELLS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import cello

KINDS = (
    "LSTM",
    "GRU",
    "RNN",
    "hard",
    "proj",
    "MinimalGatedUnit",
    "PeepholeLSTM",
    "LearnedStart",
    "QRNN",
)
TOLERANCE = {"rtol": 1e-10, "atol": 1e-13}  # blocking of products differs with the batch size

law = settings(deadline=None, max_examples=40, derandomize=True)


@dataclass
class Drawn:
    """A layer and a batch, with the lengths of its sequences."""

    kind: str
    seed: int
    input_size: int
    width: int
    steps: int
    batch_size: int
    num_layers: int
    bidirectional: bool
    batch_first: bool

    def layer(self, **changes: Any) -> cello.nn.RecurrentLayer:
        torch.manual_seed(self.seed)
        options: dict[str, Any] = {
            "num_layers": self.num_layers,
            "bidirectional": self.bidirectional,
            "batch_first": self.batch_first,
        }
        options |= changes
        f, h = self.input_size, self.width
        if self.kind in CELLS:
            needed = {}
            if self.kind == "QRNN":  # its state is as wide as its input, so one layer only
                options["num_layers"] = 1
                needed = {"state_size": (h, f)}
            return cello.Recurrent(
                lambda features: CELLS[self.kind].make(features, h).double(), f, **options, **needed
            )
        special = {
            "hard": {"activation": "hardtanh", "gate_activation": "hardsigmoid"},
            "proj": {"proj_size": h - 1},
        }.get(self.kind, {})
        name = "LSTM" if special else self.kind
        return getattr(cello.nn, name)(f, h, dtype=torch.float64, **special, **options)

    def input(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(
            self.steps, self.batch_size, self.input_size, generator=generator, dtype=torch.float64
        )
        return self.turn(x)

    def turn(self, x: Tensor) -> Tensor:
        """From (T, B, ...) to the layout of the layer and back."""
        return x.transpose(0, 1) if self.batch_first else x


@st.composite
def drawn(draw: Any, kinds: tuple[str, ...] = KINDS) -> Drawn:
    return Drawn(
        kind=draw(st.sampled_from(kinds)),
        seed=draw(st.integers(0, 99)),
        input_size=draw(st.integers(2, 5)),
        width=draw(st.integers(2, 5)),
        steps=draw(st.integers(1, 9)),
        batch_size=draw(st.integers(1, 5)),
        num_layers=draw(st.integers(1, 2)),
        bidirectional=draw(st.booleans()),
        batch_first=draw(st.booleans()),
    )


def lengths_for(data: st.DataObject, case: Drawn, least: int = 1) -> list[int]:
    size = case.batch_size
    return data.draw(st.lists(st.integers(least, case.steps), min_size=size, max_size=size))


@given(drawn(), st.data())
@law
def test_a_run_cut_in_two_is_the_whole(case: Drawn, data: st.DataObject):
    layer = case.layer(bidirectional=False)
    x = case.turn(case.input())
    cut = data.draw(st.integers(0, case.steps))
    whole, end = layer(case.turn(x))
    pieces, state = [], None
    for piece in (x[:cut], x[cut:]):
        if len(piece):
            output, state = layer(case.turn(piece), state)
            pieces.append(case.turn(output))
    assert_same(torch.cat(pieces), case.turn(whole), **TOLERANCE)
    assert_same(state, end, **TOLERANCE)


@given(drawn(), st.data())
@law
def test_a_sequence_depends_neither_on_its_batch_nor_on_padding(case: Drawn, data: st.DataObject):
    """The padding is NaN, in values and gradients."""
    layer, x, lengths = case.layer(), case.turn(case.input()), lengths_for(data, case)
    for b, length in enumerate(lengths):
        x[length:, b] = torch.nan
    x.requires_grad_()
    output, end = layer(case.turn(x), lengths=lengths)
    output = case.turn(output)
    for b, length in enumerate(lengths):
        alone, last = layer(x[:length, b])  # one sequence, without a batch
        assert_same(output[:length, b], alone, **TOLERANCE)
        assert_same([part[:, b] for part in tensors(end)], tensors(last), **TOLERANCE)
        assert not output[length:, b].any()
    weights = list(layer.parameters())
    found = torch.autograd.grad(output.sum(), [x, *weights], allow_unused=True)
    assert all(bool(gradient.isfinite().all()) for gradient in found if gradient is not None)


@given(drawn(), st.data())
@law
def test_lengths_are_packing(case: Drawn, data: st.DataObject):
    layer, x, lengths = case.layer(), case.input(), lengths_for(data, case)
    output, end = layer(x, lengths=lengths)
    packed = pack_padded_sequence(x, lengths, case.batch_first, enforce_sorted=False)
    rows, last = layer(packed)
    padded, _ = pad_packed_sequence(rows, case.batch_first, total_length=case.steps)
    assert_same(output, padded, **TOLERANCE)
    assert_same(end, last, **TOLERANCE)


@given(drawn(kinds=tuple(kind for kind in KINDS if kind != "LearnedStart")), st.data())
@law
def test_the_order_of_the_batch_does_not_matter(case: Drawn, data: st.DataObject):
    layer, x = case.layer(), case.turn(case.input())
    lengths = lengths_for(data, case, least=0)
    order = data.draw(st.permutations(range(case.batch_size)))
    output, end = layer(case.turn(x), lengths=lengths)
    shuffled, last = layer(case.turn(x[:, order]), lengths=[lengths[b] for b in order])
    assert_same(case.turn(shuffled), case.turn(output)[:, order], **TOLERANCE)
    assert_same(tensors(last), [part[:, order] for part in tensors(end)], **TOLERANCE)


def flip(x: Tensor, lengths: list[int]) -> Tensor:
    """Every sequence (T, B, ...) from its own last step to its first."""
    out = x.clone()
    for b, length in enumerate(lengths):
        out[:length, b] = x[:length, b].flip(0)
    return out


@given(drawn(), st.data())
@law
def test_reverse_is_forward_on_sequences_turned_round(case: Drawn, data: st.DataObject):
    single = {"bidirectional": False, "num_layers": 1}
    backward, forward = case.layer(**single, reverse=True), case.layer(**single)
    lengths, x = lengths_for(data, case), case.turn(case.input())
    output, end = backward(case.turn(x), lengths=lengths)
    turned, last = forward(case.turn(flip(x, lengths)), lengths=lengths)
    assert_same(case.turn(output), flip(case.turn(turned), lengths), **TOLERANCE)
    assert_same(end, last, **TOLERANCE)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 99))
@law
def test_reversing_twice_changes_nothing_and_once_is_a_permutation(lengths: list[int], seed: int):
    from cello.engines import Sequence

    lengths = sorted(lengths, reverse=True)
    sizes = tuple(sum(length > t for length in lengths) for t in range(lengths[0]))
    rows = torch.arange(sum(sizes))[:, None]
    sequence = Sequence(rows, sizes)
    once = sequence.reversed()
    assert torch.equal(once.reversed().data, rows)
    assert torch.equal(once.data.sort(0).values, rows)
    starts = [sum(sizes[:t]) for t in range(len(sizes))]
    for b, length in enumerate(lengths):
        mine = [starts[t] + b for t in range(length)]
        assert once.data[mine].flatten().tolist() == mine[::-1]


@given(drawn(), st.data())
@law
def test_a_layer_is_a_function(case: Drawn, data: st.DataObject):
    """Twice the same call, the same answer; the input and the state that came in stay as they were."""
    layer, x, lengths = case.layer(), case.input(), lengths_for(data, case)
    kept = x.clone()
    output, state = layer(x, lengths=lengths)
    before = [part.clone() for part in tensors(state)]
    first, second = layer(x, state), layer(x, state)
    assert torch.equal(first[0], second[0])
    assert torch.equal(x, kept)
    assert all(torch.equal(a, b) for a, b in zip(tensors(state), before, strict=True))
    assert output.shape[:2] == x.shape[:2]


@given(drawn(), st.data())
@law
def test_states_of_all_steps_end_in_the_final_state(case: Drawn, data: st.DataObject):
    layer, x, lengths = case.layer(), case.input(), lengths_for(data, case)
    output, end, states = layer(x, lengths=lengths, return_states="all")
    plain, _ = layer(x, lengths=lengths)
    assert_same(output, plain, **TOLERANCE)
    parts = tensors(end)
    directions = 2 if case.bidirectional else 1
    for number, (name, history) in enumerate(states.items()):
        row, part = divmod(number, len(parts))
        steps = case.turn(history)
        at = [0 if directions == 2 and row % 2 else length - 1 for length in lengths]
        last = torch.stack([steps[t, b] for b, t in enumerate(at)])
        assert_same(last, parts[part][row], **TOLERANCE)
        assert name.endswith(f"l{row // directions}" + ("_reverse" if name.endswith("e") else ""))
