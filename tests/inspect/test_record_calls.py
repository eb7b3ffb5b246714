"""Recording a layer inside a model: each call, with the results and gradients that the model has."""

from __future__ import annotations

import copy
import functools
import io

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import cello

T, B, F, H = 6, 3, 5, 4


class Model(nn.Module):
    """Two calls of one layer, an embedding before and a linear layer behind."""

    def __init__(self, calls: int = 1, **options: object) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, F)
        self.lstm = cello.nn.LSTM(F, H, **options)  # type: ignore[arg-type]
        self.linear = nn.Linear(H * self.lstm.num_directions, 2)
        self.calls = calls

    def forward(self, ids: torch.Tensor, lengths: list[int] | None = None) -> torch.Tensor:
        vectors = self.embedding(ids)
        total = torch.zeros(())
        for k in range(self.calls):
            output, _ = self.lstm(vectors + k, lengths=lengths)
            total = total + self.linear(output).square().sum()
        return total


IDS = torch.randint(0, 9, (T, B), generator=torch.Generator().manual_seed(0))


def test_each_call_is_recorded_as_by_itself():
    model = Model(2, num_layers=2, bidirectional=True)
    expected = model(IDS, [6, 2, 4])
    with cello.record(model.lstm) as calls:
        assert len(calls) == 0
        found = model(IDS, [6, 2, 4])
        assert len(calls) == 2
        model(IDS[:3])
    torch.testing.assert_close(found, expected)
    assert found.grad_fn is not None
    assert len(calls) == 4
    vectors = model.embedding(IDS).detach()
    for k, (x, given) in enumerate(
        [
            (vectors, [6, 2, 4]),
            (vectors + 1, [6, 2, 4]),
            (vectors[:3], None),
            (vectors[:3] + 1, None),
        ]
    ):
        alone = cello.record(model.lstm, x, lengths=given)
        assert [*calls[k]] == [*alone]
        for name in alone:
            torch.testing.assert_close(calls[k][name], alone[name])
        torch.testing.assert_close(calls[k].output, alone.output)
        torch.testing.assert_close(calls[k].state, alone.state)
        assert torch.equal(calls[k].mask, alone.mask)
        assert calls[k].gradients is None
        assert not calls[k].output.requires_grad
    assert [one.title for one in calls[:2]] == [alone.title] * 2
    assert str(calls).startswith("call 0: LSTM(5, 4, num_layers=2, bidirectional=True)\n")


@pytest.mark.parametrize("form", ["packed", "one", "batch_first"])
def test_forms(form: str):
    layer = cello.nn.GRU(F, H, batch_first=form == "batch_first")
    x = torch.randn(T, F) if form == "one" else torch.randn(B, T, F)
    if form == "packed":
        x = pack_padded_sequence(x, torch.tensor([6, 2, 4]), True, enforce_sorted=False)
    h_0 = torch.randn(1, H) if form == "one" else torch.randn(1, B, H)
    with cello.record(layer) as calls:
        output, _, states = layer(x, h_0, return_states=True)
    alone = cello.record(layer, x, h_0)
    for name in alone:
        one, other = calls[0][name], alone[name]
        assert isinstance(one, PackedSequence) == (form == "packed")
        torch.testing.assert_close(*(r.data if form == "packed" else r for r in (one, other)))
    torch.testing.assert_close(calls[0]["h"], states["h"])
    assert isinstance(output, PackedSequence) == (form == "packed")


def test_an_own_cell_and_inference_mode():
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(F + H, H)

        def forward(self, x, h):
            gate = torch.sigmoid(self.linear(torch.cat([x, h], -1)))
            return gate * h + (1 - gate)

    layer, x = cello.Recurrent(Gate(), state_size=H), torch.randn(T, B, F)
    with torch.inference_mode(), cello.record(layer) as calls:
        layer(x)
    h = calls[0]["h"]
    before = torch.cat([torch.zeros(1, B, H), h[:-1]])
    gate = calls[0]["gate"]
    torch.testing.assert_close(h, gate * before + (1 - gate))
    assert not h.is_inference()


def test_gradients_of_the_models_own_loss():
    model = Model(bidirectional=True)
    with cello.record(model.lstm, gradients=True) as calls:
        model(IDS, [6, 2, 4]).backward()
    weights = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model(IDS, [6, 2, 4]).backward()  # on whatever engine is best
    for name, p in model.named_parameters():
        torch.testing.assert_close(weights[name], p.grad, atol=1e-5, rtol=1e-4)
    vectors = model.embedding(IDS).detach()
    alone = cello.record(
        model.lstm, vectors, lengths=[6, 2, 4], gradients=True,
        of=lambda output, _: model.linear(output).square().sum(),
    )  # fmt: skip
    slopes, expected = calls[0].gradients, alone.gradients
    assert {*slopes} == {*expected}
    for name in expected:
        torch.testing.assert_close(slopes[name], expected[name])
    torch.testing.assert_close(calls[0].reach("c"), alone.reach("c"), equal_nan=True)


