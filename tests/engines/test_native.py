"""The native engine around the cells: noise, memory, threads, batches, and where it is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import distance
from foreign_cells import CELLS
from steps import Step, assert_close, evaluate, random
from torch import Tensor, nn

import cello

pytestmark = pytest.mark.usefixtures("native")
HERE = Path(__file__).parent
RATE = 0.3


@pytest.fixture
def native():
    with cello.engine("native"):
        yield


def agree(layer: nn.Module, x: Tensor, tolerance: float = 1e-12, seed: int = 0, **options: Any):
    results = []
    for engine in ("native", "reference"):
        torch.manual_seed(seed)
        results.append(evaluate(layer, x, (), engine, **options))
    assert_close(*results, tolerance=tolerance)
    return results[0]


# Masks and noise


class DropConnect(nn.Module):
    """A parametrization: drops weights, once per call."""

    def forward(self, weight: Tensor) -> Tensor:
        return nn.functional.dropout(weight, 0.5, self.training)


def test_dropped_weights_are_drawn_once_per_call():
    layer = cello.nn.LSTM(5, 6).double()
    nn.utils.parametrize.register_parametrization(layer, "weight_hh_l0", DropConnect())
    x = random(7, 3, 5)
    first, second = agree(layer, x, seed=0), agree(layer, x, seed=1)
    assert not torch.equal(first["output"], second["output"])
    name = "gradient of parametrizations.weight_hh_l0.original"
    dropped = first[name] == 0
    assert 0.2 < dropped.double().mean() < 0.8
    assert not torch.equal(dropped, second[name] == 0)
    layer.eval()
    assert not (agree(layer, x)[name] == 0).any()


def test_weight_norm_of_a_cell():
    cell = nn.utils.parametrizations.weight_norm(nn.GRUCell(5, 6).double(), "weight_hh")
    got = agree(cello.Recurrent(cell), random(7, 3, 5))
    assert got["gradient of cells.l0.parametrizations.weight_hh.original0"].any()


class Variational(nn.Module):
    """One mask for all steps, held in an attribute, of one row for each sequence or for all."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(5, 6)
        self.mask = torch.ones(6).double()

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.cell(x, h * self.mask)


def test_a_mask_that_changes_between_calls():
    layer = cello.Recurrent(Variational().double())
    x, outputs = random(7, 3, 5), []
    for seed in range(3):
        mask = torch.bernoulli(torch.full((6,), 0.5), generator=torch.Generator().manual_seed(seed))
        layer.cells["l0"].mask = mask.double() * 2
        outputs.append(agree(layer, x)["output"])
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])


class Dropped(nn.Module):
    """Drops of the state, or of the input."""

    def __init__(self, of: str):
        super().__init__()
        self.of, self.drop = of, nn.Dropout(RATE)
        self.scale = nn.Parameter(torch.ones(50).double())

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        dropped = self.drop((x if self.of == "input" else h + 1) * self.scale)
        return dropped, torch.zeros_like(h)


@pytest.mark.parametrize("of", ["input", "state"])
def test_dropout_within_a_step(of: str):
    layer = cello.Recurrent(Dropped(of), state_size=50)
    x = torch.ones(40, 30, 50).double()
    output, _ = layer(x)
    kept = output.detach() != 0
    assert torch.equal(output.detach()[kept], torch.full_like(output[kept], 1 / (1 - RATE)))
    assert abs(float(kept.double().mean()) - (1 - RATE)) < 0.01  # 60000 draws: 5 standard errors
    assert abs(float((kept[1:] == kept[:-1]).double().mean()) - (1 - 2 * RATE * (1 - RATE))) < 0.01
    assert abs(float((kept[:, 1:] == kept[:, :-1]).double().mean()) - 0.58) < 0.01
    assert len({tuple(row) for row in kept.flatten(0, 1).long().tolist()}) == 40 * 30
    (gradient,) = torch.autograd.grad(output.sum(), layer.parameters())
    torch.testing.assert_close(gradient, kept.double().sum((0, 1)) / (1 - RATE))
    layer.eval()
    assert torch.equal(layer(x)[0].detach(), x)


