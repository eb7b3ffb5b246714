"""Hooks on a cell, on a part of it, on a layer and on all modules see what they see in a loop by hand."""

import pytest
import torch
from torch import nn
from torch.nn.modules import module as all_modules

import cello

F, H = 3, 4
X = torch.randn(4, 2, F, generator=torch.Generator().manual_seed(0))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.n = nn.Linear(F + H, H), nn.Linear(F + H, H)

    def forward(self, x, h):
        f = torch.sigmoid(self.f(torch.cat([x, h], 1)))
        return f * h + (1 - f) * torch.tanh(self.n(torch.cat([x, f * h], 1)))


CELLS = {
    "own": (Gated, lambda cell: cell),
    "a part of it": (Gated, lambda cell: cell.n),
    "nn.GRUCell": (lambda: nn.GRUCell(F, H), lambda cell: cell),
    "nn.LSTMCell": (lambda: nn.LSTMCell(F, H), lambda cell: cell),
    "cello.nn.GRUCell": (lambda: cello.nn.GRUCell(F, H), lambda cell: cell),
    "hard gates": (
        lambda: cello.nn.LSTMCell(F, H, gate_activation="hardsigmoid"),
        lambda cell: cell,
    ),
}


def half(returned):
    if isinstance(returned, tuple):
        return tuple(None if part is None else part * 0.5 for part in returned)
    return returned * 0.5


def register(kind, module, log):
    """Register a hook that writes down its call."""

    def seen(*_):
        log.append(kind)

    def halved(values):
        log.append(kind)
        return half(values)

    def of_module(called, *_):
        if called is module:
            log.append(kind)

    return {
        "forward": lambda: module.register_forward_hook(seen),
        "forward with kwargs": lambda: module.register_forward_hook(seen, with_kwargs=True),
        "forward that replaces": lambda: module.register_forward_hook(
            lambda m, a, out: halved(out)
        ),
        "forward, always": lambda: module.register_forward_hook(seen, always_call=True),
        "pre": lambda: module.register_forward_pre_hook(seen),
        "pre with kwargs": lambda: module.register_forward_pre_hook(seen, with_kwargs=True),
        "pre that replaces": lambda: module.register_forward_pre_hook(
            lambda m, a: (halved(a[0]), *a[1:]), prepend=True
        ),
        "backward": lambda: module.register_full_backward_hook(seen),
        "backward that replaces": lambda: module.register_full_backward_hook(
            lambda m, grad_in, grad_out: halved(grad_in)
        ),
        "backward pre": lambda: module.register_full_backward_pre_hook(seen),
        "backward pre that replaces": lambda: module.register_full_backward_pre_hook(
            lambda m, grad_out: halved(grad_out), prepend=True
        ),
        "all forward": lambda: all_modules.register_module_forward_hook(of_module),
        "all forward, always": lambda: all_modules.register_module_forward_hook(
            of_module, always_call=True
        ),
        "all pre": lambda: all_modules.register_module_forward_pre_hook(of_module),
        "all backward": lambda: all_modules.register_module_full_backward_hook(of_module),
        "all backward pre": lambda: all_modules.register_module_full_backward_pre_hook(of_module),
    }[kind]()


KINDS = [
    "forward",
    "forward with kwargs",
    "forward that replaces",
    "forward, always",
    "pre",
    "pre with kwargs",
    "pre that replaces",
    "backward",
    "backward that replaces",
    "backward pre",
    "backward pre that replaces",
    "all forward",
    "all forward, always",
    "all pre",
    "all backward",
    "all backward pre",
]


def by_hand(cell, x):
    is_pair = isinstance(cell, nn.LSTMCell)
    state = (torch.zeros(2, H),) * 2 if is_pair else torch.zeros(2, H)
    outputs = []
    for row in x:
        state = cell(row, state)
        outputs.append(state[0] if is_pair else state)
    return torch.stack(outputs)


def observed(run, module, log):
    """How often the hook was called, with the output and every gradient."""
    log.clear()
    module.zero_grad()
    x = X.clone().requires_grad_()
    output = run(x)
    output.sin().sum().backward()
    return len(log), [output.detach(), x.grad, *(p.grad.clone() for p in module.parameters())]


@pytest.mark.parametrize("known", [False, True], ids=["first call", "later call"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CELLS)
def test_a_cell(name, kind, known):
    make, part_of = CELLS[name]
    cell, log = make(), []
    layer = cello.Recurrent(cell)
    if known:
        layer(X)[0].sum().backward()  # compiled, as no hook is there yet
    handle = register(kind, part_of(cell), log)
    try:
        count, ours = observed(lambda x: layer(x)[0], cell, log)
        expected_count, expected = observed(lambda x: by_hand(cell, x), cell, log)
        running = cello.explain(layer, X).running
    finally:
        handle.remove()
    assert count == expected_count == len(X)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert "on 'reference'" in running
    assert "not 'native': " in running
    assert "to see every step" in running
    with cello.engine(strict=True):  # it is compiled again without the hook
        layer(X)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "replaces" not in kind])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_a_layer(name, kind):
    results = []
    for namespace in (nn, cello.nn):
        torch.manual_seed(0)
        layer, log = getattr(namespace, name)(F, H), []
        layer(X)
        handle = register(kind, layer, log)
        try:
            results.append(observed(lambda x, layer=layer: layer(x)[0], layer, log))
            if namespace is cello.nn:
                log.clear()
                with torch.set_grad_enabled("backward" in kind):
                    layer.step(X[0].clone().requires_grad_())[0].sum()
                assert len(log) == ("backward" not in kind)
        finally:
            handle.remove()
    (expected_count, expected), (count, ours) = results
    assert count == expected_count == 1
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_hooks_do_not_see_what_is_no_step():
    """A trial, and the steps that show what an unknown initial state is."""

    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRUCell(F, H)

        def forward(self, x, h=None):
            return self.cell(x, h)

    log = []
    for lengths, steps in (([4, 4], 4), ([4, 0], 4), ([0, 0], 0)):
        log.clear()
        cell = Optional()
        handles = [
            cell.cell.register_forward_hook(lambda *_: log.append("own")),
            all_modules.register_module_forward_hook(lambda m, *_: log.append(m)),
        ]
        try:
            layer = cello.Recurrent(cell)
            layer(X, lengths=lengths)
        finally:
            for handle in handles:
                handle.remove()
        assert log.count("own") == log.count(cell.cell) == log.count(cell) == steps
        assert {type(m) for m in log if m != "own"} <= {Optional, nn.GRUCell, cello.Recurrent}
