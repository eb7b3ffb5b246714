"""Questions about all rows that a step asks in Python: the answer is assumed, and checked in each call."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from steps import assert_close, assert_left_to_the_loop, evaluate, loop
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Normal
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

import cello
from cello.compile.tracer import Tracer

T, B, N, H = 6, 5, 3, 4
Answer = Callable[["Asks", Tensor], Any]


class Asks(nn.Module):
    """A cell that computes one of two things, as an answer says, or raises an error."""

    def __init__(self, ask: Answer, otherwise: Callable[[Tensor], Tensor] | None = torch.sin):
        super().__init__()
        self.i, self.r, self.ask, self.otherwise = nn.Linear(N, H), nn.Linear(H, H), ask, otherwise
        self.limit = nn.Parameter(torch.tensor(30.0))
        self.register_buffer("most", torch.tensor(40.0))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z = self.i(x) + self.r(h)
        if self.ask(self, z):
            return torch.tanh(z)
        if self.otherwise is None:
            raise ValueError("the step has stopped")
        return self.otherwise(z)


def layer_of(ask: Answer, otherwise: Any = torch.sin, **options: Any) -> Any:
    torch.manual_seed(0)
    return cello.Recurrent(Asks(ask, otherwise).double(), state_size=H, **options)


def cell_of(layer: nn.Module) -> Asks:
    return next(module for module in layer.modules() if isinstance(module, Asks))


def one(parts: list[Tensor]) -> Tensor:
    (part,) = parts
    return part


def values(seed: int = 1, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*(shape or (T, B, N)), generator=generator, dtype=torch.float64)


HOLD: dict[str, Answer] = {
    "not any": lambda _, z: not torch.isnan(z).any(),
    "any of numbers": lambda _, z: not (z - z).any(),
    "all": lambda _, z: (z.abs() < 50).all(),
    "all of numbers": lambda _, z: z.exp().all(),
    "isfinite": lambda _, z: torch.isfinite(z).all(),
    "item": lambda _, z: not torch.isnan(z).any().item(),
    "bool": lambda _, z: not bool(torch.isinf(z).any()),
    "along an axis first": lambda _, z: not torch.isnan(z).any(-1).any(),
    "along the batch first": lambda _, z: not torch.isnan(z).any(0).any(),
    "all along the batch first": lambda _, z: (z.abs() < 50).all(0, keepdim=True).all(),
    "or of truth values": lambda _, z: not (torch.isnan(z) | torch.isinf(z)).any(),
    "and of truth values": lambda _, z: ((z < 50) & (z > -50)).all(),
    "logical": lambda _, z: torch.logical_and((z < 50).all(), ~(z > 50).any()),
    "logical or": lambda _, z: not torch.logical_or((z > 50).any(), (z < -50).any()),
    "python's and": lambda _, z: (z < 50).all() and (z > -50).all(),
    "de Morgan": lambda _, z: not (~(z < 50)).any(),
    "max": lambda _, z: not z.abs().max() > 50,
    "max of extrema": lambda _, z: not z.abs().amax(-1).max() > 50,
    "max of places": lambda _, z: not z.max(-1).values.max() > 50,
    "max below": lambda _, z: z.max() < 50,
    "min": lambda _, z: z.min() >= -50,
    "min below": lambda _, z: not z.amin() < -50,
    "a buffer": lambda cell, z: z.max() < cell.most,
    "a parameter": lambda cell, z: (z < cell.limit).all(),
    "of a parameter alone": lambda cell, _: (cell.limit > 0).all(),
    "one number of a parameter": lambda cell, _: cell.limit > 0,
    "a sum of weights": lambda cell, _: not cell.r.weight.square().sum() > 1e3,
    "count": lambda _, z: torch.isnan(z).sum() == 0,
    "positive count": lambda _, z: not torch.isnan(z).sum() > 0,
    "as many as rows": lambda _, z: (z[:, 0] < 50).sum() == z.size(0),
    "as many as there are": lambda _, z: not (z < 50).sum() < z.numel(),
    "as many as rows, reversed": lambda _, z: len(z) == (z.abs() < 50).all(1).sum(),
    "not as many as rows": lambda _, z: not torch.ne((z[:, :1] < 50).sum(), len(z)),
    "a sum that is a number": lambda _, z: not torch.isnan(z.sum()),
    "a sum that is itself": lambda _, z: z.square().sum() == z.square().sum(),
    "a mean that is not itself": lambda _, z: not z.mean(1).mean().ne(z.mean(1).mean()),
    "a largest number that is one": lambda _, z: not z.max().isnan(),
    "in another shape": lambda _, z: (z.view(-1) < 50).all(),
    "of a part": lambda _, z: (z[:, 1:3].t() < 50).all(),
    "a view of the answer": lambda _, z: (z < 50).all().unsqueeze(0),
    "allclose": lambda _, z: torch.allclose(z, z + 1e-12),
    "a method": lambda _, z: z.allclose(z * 1.0, atol=1e-3),
    "twice": lambda _, z: (z < 50).all() and not torch.isnan(z.exp()).any(),
    "several": lambda _, z: all((z[:, k] < 50).all() for k in range(H)),
}


@pytest.mark.parametrize("name", HOLD)
def test_what_holds_is_compiled(name: str):
    layer, x, state = layer_of(HOLD[name]), values(), [values(2, 1, B, H)]
    plan = cello.explain(layer, x).plans[0]
    assert plan.engine == "native", plan.reasons
    assert_close(
        evaluate(layer, x, state, "native", one), evaluate(layer, x, state, "reference", one)
    )
    # Beside a loop over the cell itself, whose branch is torch's.
    expected = loop(cell_of(layer), x, state[0][0])
    torch.testing.assert_close(layer(x, state[0])[0], expected)


@pytest.mark.parametrize("name", HOLD)
@pytest.mark.parametrize("number", [60.0, -60.0, float("nan"), float("inf")])
def test_one_number_that_is_otherwise_is_seen(name: str, number: float):
    layer, x = layer_of(HOLD[name]), values()
    assert cello.explain(layer, x).plans[0].engine == "native"
    with torch.no_grad():
        cell_of(layer).i.weight.copy_(torch.eye(H, N))
    x[3, 2, 1] = number
    expected = loop(cell_of(layer), x, torch.zeros(B, H, dtype=torch.float64))
    torch.testing.assert_close(layer(x)[0], expected, equal_nan=True)


VIOLATED: dict[str, Answer] = {
    "any": lambda _, z: (z > 20).any(),
    "all": lambda _, z: (z.abs() < 20).all(),
    "max": lambda _, z: z.max() > 20,
    "min": lambda _, z: z.min() < 20,
    "count": lambda _, z: (z > 20).sum() == 0,
    "allclose": lambda _, z: torch.allclose(z, torch.zeros_like(z), atol=20),
}
"""They hold at every other step only."""


@pytest.mark.parametrize("name", VIOLATED)
def test_what_does_not_hold_is_left_to_the_loop(name: str):
    layer, x, state = layer_of(VIOLATED[name]), values(), [values(2, 1, B, H)]
    with torch.no_grad():
        cell_of(layer).i.weight.fill_(1.0)
    x[::2] = 60.0
    told = assert_left_to_the_loop("in this call it was not as assumed", layer, x)
    assert "test_assumed.py" in told
    assert_close(evaluate(layer, x, state, None, one), evaluate(layer, x, state, "reference", one))
    with cello.engine("native"), pytest.raises(cello.EngineError, match="it was not as assumed"):
        layer(x)
    with cello.engine(strict=True), pytest.raises(cello.EngineError, match="it was not as assumed"):
        layer(x)


def test_the_error_of_a_step_is_raised():
    layer, x = layer_of(lambda _, z: not torch.isnan(z).any(), None), values()
    layer(x)
    x[4, 1, 0] = float("nan")
    with pytest.raises(ValueError, match="the step has stopped"):
        layer(x)
    with cello.engine(segment=2), pytest.raises(ValueError, match="the step has stopped"):
        layer(x)
    with pytest.raises(ValueError, match="the step has stopped"):
        layer.step(x[4])


def test_assertions():
    def asserts(z: Tensor) -> Tensor:
        torch._assert((z < 50).all(), "too large")  # pytest writes `assert` in another way
        torch._assert((z > -50).all(), "too small")
        torch._assert_async((z != 7).all())
        return torch.tanh(z)

    layer, x = cello.Recurrent(lambda x, h: asserts(x + h), state_size=N), values()
    plan = cello.explain(layer, x).plans[0]
    assert plan.engine == "native", plan.reasons
    torch.testing.assert_close(layer(x)[0], loop(lambda x, h: asserts(x + h), x, torch.zeros(B, N)))
    for number, error in ((60.0, AssertionError), (-60.0, AssertionError), (7.0, RuntimeError)):
        wrong = x.clone()
        wrong[0, 3, 2] = number
        with pytest.raises(error):
            layer(wrong)


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (lambda _, z: z.sum() > 0, "depends on the values of tensors in Python"),
        (lambda _, z: z.norm() < 1e9, "depends on the values of tensors in Python"),
        (lambda _, z: z.max().item() < 50, "depends on the values of tensors in Python"),
        (lambda _, z: (z > 0).sum() == 3, "depends on the values of tensors in Python"),
        (lambda _, z: (z > 0).any() and (z < 0).any().item() > 0, "depends on the values|was not"),
        (lambda _, z: (z > 50).any() | (z < 50).all(), "depends on the values of tensors"),
        (lambda _, z: (z - z.mean(0) < 50).all(), "mixes the rows of a batch in mean"),
        (lambda _, z: (z.max() - z < 500).all(), "mixes the rows of a batch in"),
        (lambda _, z: (torch.rand(()) < 2).all(), "depends on the values of tensors in Python"),
    ],
)
def test_other_questions_are_left_to_the_loop(ask: Answer, reason: str):
    layer, x = layer_of(ask), values()
    assert_left_to_the_loop(reason, layer, x)


def test_a_loop_that_ends_when_something_is_found():
    def lowered(x: Tensor, h: Tensor) -> Tensor:
        z = x + h
        while (z > -3).all():
            z = z - 1
        return torch.tanh(z)

    layer, x = cello.Recurrent(lowered, state_size=N), values()
    assert_left_to_the_loop("asks in Python for more than 1000 truth values", layer, x)
    torch.testing.assert_close(layer(x)[0], loop(lowered, x, torch.zeros(B, N)))


def test_explain_says_what_is_assumed():
    layer = layer_of(lambda _, z: not (torch.isnan(z).any() or z.abs().max() > 50))
    told = str(cello.explain(layer, values()))
    assert (
        "assumed; where it does not hold, another program runs the step, or all run in Python:"
        in told
    )
    assert re.search(r"any\(\) is False \(test_assumed.py:\d+\)", told)
    assert re.search(r"max\(\) > 50 is False \(test_assumed.py:\d+\)", told)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"reverse": True}])
@pytest.mark.parametrize("layers", [1, 2])
def test_layers_and_directions(options: dict[str, Any], layers: int):
    torch.manual_seed(0)
    layer: Any = cello.Recurrent(_of_size, N, num_layers=layers, **options).double()
    assert all(plan.engine == "native" for plan in cello.explain(layer, values()).plans)
    x, keep = values(), {"return_states": True}
    assert_close(
        evaluate(layer, x, (), "native", **keep), evaluate(layer, x, (), "reference", **keep)
    )


def _of_size(size: int) -> nn.Module:
    cell = Asks(lambda _, z: (z.abs() < 50).all(), None)
    cell.i = nn.Linear(size, H)
    return cell


def test_packed_sequences():
    layer = layer_of(lambda _, z: (z < 50).all(), None)
    packed = pack_sequence([values(k, n, N) for k, n in enumerate((6, 4, 1))])
    assert cello.explain(layer, packed).plans[0].engine == "native"
    output, _ = layer(packed)
    with cello.engine("reference"):
        expected, _ = layer(packed)
    torch.testing.assert_close(output.data, expected.data)
    # What is behind the end of a sequence is no part of it.
    x, lengths = values(), torch.tensor([6, 4, 1, 2, 3])
    x[5, 1] = 1e6
    with cello.engine("native"):
        layer(x, lengths=lengths)


def test_segments_and_second_derivatives():
    layer, x = layer_of(lambda _, z: (z < 50).all()), values()
    expected = evaluate(layer, x, (), "reference")
    with cello.engine(segment=2):
        assert_close(evaluate(layer, x, (), "native"), expected)

    def second(engine: str) -> tuple[Tensor, ...]:
        given = x.clone().requires_grad_()
        with cello.engine(engine):
            output, _, states = layer(given, return_states=True)
        loss = output.square().sum() + sum(part.sin().sum() for part in states.values())
        (gradient,) = torch.autograd.grad(loss, given, create_graph=True)
        weights = [*cell_of(layer).i.parameters(), *cell_of(layer).r.parameters()]
        return torch.autograd.grad(gradient.square().sum(), [given, *weights])

    for got, reference in zip(second("native"), second("reference"), strict=True):
        torch.testing.assert_close(got, reference)


def test_a_program_is_not_tried_at_every_call_where_that_is_in_vain():
    layer, x = layer_of(VIOLATED["max"]), values()
    in_vain = x.clone()
    in_vain[::2] = 60.0
    with torch.no_grad():
        cell_of(layer).i.weight.fill_(1.0)
    told = [cello.explain(layer, in_vain).plans[0].reasons["native"][0] for _ in range(8)]
    tried = ["in this call" in reason for reason in told]
    assert tried == [True, True, False, False, True, False, False, False]
    assert "in the calls before it was not as assumed" in told[-1]
    engines = [cello.explain(layer, x).plans[0].engine for _ in range(5)]
    assert engines == ["reference"] * 3 + ["native"] * 2
    torch.testing.assert_close(
        layer(x)[0], loop(cell_of(layer), x, torch.zeros(B, H, dtype=torch.float64))
    )
    with cello.engine("native"):  # which is never left to wait
        for _ in range(3):
            with pytest.raises(cello.EngineError):
                layer(in_vain)
        layer(x)


def test_a_checkpoint_does_the_same_again():
    layer, x = layer_of(VIOLATED["any"]), values()
    with torch.no_grad():
        cell_of(layer).i.weight.fill_(1.0)
    x[::2] = 60.0
    outputs = []
    for _ in range(4):
        given = x.clone().requires_grad_()
        output = checkpoint(lambda given: layer(given)[0], given, use_reentrant=False)
        layer(x)  # which is in vain
        outputs.append(torch.autograd.grad(output.sum(), given)[0])
    with cello.engine("reference"):
        given = x.clone().requires_grad_()
        expected = torch.autograd.grad(layer(given)[0].sum(), given)[0]
    for gradient in outputs:
        torch.testing.assert_close(gradient, expected)


OTHERWISE: dict[str, Answer] = {
    "any": lambda _, z: (z < 50).any(),
    "any of numbers": lambda _, z: z.any(),
    "all": lambda _, z: not (z > 50).all(),
    "max": lambda _, z: z.max() > -50,
    "max below": lambda _, z: not z.max() <= -50,
    "min": lambda _, z: z.min() < 50,
    "min above": lambda _, z: not z.amin() >= 50,
    "count": lambda _, z: (z < 50).sum() > 0,
    "allclose": lambda _, z: not torch.allclose(z, z + 1),
    "not": lambda _, z: torch.logical_not((z > 50).all()),
    "fewer than rows": lambda _, z: (z[:, 0] < -50).sum() < len(z),
    "not as many as there are": lambda _, z: (z < -50).sum() != z.numel(),
    "in another shape": lambda _, z: (z.view(-1) < 50).any(),
    "of a part": lambda _, z: (z[:, 1:3].t() < 50).any(),
    "of a parameter": lambda cell, _: not (cell.limit < 0).all(),
    "along an axis": lambda _, z: (z < 50).any(-1).any(),
}
"""The answers that say something of one number only."""


@pytest.mark.parametrize("name", OTHERWISE)
def test_the_other_answer(name: str):
    layer, x, state = layer_of(OTHERWISE[name]), values(), [values(2, 1, B, H)]
    plan = cello.explain(layer, x, state[0]).plans[0]
    assert plan.engine == "native", plan.reasons
    assert_close(
        evaluate(layer, x, state, "native", one), evaluate(layer, x, state, "reference", one)
    )
    torch.testing.assert_close(layer(x, state[0])[0], loop(cell_of(layer), x, state[0][0]))


@pytest.mark.parametrize("name", OTHERWISE)
@pytest.mark.parametrize("number", [60.0, -60.0, float("nan"), float("inf")])
@pytest.mark.parametrize("rows", [slice(None), slice(2, 3)])
def test_a_step_that_is_otherwise(name: str, number: float, rows: slice):
    layer, x = layer_of(OTHERWISE[name]), values()
    with torch.no_grad():
        cell_of(layer).i.weight.fill_(1.0)
    assert cello.explain(layer, x).plans[0].engine == "native"
    x[3, rows] = number
    expected = loop(cell_of(layer), x, torch.zeros(B, H, dtype=torch.float64))
    torch.testing.assert_close(layer(x)[0], expected, equal_nan=True)


@pytest.mark.parametrize("numbers", [(1e308, 1e308), (1e308, -1e308), (torch.inf, -torch.inf)])
@pytest.mark.parametrize(
    "ask", [lambda _, z: not z.sum().isnan(), lambda _, z: z.mean() == z.mean()]
)
def test_sums_beyond_what_the_dtype_holds(ask: Answer, numbers: tuple[float, float]):
    """Some are infinite, and some are no numbers: their sum depends on the order."""
    layer, x = layer_of(ask), values()
    with torch.no_grad():
        cell_of(layer).i.weight.copy_(torch.eye(H, N))
    assert cello.explain(layer, x).plans[0].engine == "native"
    for step, number in zip((2, 2, 4), (*numbers, numbers[0]), strict=True):
        x[step, int(number < 0) + 1, :2] = number
    expected = loop(cell_of(layer), x, torch.zeros(B, H, dtype=torch.float64))
    torch.testing.assert_close(layer(x)[0], expected, equal_nan=True)


def test_as_many_as_some_number_is_not_as_many_as_there_are():
    for number in (5, 1009, 4036):
        layer = layer_of(lambda _, z, n=number: (z[:, 0] < 50).sum() != n)
        reason = cello.explain(layer, values()).plans[0].reasons["native"][0]
        assert "depends on the" in reason


def test_what_a_nan_beside_undoes():
    """The largest number is NaN as soon as one is, and then no comparison holds."""
    layer, x = cello.Recurrent(_of_largest, state_size=N), values()
    assert cello.explain(layer, x).plans[0].engine == "native"
    x[2, 1, 0] = float("nan")
    expected = loop(_of_largest, x, torch.zeros(B, N, dtype=torch.float64))
    torch.testing.assert_close(layer(x)[0], expected, equal_nan=True)


def _of_largest(x: Tensor, h: Tensor) -> Tensor:
    return torch.tanh(x) if x.max() > -50 else torch.sin(x)


class Starts(nn.Module):
    """A cell that does something else while its state is zero, as an sLSTM does."""

    def __init__(self, asks_for_rows: bool = False) -> None:
        super().__init__()
        self.i, self.r = nn.Linear(N, 2 * H), nn.Linear(H, 2 * H)
        self.asks_for_rows = asks_for_rows

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
        h, n = state
        if self.asks_for_rows:
            h, n = torch.stack([h, n]).view(2, x.shape[0], -1)
        a, b = (self.i(x) + self.r(h)).chunk(2, -1)
        n = b.sigmoid() if torch.all(n == 0.0) else torch.maximum(n * b.sigmoid(), b.sigmoid())
        h = torch.tanh(a) / (n + 0.1)
        return h, (h, n)


@pytest.mark.parametrize("asks_for_rows", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_first_step_of_its_own(reverse: bool, asks_for_rows: bool):
    torch.manual_seed(0)
    cell = Starts(asks_for_rows).double()
    layer = cello.Recurrent(cell, state_size=(H, H), reverse=reverse)
    x, keep = values(), {"return_states": True}
    assert cello.explain(layer, x).plans[0].engine == "native"
    expected = evaluate(layer, x, (), "reference", **keep)
    assert_close(evaluate(layer, x, (), "native", **keep), expected)
    packed = pack_sequence([values(k, n, N) for k, n in enumerate((6, 4, 1))])
    with cello.engine("native"):
        output, state = layer(packed)
    with cello.engine("reference"):
        expected_output, expected_state = layer(packed)
    torch.testing.assert_close(output.data, expected_output.data)
    torch.testing.assert_close(state, expected_state)


def test_a_few_steps_that_are_otherwise_run_in_python():
    def clipped(x: Tensor, h: Tensor) -> Tensor:
        z = x + 0.5 * h
        if z.abs().max() > 50:
            z = z.clamp(-1, 1)
        return torch.tanh(z) + z

    layer, x = cello.Recurrent(clipped, state_size=N), values(1, 80, B, N)
    for step in (7, 30, 79):
        x[step, 2, 1] = 100.0
    start = torch.zeros(B, N, dtype=torch.float64)
    with cello.engine("native"):
        torch.testing.assert_close(layer(x)[0], loop(clipped, x, start))
        # A batch of two directions, of which each finds its own steps.
        both = cello.Recurrent(lambda size: clipped, N, state_size=N, bidirectional=True)
        forward, backward = both(x)[0].chunk(2, -1)
    torch.testing.assert_close(forward, loop(clipped, x, start))
    torch.testing.assert_close(backward.flip(0), loop(clipped, x.flip(0), start))
    x[31, 0, 0] = 100.0  # the next step: it may be so from now on
    assert_left_to_the_loop("it was not as assumed", layer, x)
    torch.testing.assert_close(layer(x)[0], loop(clipped, x, start))


@pytest.fixture
def validated(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile switches the checks of distributions off, once it is used."""
    monkeypatch.setattr(Distribution, "_validate_args", True)