def test_a_seed_gives_the_same_draws_and_the_next_call_others():
    layer = cello.Recurrent(Dropped("state"), state_size=50)
    x = torch.ones(5, 3, 50).double()
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs += [layer(x)[0].detach(), layer(x)[0].detach()]
    assert torch.equal(runs[0], runs[2])
    assert torch.equal(runs[1], runs[3])
    assert not torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[4])


def test_zoneout_keeps_the_old_state_at_its_rate():
    torch.manual_seed(0)
    layer = cello.Recurrent(CELLS["ZoneoutLSTM"].make(4, 200).double()).train()
    x = random(2, 50, 4).requires_grad_()
    h0 = random(1, 50, 200)
    _, (h, _c) = layer(x[:1], (h0, random(1, 50, 200, seed=1)))
    assert abs(float((h == h0).double().mean()) - 0.2) < 0.02
    (gradient,) = torch.autograd.grad((h * (h != h0)).sum(), x, retain_graph=True)
    assert gradient[0].any()
    assert not gradient[1].any()
    (gradient,) = torch.autograd.grad((h * (h == h0)).sum(), x)
    assert not gradient.any()


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(5, 6)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.cell(x, h + 0.1 * torch.randn_like(h) + 0.01 * torch.rand(len(x), 6).to(x))


def test_noise_is_drawn_for_every_row_of_every_step():
    layer = cello.Recurrent(Noisy().double())
    torch.manual_seed(0)
    output, _ = layer(torch.zeros(4, 50, 5).double())
    assert len(set(output[0, :, 0].tolist())) == 50
    first = layer(torch.zeros(1, 2000, 5).double())[0]
    with cello.engine("reference"):
        second = layer(torch.zeros(1, 2000, 5).double())[0]
    spread = first.std(1) / second.std(1)
    assert ((spread > 0.9) & (spread < 1.1)).all()


# Memory


def test_what_is_kept_for_the_backward_pass_of_an_lstm():
    """Seven numbers for each unit and step at most: gates, both states, and one more; and the input."""
    T, B, F, H = 200, 32, 100, 256
    layer = cello.nn.LSTM(F, H)
    x = torch.randn(T, B, F, requires_grad=True)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output, _ = layer(x)
    weights = sum(4 * p.numel() for p in layer.parameters())
    assert sum(kept.values()) <= 4 * T * B * (7 * H + F) + 2 * weights + 4 * 4 * B * H
    assert sum(kept.values()) >= 4 * T * B * 4 * H  # or this test saw nothing
    output.sum().backward()


EMPTY = ("empty", "empty_like", "empty_strided", "empty_permuted")


@pytest.fixture
def no_luck(monkeypatch):
    """Fill all memory that is handed out uninitialised with NaN."""

    def spoiled(function):
        def make(*args, **kwargs):
            tensor = function(*args, **kwargs)
            if (
                tensor.is_floating_point()
                and tensor.device.type == "cpu"
                and type(tensor) is Tensor
            ):
                torch.Tensor.fill_(tensor.detach(), float("nan"))
                made.append(tensor.shape)
            return tensor

        return make

    made: list[torch.Size] = []
    for name in EMPTY:
        monkeypatch.setattr(torch, name, spoiled(getattr(torch, name)))
    monkeypatch.setattr(Tensor, "new_empty", spoiled(Tensor.new_empty))
    return made


SOME = ("TorchLSTM", "TorchGRU", "LayerNormLSTM", "NestedLSTM", "FastWeights", "IndRNN", "NASCell")
SOME += ("MemoryAttention", "ClosedFormContinuous", "StackedInsideOptional", "CountingCell")


