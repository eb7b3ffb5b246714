"""Times Cello's engines and torch.nn on a layer, in turn, after their results agree."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.rnn import PackedSequence

from cello import cells
from cello.cells import changed_activations
from cello.engines import EngineError, engine, observe
from cello.inspect.pictures import finish
from cello.inspect.recording import data_of
from cello.nn import RNNBase
from cello.nn.base import RecurrentLayer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 1e-1}
"""The allowed difference of results, relative to their norm; engines add in different orders."""

TWINS: dict[type[cells.Equations], Callable[..., nn.RNNBase]] = {
    cells.LSTM: nn.LSTM,
    cells.GRU: nn.GRU,
    cells.RNN: nn.RNN,
}
"""The layers of torch.nn by their equations."""

TORCH, LOOP, OWN = "torch.nn", "reference", "cello"
LEAST = 3
"""The minimum number of timed runs of each candidate."""


@dataclass(frozen=True)
class Timing:
    """The time of one candidate: torch.nn, Cello's own choice, or an engine.

    Attributes:
        way: ``torch.nn``, ``cello`` for Cello's own choice, or the name of an engine.
        training: whether it is the forward and backward pass, or the forward pass without gradients.
        engines: the engine of each of the stacked layers; empty for torch.nn.
        seconds: the median time of a call.
        quartiles: the first and the third quartile of the times.
        rounds: the number of timed runs.
        difference: the largest difference from the results of the first candidate, relative to their norm;
            NaN where these differ from call to call, since the cell draws random numbers.
        reason: why it was not timed; empty if it was.
        differs: whether it was not timed because its results differ.
    """

    way: str
    training: bool
    engines: tuple[str, ...] = ()
    seconds: float = float("nan")
    quartiles: tuple[float, float] = (float("nan"), float("nan"))
    rounds: int = 0
    difference: float = float("nan")
    reason: str = ""
    differs: bool = False


@dataclass(frozen=True)
class Comparison:
    """Timings of one layer on one input; the others are compared with the first one of each kind.

    Attributes:
        title: the layer and the input.
        timings: one for each candidate, first for inference, then for training.
        no_torch: why torch.nn has no such layer; empty if it has.
    """

    title: str
    timings: tuple[Timing, ...]
    no_torch: str = ""

    @property
    def is_rough(self) -> bool:
        """Whether the times of one candidate vary so much that the ratios are imprecise."""
        return any(low * 1.5 < high for low, high in (t.quartiles for t in self.timings))

    def ratio(self, timing: Timing) -> float:
        """Return the speed-up over the first candidate of its kind."""
        first = next(other for other in self.timings if other.training == timing.training)
        return first.seconds / timing.seconds


def compare(
    layer: RecurrentLayer,
    input: Tensor | PackedSequence,
    *,
    engines: Sequence[str] = ("native", "vendor"),
    seconds: float = 2.0,
) -> Comparison:
    """Run a layer with several engines, compare the results, and time those that agree.

    The candidates run in turn, A B A B, so that other load on the machine affects all equally. Dropout is
    off. Training computes the gradients of the sum of the output (and of its imaginary parts, if it is
    complex), for the input and all weights that are not frozen.

    Args:
        layer: any layer of :mod:`cello.nn`; it is copied.
        input: an input of the layer.
        engines: engines to time besides Cello's own choice.
        seconds: the time for all candidates together; once for inference and once for training.

    Returns:
        A :class:`Comparison`; its first candidate is torch.nn, or the Python loop if torch.nn has no such
        layer.

    Raises:
        TypeError: `layer` is not a layer of Cello.
        ValueError: there is no engine of one of the names in `engines`.

    Example:
        >>> import torch, cello
        >>> from cello.inspect.measure import compare
        >>> found = compare(cello.nn.GRU(3, 4), torch.zeros(5, 2, 3), seconds=0.01)
        >>> [timing.way for timing in found.timings if not timing.training]
        ['torch.nn', 'cello', 'native', 'vendor']
    """
    if not isinstance(layer, RecurrentLayer):
        raise TypeError(f"layer must be a layer of cello.nn, got {type(layer).__name__}")
    layer = _copy(layer)
    layer.dropout = 0.0
    no_torch = why_no_torch(layer)
    modules: dict[str, tuple[nn.Module, str | None]] = {}
    if not no_torch:
        assert isinstance(layer, RNNBase)
        modules[TORCH] = torch_layer(layer), None
    elif LOOP not in engines:
        modules[LOOP] = layer, LOOP
    modules[OWN] = layer, None
    modules |= {name: (layer, name) for name in engines}
    timings: list[Timing] = []
    for training in (False, True):
        timings += _timings(modules, input, training, seconds)
    data = data_of(input)
    kind = "packed " if isinstance(input, PackedSequence) else ""
    title = (
        f"{type(layer).__name__}({layer.extra_repr()}) on {kind}{tuple(data.shape)}, "
        f"{str(data.dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads"
    )
    return Comparison(title, tuple(timings), no_torch)


def _copy(layer: RecurrentLayer) -> RecurrentLayer:
    """Copy a layer, also where a hook computes a weight (pruning), which deepcopy refuses to copy."""
    computed = [
        value
        for module in layer.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    return copy.deepcopy(layer, {id(tensor): tensor.detach() for tensor in computed})


def why_no_torch(layer: RecurrentLayer) -> str:
    """Return why torch.nn has no layer like `layer`; empty if it has."""
    if not isinstance(layer, RNNBase) or layer.equations not in TWINS:
        return "torch.nn has no layer of this cell"
    if is_parametrized(layer) or layer._forward_pre_hooks:
        return "its weights are computed (a parametrization, or hooks)"
    usual = {"activation": getattr(layer, "nonlinearity", "tanh"), "gate_activation": "sigmoid"}
    reasons = changed_activations(layer, **{k: usual[k] for k in layer.equations.options})
    if layer.merge != "concat":
        reasons.append(f"merge={layer.merge!r}")
    reasons += [name for name in ("reverse", "learn_initial_state") if getattr(layer, name)]
    if not isinstance(layer.hidden_size, int):
        reasons.append("layers of different widths")
    return f"torch.nn has no {', '.join(reasons)}" if reasons else ""


def torch_layer(layer: RNNBase) -> nn.RNNBase:
    """Return torch's layer with the options and weights of one of Cello's."""
    options: dict[str, Any] = {}
    if hasattr(layer, "nonlinearity"):
        options["nonlinearity"] = layer.nonlinearity
    if layer.proj_size:
        options["proj_size"] = layer.proj_size
    weight = layer.weight_ih_l0
    twin: nn.RNNBase = TWINS[layer.equations](
        layer.input_size,
        layer.hidden_size,
        layer.num_layers,
        bias=layer.bias,
        batch_first=layer.batch_first,
        bidirectional=layer.bidirectional,
        device=weight.device,
        dtype=weight.dtype,
        **options,
    )
    twin.load_state_dict(layer.state_dict())
    for name, own in twin.named_parameters():
        own.requires_grad_(getattr(layer, name).requires_grad)
    return twin


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Let torch and Cello use this number of threads inside the ``with``."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


Work = Callable[[], list[Tensor]]


class _NothingToTrainError(Exception):
    """The output depends on nothing that can have a gradient."""


def _timings(
    modules: dict[str, tuple[nn.Module, str | None]],
    input: Tensor | PackedSequence,
    training: bool,
    seconds: float,
) -> Iterator[Timing]:
    """Compare the results of all candidates with the first one, and time those that agree."""
    ways: dict[str, Work] = {}
    checked: dict[str, Timing] = {}
    expected: list[Tensor] = []
    first: Work = list
    for name, (module, choice) in modules.items():
        work = _work(module, choice, input, training)
        try:
            with observe() as seen:
                found = work()
        except EngineError as error:
            checked[name] = Timing(name, training, reason=str(error).partition("run this: ")[2])
            continue
        except _NothingToTrainError as error:
            checked[name] = Timing(name, training, reason=str(error))
            continue
        if not expected:
            expected, first = found, work
        difference = max(map(_distance, found, expected))
        ran = () if name == TORCH else tuple(choice.engine.name for _, choice in seen)
        tolerance = TOLERANCES.get(found[0].dtype, 1e-3)
        differs = not difference <= tolerance
        if differs and not _are_close(first(), expected, tolerance):
            difference, differs = math.nan, False  # it draws random numbers
        checked[name] = Timing(
            name,
            training,
            ran,
            difference=difference,
            reason=_difference_in_words(difference) if differs else "",
            differs=differs,
        )
        if not differs:
            ways[name] = work
    times = alternate(ways, seconds)
    for name, timing in checked.items():
        if name not in times:
            yield timing
            continue
        low, median, high = statistics.quantiles(times[name], n=4, method="inclusive")
        yield Timing(
            name, training, timing.engines, median, (low, high), len(times[name]), timing.difference
        )


def _difference_in_words(difference: float) -> str:
    if math.isnan(difference):
        return "results hold NaN or infinities, and cannot be compared"
    return f"results differ by {difference:.1e} of their norm"


def _are_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(torch.allclose(a, b, tolerance, tolerance, equal_nan=True) for a, b in pairs)


def _work(
    module: nn.Module, choice: str | None, input: Tensor | PackedSequence, training: bool
) -> Work:
    """Return a function that runs once and returns output, final state and, in training, gradients."""
    data = data_of(input).detach()
    has_gradient = training and (data.is_floating_point() or data.is_complex())
    data.requires_grad_(has_gradient)
    x = input._replace(data=data) if isinstance(input, PackedSequence) else data
    trained: list[Tensor] = [weight for weight in module.parameters() if weight.requires_grad]
    trained += [data] if has_gradient else []

    def once() -> list[Tensor]:
        with engine(choice), torch.set_grad_enabled(training):
            output, state = module(x)
            outputs = output if type(output) is tuple else (output,)
            rows = [part.data if isinstance(part, PackedSequence) else part for part in outputs]
            found = [*rows, *_leaves(state)]
            if training:
                found += _slopes(rows, trained)
        return found

    return once


def _slopes(rows: list[Tensor], trained: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the gradients of the sum of an output, zero for what it does not depend on."""
    parts = [torch.view_as_real(row) if row.is_complex() else row for row in rows]
    sums = [part.sum() for part in parts if part.requires_grad]
    if not sums or not trained:
        raise _NothingToTrainError(
            "nothing to train: the output depends on nothing with a gradient"
        )
    return torch.autograd.grad(torch.stack(sums).sum(), trained, materialize_grads=True)