class Latent(nn.Module):
    """A step of a variational network, whose distributions check their arguments, as torch's do."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.mix = nn.Linear(N + H, 2 * H), nn.Linear(N + 2 * H, H)
        self.scale = nn.Parameter(torch.zeros(H))

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = self.encode(torch.cat([x, h], -1)).chunk(2, -1)
        posterior = Normal(mean, F.softplus(deviation) + 1e-3)
        prior = Normal(torch.zeros_like(mean), self.scale.exp())
        z = posterior.mean + 0.1 * posterior.stddev
        kl = torch.distributions.kl_divergence(posterior, prior)
        chosen = Categorical(logits=h).entropy().unsqueeze(-1)
        h = torch.tanh(self.mix(torch.cat([x, h, z], -1)) + 0.01 * prior.log_prob(z) + chosen)
        return kl, h


@pytest.mark.usefixtures("validated")
def test_distributions_that_check_their_arguments(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    layer, x = cello.Recurrent(Latent().double(), state_size=H), values()
    assert cello.explain(layer, x).plans[0].engine == "native"
    assert_close(
        evaluate(layer, x, (), "native"), evaluate(layer, x, (), "reference"), tolerance=1e-10
    )
    x[2, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="Expected parameter loc"):
        layer(x)
    # What they do by default is a part of the program.
    monkeypatch.setattr(Distribution, "_validate_args", False)
    assert not layer(x)[0].isfinite().all()
    monkeypatch.setattr(Distribution, "_validate_args", True)
    with pytest.raises(ValueError, match="Expected parameter loc"):
        layer(x)


def test_samples_of_distributions_that_check_their_arguments():
    class Sampled(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(x + 0.5 * h) + Normal(0.1 * h, h.square() + 1e-3).rsample() * 1e-2

    layer, x = cello.Recurrent(Sampled(), state_size=N), values().float()
    assert cello.explain(layer, x).plans[0].engine == "native"
    torch.manual_seed(3)
    first = layer(x)[0]
    torch.manual_seed(3)
    assert torch.equal(layer(x)[0], first)
    assert not torch.equal(layer(x)[0], first)


def test_a_cell_that_makes_its_own_state_and_sets_attributes():
    class Own(Asks):
        def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:  # type: ignore[override]
            if h is None:
                h = x.new_full((len(x), H), 0.5)
            self.seen = h
            return super().forward(x, h)

    torch.manual_seed(0)
    cell = Own(lambda _, z: (z < 50).all(), None).double()
    layer, x = cello.Recurrent(cell), values()
    assert cello.explain(layer, x).plans[0].engine == "native"
    assert_close(evaluate(layer, x, (), "native"), evaluate(layer, x, (), "reference"))
    torch.testing.assert_close(cell.seen, layer(x)[0][-2])
    x[3, 1] = 1e6
    with pytest.raises(ValueError, match="the step has stopped"):
        layer(x)


def test_a_parameter_that_training_changes():
    layer, x = layer_of(lambda cell, _: cell.limit > 0), values()
    first = layer(x)[0]
    with torch.no_grad():
        cell_of(layer).limit.fill_(-1.0)
    told = assert_left_to_the_loop("it was not as assumed", layer, x)
    assert "what it asks of weights is True (test_assumed.py" in told
    expected = loop(cell_of(layer), x, torch.zeros(B, H, dtype=torch.float64))
    torch.testing.assert_close(layer(x)[0], expected)
    assert not torch.allclose(first, expected)


def test_half_precision_and_autocast():
    layer = layer_of(lambda _, z: (z < 50).all(), None).float()
    x = values().float()
    expected = layer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert cello.explain(layer, x).plans[0].engine == "native"
        torch.testing.assert_close(layer(x)[0].float(), expected, atol=0.05, rtol=0.05)
    half = copy.deepcopy(layer).half()
    assert cello.explain(half, x.half()).plans[0].engine == "native"
    torch.testing.assert_close(half(x.half())[0].float(), expected, atol=0.02, rtol=0.02)


def test_graphs_cannot_check():
    layer, x = layer_of(lambda _, z: (z < 50).all()).float(), values().float()
    with pytest.raises(cello.EngineError, match=r"which a graph cannot check: all\(\) is True"):
        cello.onnx.export(layer, (x,))


def test_complex_numbers():
    def turning(x: Tensor, h: Tensor) -> Tensor:
        h = h * torch.polar(torch.full_like(x, 0.9), x)
        if (h.abs() > 50).any():
            raise ValueError("the step has stopped")
        return h

    layer = cello.Recurrent(turning, state_size=N)
    x, start = values(), torch.complex(values(2, 1, B, N), values(3, 1, B, N))
    assert cello.explain(layer, x, start).plans[0].engine == "native"
    torch.testing.assert_close(layer(x, start)[0], loop(turning, x, start[0]))
    with pytest.raises(ValueError, match="the step has stopped"):
        layer(x, start * 100)


def assert_like_the_loop(cell: Any, x: Tensor, state: Any = None, **options: Any) -> Any:
    """Run a layer on what is usual, and then a copy of the cell and the cell itself on `x`; return both."""
    torch.manual_seed(0)
    layer = cello.Recurrent(cell, **options)
    usual = torch.zeros_like(x)
    assert cello.explain(layer, usual).plans[0].engine == "native"
    other = copy.deepcopy(layer)
    with cello.engine("reference"):
        expected = other(x, state)
    output, final = layer(x, state)
    torch.testing.assert_close(output, expected[0])
    torch.testing.assert_close(final, expected[1])
    return layer, other


SPIKES = values(1, 24, B, N) * 0.1
SPIKES[9, 1, 0] = SPIKES[17, 3, 2] = 60.0


def test_what_python_joins_to_a_question():
    """`any() | flag` with a truth value of Python, which is no tensor."""
    for flag in (True, False):

        def either(x: Tensor, h: Tensor, flag: bool = flag) -> Tensor:
            z = torch.tanh(x + h)
            return z * 0 + 1 if torch.isnan(z).any() | flag else z

        def both(x: Tensor, h: Tensor, flag: bool = flag) -> Tensor:
            z = torch.tanh(x + h)
            return z if ((z < 50) & flag).all() else z * 0.5

        for step in (either, both):
            x = values()
            layer = cello.Recurrent(step, state_size=N)
            torch.testing.assert_close(layer(x)[0], loop(step, x, x.new_zeros(B, N)))


class Changes(nn.Module):
    """A step whose other way changes what later steps read, or what a user reads afterwards."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.scale, self.n, self.log = what, 1.0, 0, []
        self.last: Any = torch.zeros(1)
        self.register_buffer("k", torch.ones(()))
        self.inner: nn.Module = nn.Tanh()

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z = x + 0.1 * h
        what = self.what
        if (z.abs() > 50).any():
            if what == "attribute":
                self.scale = 0.5
            elif what == "counter":
                self.n += 1
            elif what == "list":
                self.log.append(1)
            elif what == "buffer":
                self.k.mul_(0.5)
            elif what == "mode":
                self.eval()
            elif what == "module":
                self.inner = nn.Identity()
            elif what == "last":
                z = self.last
        z = self.inner(z) * self.scale * (0.7 if self.training else 1.0) * self.k
        if what == "last":
            self.last = z
        if what == "good" and (z.abs() < 50).all():
            self.last = z.detach()
        return z