def sample(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    known = CELLS[name]
    options = {"state_size": known.state(5, 7)} if known.needs_size else {}
    return cello.Recurrent(known.make(5, 7).to(dtype), **options), random(6, 3, 5, dtype=dtype)


@pytest.mark.parametrize("lengths", [None, [6, 1, 4]], ids=["padded", "lengths"])
@pytest.mark.parametrize("name", SOME)
def test_nothing_is_read_that_was_not_written(name: str, lengths, no_luck):
    layer, x = sample(name)
    options = {} if lengths is None else {"lengths": lengths}
    spoiled = evaluate(layer, x, (), "native", return_states=True, **options)
    assert no_luck
    layer, x = sample(name)
    expected = evaluate(layer, x, (), "reference", return_states=True, **options)
    assert all(result.isfinite().all() for result in spoiled.values())
    assert_close(spoiled, expected, 1e-10)


# Threads and batches


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


LARGE = {  # by rows, by columns, and too small to split
    "rows": (40, 64, 24),
    "columns": (12, 3, 400),
    "one row": (9, 1, 500),
    "small": (3, 2, 5),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", LARGE)
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_repeated_runs_give_the_same_bits_and_threads_agree(name, size, dtype, threads):
    T, B, H = LARGE[size]
    torch.manual_seed(0)
    layer = getattr(cello.nn, name)(H, H, dtype=dtype)
    x = random(T, B, H, dtype=dtype)
    lengths = [T] + [max(1, T - k) for k in range(1, B)]
    by_count = []
    for count in (1, 2, 4):
        threads(count)
        runs = [evaluate(layer, x, (), "native", lengths=lengths) for _ in range(2)]
        for key, result in runs[0].items():
            assert torch.equal(result, runs[1][key]), key
        by_count.append(runs[0])
    for other in by_count[1:]:
        assert_close(other, by_count[0], 1e-5 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("name", SOME)
def test_a_row_of_a_batch_is_that_row_alone(name: str):
    layer, _ = sample(name)
    x = random(6, 33, 5)
    output, _ = layer(x)
    for row in (0, 7, 32):
        torch.testing.assert_close(layer(x[:, row : row + 1])[0], output[:, row : row + 1])
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x[:, order])[0], output[:, order], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 9])
@pytest.mark.parametrize("size", [3, 20, 150])
def test_few_rows(size: int, rows: int, threads: int):
    """Weights are then read where they are, and not brought into another order first."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        for layer in (
            cello.nn.LSTM(7, size, proj_size=2),
            cello.nn.GRU(7, size, num_layers=2, bias=False),
            cello.Recurrent(CELLS["EightLinears"].make(7, size)),
        ):
            for steps, batch in {(rows, 1), (1, rows)}:
                agree(layer.double(), random(steps, batch, 7))
    finally:
        torch.set_num_threads(before)


class TwoOrders(cello.Cell):
    """Two products of one result, of a matrix by rows and of one by columns."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.a, self.b = (nn.Parameter(torch.randn(size, size) / size**0.5) for _ in range(2))

    @property
    def state_sizes(self) -> dict[str, int]:
        return {"h": self.size, "c": self.size}

    def forward(self, x: Tensor, state: Any) -> Any:
        h, c = state
        n = torch.tanh(x + h @ self.a.T + c @ self.b)
        return n, (n, h)