def test_two_losses_add_up_and_a_call_that_none_reaches_has_zeros():
    layer, x = cello.nn.RNN(F, H), torch.randn(T, B, F, requires_grad=True)
    with cello.record(layer, gradients=True) as calls:
        output, _ = layer(x)
        layer(2 * x)
        output[-1].sum().backward(retain_graph=True)
        output[-1].sum().backward()
    alone = cello.record(layer, x, gradients=True)
    for name in alone.gradients:
        torch.testing.assert_close(calls[0].gradients[name], 2 * alone.gradients[name])
        assert bool((calls[1].gradients[name] == 0).all())
    torch.testing.assert_close(x.grad, 2 * alone.gradients["input"])


def test_random_numbers_and_buffers_are_those_of_the_model():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x, h):
            self.count += 1
            return x + h

    layer = cello.Recurrent(Counting(), state_size=H)
    with cello.record(layer):
        layer(torch.randn(T, B, H))
    assert layer.cells["l0"].count == T
    model = Model(num_layers=2, dropout=0.5)
    torch.manual_seed(3)
    with cello.record(model.lstm) as calls:
        loss = model(IDS)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    with cello.engine("reference"):
        torch.testing.assert_close(model(IDS), loss)
    assert torch.equal(torch.get_rng_state(), after)
    assert len(calls) == 1


def test_the_layer_is_as_before_when_the_statement_ends():
    model = Model()
    statement = cello.record(model.lstm)
    calls = statement.__enter__()
    model(IDS)
    error = ArithmeticError()
    assert not statement.__exit__(ArithmeticError, error, None)  # the error goes on
    assert "forward" not in vars(model.lstm)
    model(IDS)
    assert len(calls) == 1
    assert cello.explain(model.lstm, torch.randn(T, B, F)).plans[0].engine != "record"
    with cello.record(model.lstm):
        with (
            pytest.raises(RuntimeError, match="this LSTM is recorded already"),
            cello.record(model.lstm),
        ):
            pass
        with pytest.raises(RuntimeError, match=r"expected|size"):
            model.lstm(torch.randn(T, B, F + 1))
    with cello.record(model.lstm) as again:
        model(IDS)
    assert len(again) == 1


def copied(model: Model) -> Model:
    return copy.deepcopy(model)


def loaded(model: Model) -> Model:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize("twin_of", [copied, loaded])
def test_a_copy_has_its_own_weights_and_is_not_recorded(twin_of):
    model = Model()
    with cello.record(model.lstm) as calls:
        twin = twin_of(model)
        for weight in twin.lstm.parameters():
            nn.init.zeros_(weight)
        x = torch.randn(T, B, F)
        assert (twin.lstm(x)[0] == 0).all()
        assert (model.lstm(x)[0] != 0).all()
    assert len(calls) == 1
    with cello.record(twin.lstm) as own:
        twin(IDS)
    assert len(own) == 1
    # A forward of the user's own is kept, as torch keeps it.
    model.lstm.forward = functools.partial(model.lstm.forward, hx=None)
    assert "forward" in vars(copy.deepcopy(model.lstm))


def test_a_compiled_model_is_recorded():
    layer = cello.nn.GRU(F, H)
    compiled, x = torch.compile(layer, backend="eager"), torch.randn(T, B, F)
    with torch.no_grad():
        expected = compiled(x)[0]
        with cello.record(layer) as calls:
            torch.testing.assert_close(compiled(x)[0], expected)
        torch.testing.assert_close(compiled(x)[0], expected)
    torch.testing.assert_close(calls[0]["h"], expected)
    assert len(calls) == 1


def test_what_is_refused():
    layer, x = cello.nn.GRU(F, H), torch.randn(T, B, F)
    with cello.record(layer) as calls:
        pass
    with pytest.raises(
        IndexError, match=r"recording 0: GRU\(5, 4\) was called 0 times in the with"
    ):
        calls[0]
    assert str(calls) == "GRU(5, 4): no calls"
    with cello.record(layer) as calls:
        layer(x)
    with pytest.raises(IndexError, match=r"recording 1: .* was called once in the with statement"):
        calls[1]
    for name, value in (
        ("hx", torch.zeros(1, B, H)),
        ("lengths", [1]),
        ("of", lambda o, s: o.sum()),
    ):
        with pytest.raises(TypeError, match=f"{name} needs an input"):
            cello.record(layer, gradients=True, **{name: value})
    with (
        pytest.raises(ValueError, match=r"no backward\(\) inside the with statement has reached"),
        cello.record(layer, gradients=True),
    ):
        layer(x)
    with pytest.raises(TypeError, match=r"layer must be a layer of cello\.nn, got GRU"):
        cello.record(nn.GRU(F, H))