@pytest.mark.parametrize(
    "what", ["attribute", "counter", "list", "buffer", "mode", "module", "last", "good"]
)
def test_what_the_other_way_changes(what: str):
    # The module that takes the place of another one is in no state_dict, and so not compared.
    layer, other = assert_like_the_loop(Changes(what), SPIKES, state_size=N)
    cells = [next(m for m in one.modules() if isinstance(m, Changes)) for one in (layer, other)]
    for name in ("scale", "n", "log", "training", "last", "k"):
        got, expected = (getattr(cell, name) for cell in cells)
        if isinstance(got, Tensor):
            torch.testing.assert_close(got, expected)
        else:
            assert got == expected, name


def test_integers_in_a_state():
    def counting(x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
        h, n = state
        if (x.abs() > 50).any():
            n = n + 2**30 + 1
        h = torch.tanh(x + h)
        return h, (h, n + 1)

    state = torch.zeros(1, B, N, dtype=torch.float64), torch.zeros(1, B, 1, dtype=torch.int64)
    layer = cello.Recurrent(counting, state_size=(N, 1))
    with cello.engine("reference"):
        expected = layer(SPIKES, state)
    output, final = layer(SPIKES, state)
    torch.testing.assert_close(output, expected[0])
    assert torch.equal(final[1], expected[1][1])


def test_what_a_question_guards():
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(8, N)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            if (x[:, 0] >= 8).any():
                return h * 0.5
            return torch.tanh(h + self.table(x[:, 0]))

    layer = cello.Recurrent(Looks(), state_size=N)
    x = torch.randint(0, 8, (6, B, 1))
    assert cello.explain(layer, x).plans[0].engine == "native"
    x[3, 2] = 9
    with cello.engine("reference"):
        expected = layer(x)[0]
    torch.testing.assert_close(layer(x)[0], expected)


def test_numbers_of_another_dtype():
    limit = torch.tensor(0.1, dtype=torch.float64)
    layer = cello.Recurrent(lambda x, h: x if x.max() <= limit else x - 1, state_size=1)
    x = torch.full((3, 2, 1), 0.1)
    torch.testing.assert_close(layer(x)[0], x - 1)
    layer = cello.Recurrent(
        lambda x, h: x if (x > 0).sum(dtype=torch.uint8) > 0 else x - 1, state_size=1
    )
    x = torch.ones(3, 256, 1)
    torch.testing.assert_close(layer(x)[0], x - 1)


def test_random_numbers_decide_only_what_is_an_error():
    def turns(x: Tensor, h: Tensor) -> Tensor:
        z = torch.tanh(0.5 * h + x + torch.rand_like(h))
        return -z if (z > 0.9).any() else z

    def asserts(x: Tensor, h: Tensor) -> Tensor:
        z = torch.tanh(0.5 * h + x + torch.rand_like(h))
        if (z > 2).any():
            raise RuntimeError("too large")
        return z

    x = values()
    assert_left_to_the_loop(
        "draws random numbers, and asks in Python", cello.Recurrent(turns, state_size=N), x
    )
    layer = cello.Recurrent(asserts, state_size=N)
    assert cello.explain(layer, x).plans[0].engine == "native"
    for reentrant in (False, True):
        torch.manual_seed(0)
        first = [layer(x)[0] for _ in range(3)]
        torch.manual_seed(0)
        given = x.clone().requires_grad_()
        again = [
            checkpoint(lambda x: layer(x)[0], given, use_reentrant=reentrant) for _ in range(3)
        ]
        assert all(map(torch.equal, first, again))


def test_a_declined_call_leaves_the_generator_as_it_was():
    def noisy(x: Tensor, h: Tensor) -> Tensor:
        z = F.dropout(torch.tanh(x + h), 0.5)
        torch._assert((x.abs() < 50).all(), "too large")
        return z

    def tolerant(x: Tensor, h: Tensor) -> Tensor:
        z = F.dropout(torch.tanh(x + h), 0.5)
        return z * 0.5 if (x.abs() > 50).any() else z

    layer = cello.Recurrent(noisy, state_size=N)
    layer(values())
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with cello.engine("native"), pytest.raises(cello.EngineError):
        layer(SPIKES)
    assert torch.equal(torch.rand(3), expected)
    layer = cello.Recurrent(tolerant, state_size=N)
    found = []
    for _ in range(5):
        torch.manual_seed(7)
        found.append(layer(SPIKES)[0])
    assert all(torch.equal(found[0], one) for one in found)


def test_many_questions_are_traced_few_times(monkeypatch):
    def asks(x: Tensor, h: Tensor) -> Tensor:
        z = x + h
        for k in range(12):
            if (z > k - 100).any():
                z = torch.tanh(z)
        return z

    traces = []
    original = Tracer.trace
    monkeypatch.setattr(
        Tracer, "trace", lambda self, *a, **k: traces.append(1) or original(self, *a, **k)
    )
    layer, x = cello.Recurrent(asks, state_size=N), values()
    assert cello.explain(layer, x).plans[0].engine == "native"
    assert len(traces) <= 6
    torch.testing.assert_close(layer(x)[0], loop(asks, x, x.new_zeros(B, N)))