def test_packed_and_unpacked_products_of_one_result_share_it_alike(threads):
    torch.manual_seed(0)
    torch.set_num_threads(2)
    layer = cello.Recurrent(TwoOrders(544))  # two threads part it within a panel of 32 columns
    x = random(8, 1, 544).float()
    with torch.no_grad(), cello.engine("reference"):
        expected = layer(x)[0]
    with torch.no_grad():
        for _ in range(1000):
            torch.testing.assert_close(layer(x)[0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_a_long_run_is_its_parts(name: str):
    """Chunks of steps are gathered: many chunks in one call equal calls of a few steps."""
    layer = getattr(cello.nn, name)(3, 4).double()
    x = random(700, 2, 3).requires_grad_()
    whole, _ = layer(x)
    state, parts = None, []
    for part in x.split(37):
        output, state = layer(part, state)
        parts.append(output)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-13)
    seed = random(700, 2, 4, seed=3)
    variables = [x, *layer.parameters()]
    for a, b in zip(
        torch.autograd.grad(torch.cat(parts), variables, seed),
        torch.autograd.grad(whole, variables, seed),
        strict=True,
    ):
        assert distance(a, b) < 1e-12


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_threads_do_not_disturb_each_other_on_a_packed_batch(frozen: bool, threads):
    """Many chunks of few rows, of which the threads share the memory."""
    torch.manual_seed(0)
    layer = cello.nn.GRU(16, 16).double().requires_grad_(not frozen)
    x, lengths = random(400, 12, 16), [400, *(400 - 9 * k for k in range(1, 12))]
    threads(1)
    expected = evaluate(layer, x, (), "native", lengths=lengths)
    threads(2)
    for _ in range(10):
        assert_close(evaluate(layer, x, (), "native", lengths=lengths), expected, 1e-10)


def test_threads_do_not_disturb_each_other_on_a_weight_that_is_used_twice(threads):
    def function(cell, x, h):
        a, b = x @ cell.W[:, :40], x @ cell.W[:, 20:60]
        out = torch.cat([a.tanh(), b.sigmoid()], 1)[:, ::2] * h
        return out, out

    layer = cello.Recurrent(Step(function, [40], W=random(40, 60) * 0.2))
    x, h = random(60, 64, 40), random(1, 64, 40)
    threads(1)
    expected = evaluate(layer, x, (h,), "native")
    threads(2)
    for _ in range(20):
        assert_close(evaluate(layer, x, (h,), "native"), expected, 1e-10)


def test_two_python_threads_run_at_the_same_time():
    from concurrent.futures import ThreadPoolExecutor

    layer = cello.nn.LSTM(8, 16).double()
    xs = [random(30, 4, 8, seed=k) for k in range(8)]
    expected = [layer(x)[0] for x in xs]

    def run(x: Tensor) -> Tensor:
        with cello.engine("native"):
            return layer(x)[0]

    with ThreadPoolExecutor(4) as pool:
        for got, known in zip(pool.map(run, xs * 5), expected * 5, strict=True):
            assert torch.equal(got, known)


def test_numbers_beyond_the_normal_ones():
    """Huge, infinite and NaN inputs come out as from the loop; and stay in their own row."""
    for name in ("LSTM", "GRU", "RNN"):
        layer = getattr(cello.nn, name)(3, 4).double()
        x = random(5, 5, 3)
        x[1, 0], x[1, 1], x[1, 2], x[1, 3] = 1e300, float("inf"), float("-inf"), float("nan")
        results = []
        for engine in ("native", "reference"):
            with cello.engine(engine):
                results.append(layer(x)[0].detach())
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-13, equal_nan=True)
        assert results[0][:, 4].isfinite().all()
        assert results[0][1:, 3].isnan().all()


# Elsewhere: other instruction sets, and none


