"""Whoever writes into what a layer returned changes nothing else: not the state, an output or hx."""

import pytest
import torch
from torch import nn

import cello

F, H = 3, 4
X = torch.randn(4, 2, F, generator=torch.Generator().manual_seed(0))


class Twice(nn.Module):
    """Returns one tensor as its output and as both parts of its state."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(F, H)

    def forward(self, x, state):
        h = self.cell(x, state[0] + state[1])
        return h, (h, h)


class Through(Twice):
    """Hands the second part of its state through."""

    def forward(self, x, state):
        h = self.cell(x, state[0])
        return h, (h, state[1])


class Expanded(cello.Cell):
    """Starts at a parameter, expanded over the batch."""

    state_sizes = {"h": H}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.cell, self.start = nn.GRUCell(F, H), nn.Parameter(torch.zeros(H))

    def initial_state(self, batch_size, *, dtype, device):
        return (self.start.expand(batch_size, -1),)

    def forward(self, x, state):
        h = self.cell(x, state[0])
        return h, (h,)


LAYERS = {
    **{
        f"{kind} {options}": lambda kind=kind, options=options: getattr(cello.nn, kind)(
            F, H, **options
        )
        for kind in ("RNN", "GRU", "LSTM")
        for options in (
            {},
            {"num_layers": 2},
            {"learn_initial_state": True},
            {"bidirectional": True, "merge": "none"},
        )
    },
    "LSTMCell": lambda: cello.Recurrent(nn.LSTMCell(F, H)),
    "Twice": lambda: cello.Recurrent(Twice(), state_size=(H, H)),
    "Through": lambda: cello.Recurrent(Through(), state_size=(H, H)),
    "Expanded": lambda: cello.Recurrent(Expanded()),
}


def leaves(nested):
    if isinstance(nested, torch.Tensor):
        return [nested]
    items = nested.values() if isinstance(nested, dict) else nested
    return [leaf for item in items for leaf in leaves(item)]


def calls_of(layer):
    """Each way to call a layer: the tensors that it was given, and those that it returned."""
    layer(X)  # so that a cell is known
    for steps in (1, 4):
        x = X[:steps]
        for options in (
            {},
            {"return_states": True},
            {"return_states": "all"},
            {"lengths": [0, steps]},
            {"lengths": [0, 0]},
        ):
            for _ in range(2):  # a call like the one before it goes a shorter way
                yield options, [*layer.parameters()], leaves(layer(x, **options))
            with torch.no_grad():
                hx = layer(x)[1]
            given = leaves(hx)
            yield options, [*layer.parameters(), *given], leaves(layer(x, hx, **options))
        yield "unbatched", [*layer.parameters()], leaves(layer(x[:, 0]))
    if not layer.bidirectional:
        for x in (X[0], X[0, 0]):
            state = None
            for _ in range(3):
                given = [] if state is None else leaves(state)
                output, state = layer.step(x, state)
                yield "step", [*layer.parameters(), *given], leaves((output, state))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("engine", [None, "reference", "vendor"])
@pytest.mark.parametrize("name", LAYERS)
def test_nothing_that_is_returned_shares_memory(name, engine, grad):
    layer = LAYERS[name]()
    if engine == "vendor" and (isinstance(layer, cello.Recurrent) or "LSTM" in name):
        return  # which that engine does not run, or not with the states of all steps
    with torch.set_grad_enabled(grad), cello.engine(engine):
        for how, given, returned in calls_of(layer):
            for number, tensor in enumerate(returned):
                others = [*given, *returned[:number], *returned[number + 1 :]]
                before = [other.detach().clone() for other in others]
                tensor.detach().fill_(7.0)
                assert all(map(torch.equal, others, before)), (how, number)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_a_state_of_a_step_may_be_reset_in_place(kind, layers):
    """`h[:, done] = 0` between steps, with gradients: as by a product with a mask."""
    torch.manual_seed(0)
    layer = getattr(cello.nn, kind)(F, H, layers)
    done = torch.tensor([True, False])
    gradients = []
    for in_place in (True, False):
        layer.zero_grad()
        state, total = None, torch.zeros(())
        for x in X:
            output, state = layer.step(x, state)
            parts = state if isinstance(state, tuple) else (state,)
            if in_place:
                for part in parts:
                    part[:, done] = 0
            else:
                parts = tuple(part * ~done[None, :, None] for part in parts)
            state = parts if isinstance(state, tuple) else parts[0]
            total = total + output.sin().sum()
        total.backward()
        gradients.append([p.grad.clone() for p in layer.parameters()])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected)


def test_states_of_all_steps_may_be_written_into_on_every_engine():
    layer = cello.nn.GRU(F, H)
    for engine in ("vendor", "reference"):
        with cello.engine(engine):
            output, _, states = layer(X, return_states=True)
            before = output.detach().clone()
            states["h"][:, 0] = 0
            assert torch.equal(output, before)
            output, _ = cello.nn.RNN(F, H, bidirectional=True, merge="none")(X)
            output[0][:, 0] = 0  # a view alone may be written into, one of several may not