def _leaves(nested: Any) -> list[Tensor]:
    return (
        [nested]
        if isinstance(nested, Tensor)
        else [leaf for part in nested for leaf in _leaves(part)]
    )


def _distance(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference relative to the norm, or the difference if the norm is zero."""
    wide = torch.complex128 if expected.is_complex() else torch.float64
    norm = float(expected.detach().to(wide).norm())
    return float((found - expected).detach().to(wide).norm()) / (norm or 1.0)


def alternate(ways: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Run all candidates in turn, repeatedly, and return the times of each in seconds.

    Args:
        ways: the candidates by name; each has run before.
        seconds: the time for all candidates together.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + seconds
    while ways and (time.perf_counter() < end or min(map(len, times.values())) < LEAST):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return times


def draw_comparison(comparisons: Sequence[Comparison], path: str | Path | None = None) -> Figure:
    """Draw the times of all candidates as bars, with the speed-up over the first one.

    Args:
        comparisons: the comparisons to draw, one below the other.
        path: a file to write, ``.png``, ``.svg`` or ``.pdf``.

    Returns:
        The matplotlib figure. Needs matplotlib.

    Raises:
        ModuleNotFoundError: matplotlib is not there.
    """
    from matplotlib.figure import Figure

    height = sum(0.32 * len(found.timings) / 2 + 1.1 for found in comparisons)
    figure = Figure(figsize=(9, height), layout="constrained")
    rows = figure.subfigures(len(comparisons), 1, squeeze=False)[:, 0]
    for part, found in zip(rows, comparisons, strict=True):
        part.suptitle(found.title, fontsize=9)
        panels = part.subplots(1, 2)
        for axes, training in zip(panels, (False, True), strict=True):
            shown = [t for t in found.timings if t.training == training and not t.reason]
            first = shown[0] if shown else None
            colours = ["#718096" if t is first else "#2b6cb0" for t in shown]
            middles = [1e3 * t.seconds for t in shown]
            errors = [
                [1e3 * (t.seconds - t.quartiles[0]) for t in shown],
                [1e3 * (t.quartiles[1] - t.seconds) for t in shown],
            ]
            axes.barh(range(len(shown)), middles, xerr=errors, color=colours, error_kw={"lw": 0.8})
            axes.set_yticks(range(len(shown)), [t.way for t in shown], fontsize=9)
            for k, timing in enumerate(shown):
                text = f"{1e3 * timing.seconds:.3g} ms"
                text += "" if timing is first else f", {found.ratio(timing):.2f}x"
                axes.text(1e3 * timing.quartiles[1], k, f"  {text}", va="center", fontsize=8)
            axes.set_ylim(len(shown) - 0.4, -0.6)  # the first candidate on top
            axes.set_xlim(0, 1.45 * max((1e3 * t.quartiles[1] for t in shown), default=1))
            axes.set_title("training" if training else "forward", fontsize=9, loc="left")
            axes.set_xlabel("ms", fontsize=8)
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
    return finish(figure, path, dpi=130)