def fresh(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = Path(cello.__file__).parent.parent
    path = os.pathsep.join([str(root), str(HERE.parent)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "2"} | environment
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=False, env=environment, cwd=HERE.parent,
    )  # fmt: skip


CORE = """
import warnings
warnings.simplefilter('ignore')
import torch
from cello.engines.native.library import library
assert library().instruction_sets()[0] == {isa!r}, library().instruction_sets()
from cases import Case, distance, values_and_gradients
from foreign_cells import CELLS
from steps import Step, assert_close, evaluate, random
import cello
from torch import nn
for kind in ("RNN", "LSTM", "LSTM-proj", "GRU"):
    for form in ("padded", "unsorted"):
        for width, batch in ((4, 3), (17, 5), (33, 1)):
            case = Case(kind, 2, True, form=form, width=width, batch_size=batch)
            expected = values_and_gradients(case, case.make(nn), case.inputs())
            with cello.engine("native"):
                got = values_and_gradients(case, case.make(cello.nn), case.inputs())
                single = values_and_gradients(
                    case, case.make(cello.nn).float(), case.inputs(torch.float32)
                )
            for name, reference in expected.items():
                assert distance(got[name], reference) <= 1e-12, (kind, form, name)
                assert distance(single[name], reference) <= 1e-5, (kind, form, name)
for name in {names!r}:
    known = CELLS[name]
    torch.manual_seed(0)
    options = dict(state_size=known.state(5, 7)) if known.needs_size else dict()
    layer = cello.Recurrent(known.make(5, 7).double(), **options)
    x = random(6, 3, 5)
    results = [evaluate(layer, x, (), engine) for engine in ("native", "reference")]
    assert_close(*results, tolerance=1e-10)
print("good")
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "avx512_bf16", "amx"])
def test_every_instruction_set(isa: str):
    done = fresh(CORE.format(isa=isa, names=SOME), CELLO_ISA=isa)
    if "ValueError" in done.stderr and f"CELLO_ISA is '{isa}'" in done.stderr and isa != "baseline":
        pytest.skip("this machine does not have it")
    assert done.stdout == "good\n", done.stderr[-2000:]


def test_an_instruction_set_that_there_is_not():
    code = "import torch, cello; cello.nn.GRU(3, 4)(torch.zeros(2, 1, 3))"
    done = fresh(code, CELLO_ISA="sse9")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: CELLO_ISA is 'sse9'; on this machine it can be: ")
    assert last.endswith("baseline")


WITHOUT = """
import sys, warnings
sys.modules["cello.engines.native._native"] = None
import torch, cello
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    x = torch.randn(5, 2, 3, requires_grad=True)
    engines = []
    for layer in (
        cello.nn.LSTM(3, 4),
        cello.nn.GRU(3, 4, activation="relu"),
        cello.Recurrent(torch.nn.GRUCell(3, 4)),
        cello.Recurrent(lambda x, h: torch.tanh(h + x), state_size=3),
    ):
        layer(x, lengths=[5, 2])[0].sum().backward()
        plan = cello.explain(layer, x).plans[0]
        engines.append(plan.engine)
        assert "was not built" in plan.reasons["native"][0]
    try:
        with cello.engine("native"):
            layer(x)
    except cello.EngineError as error:
        assert "was not built" in str(error)
    else:
        raise AssertionError
assert len(caught) == 1, [str(w.message) for w in caught]
assert "cello runs without its native engine" in str(caught[0].message)
print(*engines)
"""


def test_where_it_was_not_built_everything_runs_elsewhere_and_it_says_so_once():
    done = fresh(WITHOUT)
    assert done.stdout == "vendor reference vendor reference\n", done.stderr[-2000:]


class Detached(nn.Module):
    """A weight that counts, and has no gradient in a step."""

    def __init__(self, way: str):
        super().__init__()
        self.way, self.scale = way, nn.Parameter(torch.tensor(0.5))
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        scores = self.linear(x + h)
        if self.way == "detached":
            scores = scores.detach()
        elif self.way == "compared":
            scores = (scores > 0).to(x.dtype)
        else:
            scores = nn.functional.one_hot(scores.argmax(-1), 4).to(x.dtype)
        return torch.tanh(self.scale * (x + h) + scores)


@pytest.mark.parametrize("way", ["detached", "compared", "chosen"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_weight_that_no_gradient_reaches_has_none(way: str, compiled: bool):
    """An optimizer with weight decay changes a weight whose gradient is zero."""
    torch._dynamo.reset()
    layer, x = cello.Recurrent(Detached(way), state_size=4), torch.randn(5, 3, 4)
    run = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer
    run(x)[0].sum().backward()
    cell = layer.cells["l0"]
    assert cell.scale.grad.abs() > 0
    assert compiled or cell.linear.weight.grad is None
    with cello.engine("reference"):
        expected = cello.Recurrent(cell, state_size=4)(x)[0].sum()
    torch.testing.assert_close(cell.scale.grad, torch.autograd.grad(expected, cell.scale)[0])
