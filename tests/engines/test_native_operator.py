"""A scan as an operator and as a function that autograd differentiates: what torch asks of both."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import cello
from cello.engines.native.kernel import NativeKernel
from cello.engines.programs import scan as scan_module

SHAPES = {"padded": {}, "lengths": {"lengths": [5, 2, 4]}}


class Leaky(nn.Module):
    """A foreign cell: two products, and a rate for each unit."""

    def __init__(self, features: int, size: int):
        super().__init__()
        self.hidden_size = size
        self.x, self.h = nn.Linear(features, size), nn.Linear(size, size, bias=False)
        self.rate = nn.Parameter(torch.rand(size))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return h + torch.sigmoid(self.rate) * (torch.tanh(self.x(x) + self.h(h)) - h)


LAYERS = {
    "LSTM": lambda: cello.nn.LSTM(3, 4),
    "GRU": lambda: cello.nn.GRU(3, 4, bidirectional=True),
    "foreign": lambda: cello.Recurrent(Leaky(3, 4)),
}


@pytest.fixture(params=LAYERS)
def layer(request) -> nn.Module:
    torch.manual_seed(0)
    return LAYERS[request.param]().double()


def inputs() -> Tensor:
    return torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(1)).double()


def tensors(result: Any) -> list[Tensor]:
    output, state = result[:2]
    return [output, *(state if isinstance(state, tuple) else (state,))]


def run(layer: nn.Module, x: Tensor, engine: str | None = "native", **options: Any) -> list[Tensor]:
    with cello.engine(engine):
        return tensors(layer(x, **options))


def total(results: list[Tensor]) -> Tensor:
    return sum((k + 1) * part.sin().sum() for k, part in enumerate(results))


def assert_same(given: Any, expected: Any) -> None:
    for a, b in zip(given, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.fixture
def calls(monkeypatch) -> list[tuple[Any, ...]]:
    """Send every scan through the operator; collect the arguments of its calls."""
    seen = []

    def operator(kernel, program, layout, descending, *groups):
        arguments = kernel.text, *groups, layout.sizes_tensor, layout.rows, descending
        seen.append(arguments)
        return real(kernel, program, layout, descending, *groups)

    real = scan_module.scan_operator
    monkeypatch.setattr(scan_module, "scan_operator", operator)
    monkeypatch.setattr(scan_module, "have_memory", lambda tensors: False)
    return seen


# The operator


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("needs_gradient", [True, False], ids=["training", "inference"])
def test_opcheck(layer, needs_gradient: bool, options: dict[str, Any], calls):
    x = inputs().requires_grad_(needs_gradient)
    with nullcontext() if needs_gradient else torch.no_grad():
        run(layer, x, **options)
    assert calls
    text, *groups, batch_sizes, rows, descending = calls[-1]
    groups = [[t.detach().requires_grad_(needs_gradient) for t in group] for group in groups]
    arguments = text, *groups, batch_sizes, rows, descending
    torch.library.opcheck(torch.ops.cello.scan.default, arguments)
    if not needs_gradient:
        return
    kernel = NativeKernel.read(text)
    found = torch.ops.cello.scan(*arguments)
    count = len(kernel.widths)
    results, saved = found[:count], found[count + len(groups[2]) :]
    kept = [r for r, is_read in zip(results, kernel.reads, strict=True) if is_read] + saved
    if (
        options
    ):  # the rows of each step are numbers to the second derivatives, and unknown to a trace
        groups = [[t.detach() for t in group] for group in groups]
    for given in ([True] * (count + len(groups[2])), [True] + [False] * len(groups[2])):
        seeds = [torch.randn_like(t) for t, is_given in zip(found, given, strict=False) if is_given]
        torch.library.opcheck(
            torch.ops.cello.scan_backward.default,
            (text, seeds, given, *groups, [t.detach() for t in kept], *arguments[4:]),
        )


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_the_operator_gives_the_same_bits_as_the_direct_call(layer, options, monkeypatch):
    x = inputs().requires_grad_()
    leaves = [x, *layer.parameters()]
    direct = run(layer, x, **options)
    first = torch.autograd.grad(total(direct), leaves)
    monkeypatch.setattr(scan_module, "have_memory", lambda tensors: False)
    through = run(layer, x, **options)
    for a, b in zip(
        [*direct, *first], [*through, *torch.autograd.grad(total(through), leaves)], strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_second_derivatives_through_the_operator(layer, options, calls):
    x = inputs().requires_grad_()
    leaves = [x, *layer.parameters()]
    found = []
    for engine in ("native", "reference"):
        results = run(layer, x, engine, **options)
        first = torch.autograd.grad(total(results), leaves, create_graph=True)
        found.append(torch.autograd.grad(total(list(first)), leaves))
    assert calls
    assert_same(*found)


def test_third_derivatives_through_the_operator(calls):
    torch.manual_seed(0)
    layer, x = cello.nn.GRU(3, 4).double(), inputs().requires_grad_()
    found = []
    for engine in ("native", "reference"):
        value = total(run(layer, x, engine))
        for _ in range(3):
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            value = gradient.sin().sum()
        found.append([gradient])
    assert_same(*found)


def test_second_derivatives_without_the_cell_are_refused(calls, monkeypatch):
    layer, x = cello.nn.GRU(3, 4).double(), inputs().requires_grad_()
    (first,) = torch.autograd.grad(total(run(layer, x)), x, create_graph=True)
    monkeypatch.setattr("cello.engines.programs.operator._programs", {})
    with pytest.raises(RuntimeError, match=r"second derivatives .* need the cell"):
        first.sum().backward()


def test_a_gradient_that_was_not_traced_is_refused(calls):
    layer, x = cello.nn.GRU(3, 4).double(), inputs()
    run(layer, x)
    text, rows, *rest = calls[-1]
    found = torch.ops.cello.scan(text, [rows[0].requires_grad_()], *rest)
    with pytest.raises(RuntimeError, match="did not need a gradient that needs one now"):
        found[0].sum().backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_no_forward_mode_through_the_operator(calls):
    layer, x = cello.nn.GRU(3, 4).double(), inputs()
    run(layer, x)
    text, rows, *rest = calls[-1]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(rows[0], torch.ones_like(rows[0]))
        with pytest.raises(Exception, match=r"forward.?(mode|AD)|jvp"):
            torch.ops.cello.scan(text, [dual], *rest)


def test_tensors_that_do_not_fit_a_program_are_refused(calls):
    layer, x = cello.nn.GRU(3, 4).double(), inputs()
    with torch.no_grad():
        run(layer, x)
    text, rows, statics, states, sizes, count, descending = calls[-1]
    operator = torch.ops.cello.scan
    for wrong in (
        (text, [rows[0][:, :2]], statics, states, sizes, count, descending),
        (text, rows, [statics[0].t(), *statics[1:]], states, sizes, count, descending),
        (text, rows, statics, states, sizes, count - 1, descending),
        (text, rows, statics, [states[0].float()], sizes, count, descending),
        (text, rows, statics, states, torch.tensor([3, 4, 8]), count, descending),
        (text, rows, statics, states, torch.tensor([3, 3]), count, descending),
    ):
        with pytest.raises(ValueError, match="scan"):
            operator(*wrong)
    with pytest.raises(ValueError, match="another version"):
        operator('{"format":0}', rows, statics, states, sizes, count, descending)


def test_what_only_looks_like_memory_goes_through_the_operator():
    torch.manual_seed(0)
    layer, x = cello.nn.GRU(3, 4).double(), inputs()
    negative = torch._neg_view(x)
    assert negative.is_neg()
    assert_same(run(layer, negative), run(layer, -x, "reference"))

    class Tagged(Tensor):
        pass

    given = run(layer, x.as_subclass(Tagged))
    assert_same([t.as_subclass(Tensor) for t in given], run(layer, x, "reference"))
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = run(layer, mode.from_tensor(x))
    assert [t.shape for t in fake] == [t.shape for t in given]


# Derivatives


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_gradcheck(layer, options):
    run(layer, inputs())
    names = [name for name, _ in layer.named_parameters()]

    def function(x: Tensor, *weights: Tensor) -> list[Tensor]:
        given = dict(zip(names, weights, strict=True))
        with cello.engine("native"):
            return tensors(torch.func.functional_call(layer, given, (x,), options))

    leaves = [inputs().requires_grad_(), *layer.parameters()]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("through", ["direct", "operator"])
def test_second_derivatives_where_one_input_depends_on_another(through, request):
    """The state starts from a weight, and so does the input: no path may count twice."""
    if through == "operator":
        request.getfixturevalue("calls")
    torch.manual_seed(0)
    layer = cello.nn.GRU(3, 4).double()
    scale = torch.randn(3, dtype=torch.float64, requires_grad=True)
    found = []
    for engine in ("native", "reference"):
        x = (inputs() * scale).tanh()
        h = layer.weight_hh_l0[:3].tanh()[None] * x.mean()
        with cello.engine(engine):
            results = tensors(layer(x, h))
        leaves = [scale, layer.weight_hh_l0]
        first = torch.autograd.grad(total(results), leaves, create_graph=True)
        found.append(torch.autograd.grad(total(list(first)), leaves))
    assert_same(*found)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_forward_mode(layer):
    x, direction = inputs(), torch.randn(5, 3, 3, dtype=torch.float64)
    found = []
    for engine in (None, "reference"):
        with cello.engine(engine):
            found.append(torch.func.jvp(lambda x: tensors(layer(x)), (x,), (direction,))[1])
            with forward_ad.dual_level():
                results = tensors(layer(forward_ad.make_dual(x, direction)))
                found.append([forward_ad.unpack_dual(part).tangent for part in results])
    step = 1e-6
    ahead, back = run(layer, x + step * direction), run(layer, x - step * direction)
    numerical = [(a - b) / (2 * step) for a, b in zip(ahead, back, strict=True)]
    for tangents in found:
        for given, expected in zip(tangents, numerical, strict=True):
            torch.testing.assert_close(given, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("vectorize", [False, True])
def test_jacobian(layer, vectorize: bool):
    x = inputs()
    found = []
    for engine in ("native", "reference"):
        with cello.engine(engine):
            found.append(
                torch.autograd.functional.jacobian(
                    lambda x: tuple(tensors(layer(x))), x, vectorize=vectorize
                )
            )
    assert_same(*found)


TRANSFORMS = {
    "vmap": lambda f, x, v: torch.func.vmap(f)(torch.stack([x, v])),
    "gradient": lambda f, x, v: torch.func.grad(lambda x: f(x).sin().sum())(x),
    "gradients": lambda f, x, v: torch.func.vmap(torch.func.grad(lambda x: f(x).sin().sum()))(
        torch.stack([x, v])
    ),
    "jvp": lambda f, x, v: torch.func.jvp(f, (x,), (v,))[1],
    "jacobian": lambda f, x, v: torch.func.jacrev(f)(x),
    "hessian": lambda f, x, v: torch.func.hessian(lambda x: f(x[:2]).sin().sum())(x),
    "twice": lambda f, x, v: torch.func.grad(
        lambda x: torch.func.grad(lambda x: f(x).sin().sum())(x).sin().sum()
    )(x),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_of_torch_func(layer, transform, dtype: torch.dtype):
    layer.to(dtype)
    x, v = inputs().to(dtype), torch.randn(5, 3, 3).to(dtype)
    layer(x)
    given = transform(lambda x: layer(x)[0], x, v)
    with cello.engine("reference"):
        expected = transform(lambda x: layer(x)[0], x, v)
    torch.testing.assert_close(given, expected)


# Graphs


def test_a_checkpoint_reads_what_was_saved_once(layer):
    leaves = [inputs().requires_grad_(), *layer.parameters()]
    results = checkpoint(run, layer, leaves[0], use_reentrant=False)
    given = torch.autograd.grad(total(results), leaves)
    expected = torch.autograd.grad(total(run(layer, leaves[0], "reference")), leaves)
    assert_same(given, expected)


def test_a_graph_that_is_kept_may_be_walked_twice(layer):
    x = inputs().requires_grad_()
    loss = total(run(layer, x))
    first = torch.autograd.grad(loss, [x, *layer.parameters()], retain_graph=True)
    second = torch.autograd.grad(loss, [x, *layer.parameters()])
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("what", ["x", "weight", "output"])
def test_a_write_into_what_the_backward_pass_reads_is_caught(what: str):
    torch.manual_seed(0)
    layer = cello.nn.LSTM(3, 4).double()
    x = inputs()
    output, *_ = run(layer, x)
    with torch.no_grad():
        {"x": x, "weight": layer.weight_hh_l0, "output": output.detach()}[what].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_what_is_frozen_gets_no_gradient_and_none_is_computed(monkeypatch):
    torch.manual_seed(0)
    layer = cello.nn.LSTM(3, 4).double()
    expected = run(layer, inputs(), "reference")
    gradients = torch.autograd.grad(total(expected), layer.parameters())
    layer.weight_ih_l0.requires_grad_(False)
    layer.bias_hh_l0.requires_grad_(False)
    real, seen = NativeKernel.backward, []

    def backward(self, *args):
        call, found = real(self, *args)
        seen.append([gradient is not None for gradient in found])
        return call, found

    monkeypatch.setattr(NativeKernel, "backward", backward)
    total(run(layer, inputs())).backward()
    names = [name for name, _ in layer.named_parameters()]
    for (name, weight), gradient in zip(layer.named_parameters(), gradients, strict=True):
        if weight.requires_grad:
            torch.testing.assert_close(weight.grad, gradient)
        else:
            assert weight.grad is None, name
    assert sum(seen[0]) == len(names) - 2 + 2  # two are frozen, and there are two states
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    x = inputs().requires_grad_()
    (given,) = torch.autograd.grad(total(run(layer, x)), x)
    torch.testing.assert_close(given, torch.autograd.grad(total(run(layer, x, "reference")), x)[0])


# Threads, processes, signals


def test_several_python_threads_at_once():
    torch.manual_seed(0)
    wrong = []

    def work(k: int) -> None:
        layer = cello.nn.GRU(3 + k, 4 + 3 * k).double()
        x = torch.randn(5 + 2 * k, 1 + k, 3 + k, dtype=torch.float64, requires_grad=True)
        leaves = [x, *layer.parameters()]
        expected = torch.autograd.grad(total(run(layer, x, "reference")), leaves)
        for _ in range(20):
            given = torch.autograd.grad(total(run(layer, x)), leaves)
            if not all(torch.allclose(a, b) for a, b in zip(given, expected, strict=True)):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_runs_and_ends():
    # Wide enough for several threads here, and no tensor so large that torch's own operations, which
    # do not know of the fork, would wait for theirs.
    layer, x = cello.nn.LSTM(64, 64), torch.randn(50, 8, 64)
    expected = run(layer, x)[0]
    process = os.fork()
    if process == 0:
        given = run(layer, x)[0]
        torch.autograd.grad(given, layer.weight_hh_l0, torch.ones_like(given))
        os._exit(0 if torch.allclose(given, expected, atol=1e-6) else 1)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    pytest.fail("the forked process did not end")


class Rows(torch.utils.data.Dataset):
    def __init__(self, layer: nn.Module):
        self.layer = layer

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            return run(self.layer, torch.full((20, 8, 3), float(index)))[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_worker_of_a_data_loader():
    rows = Rows(cello.nn.GRU(3, 16))
    expected = torch.stack([rows[k] for k in range(4)])
    loader = torch.utils.data.DataLoader(
        rows, batch_size=2, num_workers=2, multiprocessing_context="fork"
    )
    torch.testing.assert_close(torch.cat(list(loader)), expected)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
@pytest.mark.parametrize("training", [False, True])
def test_an_interrupt_arrives_during_a_long_run(training: bool):
    layer = cello.nn.LSTM(64, 128)
    x = torch.randn(1, 4, 64).expand(100_000, 4, 64)

    def interrupt(*_: object) -> None:
        times.append(time.monotonic())
        raise KeyboardInterrupt

    times: list[float] = []
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with torch.set_grad_enabled(training):
            run(layer, x[:10])
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            start = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                run(layer, x)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert times[0] - start < 1.3
    assert time.monotonic() - times[0] < 1
    assert_same(run(layer.double(), x[:5].double()), run(layer, x[:5].double(), "reference"))
