"""torch's fused kernels (cuDNN, oneDNN, MPS), for cells with exactly torch's equations."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any

import torch
from torch import _VF, Tensor
from torch.autograd import forward_ad

from cello.cells.activations import Activation, activation_name
from cello.cells.contract import Cell, State
from cello.cells.gru import GRU
from cello.cells.lstm import LSTM
from cello.cells.rnn import RNN
from cello.compile import autocast_dtype
from cello.engines.contract import Direction, DirectionResult, Engine, Prepared, Scan
from cello.engines.sequence import Layout, Sequence


class Vendor(Engine):
    """One call of ``torch._VF.lstm``, ``gru``, ``rnn_tanh`` or ``rnn_relu`` for a layer."""

    name = "vendor"
    is_fused = True

    def why_not(self, scan: Scan) -> list[str]:
        reasons = [reason for d in scan.directions for reason in _why_not_cell(d.cell)]
        if _is_transformed():
            reasons.append(
                "torch's kernels do not support torch.vmap, and not all of them support forward-mode "
                "differentiation and nested transforms"
            )
        if scan.sequence.layout.lengths is not None:
            reasons.append("a graph for any lengths has none for torch's kernels to pack by")
        if scan.sequence.batch_size == 0 and torch.compiler.is_compiling():
            # oneDNN's operation, which a graph may have in the place of torch's LSTM, divides by it.
            reasons.append("there are no sequences in the batch")
        if scan.keep_states and any(type(d.cell) is LSTM for d in scan.directions):
            reasons.append("torch's kernels do not return the cell states of all steps")
        return list(dict.fromkeys(reasons))

    def prepare(self, scan: Scan) -> Prepared | None:
        function, cell = step_function(scan), scan.directions[0].cell
        if function is None:
            return None
        weights, is_pair = _weights(cell), type(cell) is LSTM
        device = scan.sequence.data.device

        def holds(layout: Layout) -> bool:
            if layout.steps != 1 or torch._C._is_tracing():
                return False
            return autocast_dtype(device) is None and not _is_transformed()

        def run(x: Tensor, layout: Layout, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            before = [part.view(layout.batch_size, -1) for part in state]
            found = function(x, before if is_pair else before[0], *weights)
            parts = found if is_pair else (found,)
            # Copies: whoever writes into the state does not mean the output.
            return parts[0], [torch.stack((part,)) for part in parts]

        return Prepared(holds, run)

    def run(self, scan: Scan) -> tuple[DirectionResult, ...]:
        function = step_function(scan)
        if function is not None:
            return (_run_step(scan, function),)
        halves: Iterable[Tensor]
        states: list[State]
        if _is_bidirectional_call(scan):
            output, state = _call(scan.sequence, scan.directions)
            width = output.shape[1] // 2
            # Two views: into one of several that one operation returns nothing may be written.
            halves = output[:, :width], output[:, width:]
            states = [tuple(part[k : k + 1] for part in state) for k in range(2)]
        else:
            results = [_run_direction(scan.sequence, d) for d in scan.directions]
            halves, states = [r[0] for r in results], [r[1] for r in results]
        return tuple(
            DirectionResult(
                half, tuple(part[0] for part in state), (half.clone(),) if scan.keep_states else ()
            )
            for half, state in zip(halves, states, strict=True)
        )


def _run_step(scan: Scan, function: Callable[..., Any]) -> DirectionResult:
    ((cell, state, _),) = scan.directions
    assert state is not None
    is_pair = type(cell) is LSTM
    found = function(scan.sequence.data, state if is_pair else state[0], *_weights(cell))
    parts = found if is_pair else (found,)
    return DirectionResult(parts[0], tuple([part.clone() for part in parts]))


def multiplies_in_bfloat16(scan: Scan) -> bool:
    """Whether torch has a kernel for `scan` with products in bfloat16, which is oneDNN's LSTM."""
    x = scan.sequence.data
    return (
        torch.bfloat16 in (x.dtype, autocast_dtype(x.device))
        and x.device.type == "cpu"
        and scan.sequence.is_dense
        and all(type(d.cell) is LSTM and d.cell.weight_hr is None for d in scan.directions)
        and not Vendor().why_not(scan)
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def returned_in(sequence: Sequence, cell: Cell) -> torch.dtype | None:
    """Return the dtype of output and states of torch's layer if it differs from that of its equations.

    Under torch.autocast oneDNN's LSTM is one operation, and all its tensors are cast. Computed step by
    step, the cell state stays in float32.
    """
    dtype = autocast_dtype(sequence.data.device)
    if (
        dtype is not None
        and sequence.data.device.type == "cpu"
        and type(cell) is LSTM
        and cell.weight_hr is None
        and sequence.is_dense
        and sequence.data.dtype in (torch.float32, dtype)
        and next(_why_not_cell(cell), None) is None
        and torch.backends.mkldnn.is_available()
        # torch.export switches it off while it traces.
        and (bool(torch.backends.mkldnn.enabled) or torch.compiler.is_exporting())
    ):
        return dtype
    return None


def _is_transformed() -> bool:
    """Whether a transform other than a single gradient is active; not all kernels support those."""
    levels = torch._C._functorch.get_interpreter_stack() or ()
    is_gradient = [level.key() == torch._C._functorch.TransformType.Grad for level in levels]
    return forward_ad._current_level >= 0 or is_gradient not in ([], [True])


def _why_not_cell(cell: Cell) -> Iterator[str]:
    if type(cell) not in (LSTM, GRU, RNN):
        yield f"torch's kernels run cello.nn's LSTM, GRU and RNN, not a cell like {cell.label}"
        return
    if type(cell) is RNN:
        if cell.activation not in (torch.tanh, torch.relu):
            yield f"torch's RNN kernel has tanh and relu, not {activation_name(cell.activation)}"
        return
    assert isinstance(cell, LSTM | GRU)
    if cell.activation is not torch.tanh:
        yield f"torch's kernel has tanh built in, not {activation_name(cell.activation)}"
    if cell.gate_activation is not torch.sigmoid:
        yield f"torch's kernel has sigmoid gates built in, not {activation_name(cell.gate_activation)}"


def _is_bidirectional_call(scan: Scan) -> bool:
    """Whether one call can run both directions: cuDNN and MPS run them at the same time.

    oneDNN runs them one after the other anyway, and its kernel accepts only dense sequences. So there
    each direction is a separate call (see :func:`_run_spans`).
    """
    return [d.reverse for d in scan.directions] == [False, True] and not _is_onednn_packed(
        scan.sequence, scan.directions[0].cell
    )


def _run_direction(sequence: Sequence, direction: Direction) -> tuple[Tensor, State]:
    if not direction.reverse:
        return _run_forward(sequence, direction)
    output, state = _run_forward(sequence.reversed(), direction)
    return sequence.reverse_rows(output), state


def _run_forward(sequence: Sequence, direction: Direction) -> tuple[Tensor, State]:
    if _is_onednn_packed(sequence, direction.cell):
        return _run_spans(sequence, direction)
    return _call(sequence, (direction,))


def _is_onednn_packed(sequence: Sequence, cell: Cell) -> bool:
    """Whether torch would not use its fused LSTM kernel on the CPU only because the batch is packed.

    Torch's packed path takes one step at a time. Dense calls are faster only if they have enough steps:
    measured, from about four steps per call. In training with long sequences fewer steps are enough,
    because the time of the backward pass of torch's packed path grows faster than the number of steps.
    """
    calls = len(set(sequence.batch_sizes))
    is_long = torch.is_grad_enabled() and sequence.steps >= 64
    return (
        sequence.steps >= (2 if is_long else 4) * calls
        and not sequence.is_dense
        and type(cell) is LSTM
        and cell.weight_hr is None
        and sequence.data.device.type == "cpu"
        and sequence.data.dtype is torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )


def _run_spans(sequence: Sequence, direction: Direction) -> tuple[Tensor, State]:
    """Run a packed sequence as dense ones: one call for each span of steps with the same batch size.

    torch's packed path computes one small matrix product per step. The dense calls use the fused kernel;
    the final state of a call is the initial state of the next.
    """
    assert direction.state is not None
    state: State = direction.state
    outputs: list[Tensor] = []
    finished: list[State] = []
    spans = [(size, len(list(steps))) for size, steps in groupby(sequence.batch_sizes)]
    rows = sequence.data.split([size * steps for size, steps in spans])
    for data, (size, steps) in zip(rows, spans, strict=True):
        if size < len(state[0]):
            finished.append(tuple(part[size:] for part in state))
            state = tuple(part[:size] for part in state)
        part = Direction(direction.cell, state)
        output, stacked = _call(Sequence(data, (size,) * steps), (part,))
        state = tuple(leaf[0] for leaf in stacked)
        outputs.append(output)
    finished.append(state)
    final = (torch.cat(leaves)[None] for leaves in zip(*reversed(finished), strict=True))
    return torch.cat(outputs), tuple(final)


def _call(sequence: Sequence, directions: tuple[Direction, ...]) -> tuple[Tensor, State]:
    """Call torch's kernel for one layer.

    Returns:
        The output (N, D*H), and the final state with each part (D, B, H).
    """
    cell = directions[0].cell
    assert isinstance(cell, LSTM | GRU | RNN)
    kernel: Callable[..., tuple[Tensor, ...]]  # torch has no annotations for these
    if isinstance(cell, RNN):
        kernel = getattr(_VF, "rnn_tanh" if cell.activation is torch.tanh else "rnn_relu")
    else:
        kernel = getattr(_VF, "lstm" if isinstance(cell, LSTM) else "gru")
    parts = zip(*(d.state for d in directions if d.state is not None), strict=True)
    stacked = tuple(torch.stack(part) for part in parts)
    hx = stacked if isinstance(cell, LSTM) else stacked[0]
    weights = [weight for d in directions for weight in _weights(d.cell)]
    options = (
        weights,
        cell.bias_ih is not None,
        1,  # layers
        0.0,  # dropout
        # Save for a backward pass, in evaluation mode too; a traced model may need it later.
        torch.is_grad_enabled() or torch._C._is_tracing(),
        len(directions) == 2,
    )
    if sequence.is_dense:
        output, *state = kernel(sequence.unrolled(), hx, *options, False)
        output = output.reshape(-1, output.shape[-1])
    else:
        sizes = torch.tensor(sequence.batch_sizes, device="cpu")
        output, *state = kernel(sequence.data, sizes, hx, *options)
    return output, tuple(state)


def _weights(cell: Cell) -> list[Tensor]:
    """Return the weights in the order of torch's kernels."""
    assert isinstance(cell, LSTM | GRU | RNN)
    weights = [cell.weight_ih, cell.weight_hh]
    if cell.bias_ih is not None and cell.bias_hh is not None:
        weights += [cell.bias_ih, cell.bias_hh]
    if isinstance(cell, LSTM) and cell.weight_hr is not None:
        weights.append(cell.weight_hr)
    return weights


def step_function(scan: Scan) -> Callable[..., Any] | None:
    """Return torch's function of one step, that of its cells, if `scan` is one step of one direction."""
    (direction, *others), sequence = scan.directions, scan.sequence
    x, cell = sequence.data, direction.cell
    if (
        others
        or scan.keep_states
        or sequence.steps != 1
        or torch._C._is_tracing()  # a traced layer is for any number of steps
        or x.dtype not in (torch.float32, torch.float64)  # it rounds every number of a half
        or autocast_dtype(x.device) is not None
        or getattr(cell, "weight_hr", None) is not None
    ):
        return None
    for kind, known, function in _STEPS:
        if type(cell) is kind:
            found = [getattr(cell, name) for name in kind.options]
            if all(map(operator.is_, found, known)):
                return function
    return None


_STEPS: tuple[tuple[type[LSTM | GRU | RNN], tuple[Activation, ...], Callable[..., Any]], ...] = (
    (LSTM, (torch.tanh, torch.sigmoid), torch.lstm_cell),
    (GRU, (torch.tanh, torch.sigmoid), torch.gru_cell),
    (RNN, (torch.tanh,), torch.rnn_tanh_cell),
    (RNN, (torch.relu,), torch.rnn_relu_cell),
)


def flatten_weights(cells: tuple[Cell, ...], batch_first: bool) -> None:
    """Move the weights of one layer, in place, into the one block of memory that cuDNN reads.

    Otherwise cuDNN copies the weights at every call, and warns. This function does nothing if the weights
    are not plain parameters on a device of cuDNN, differ in dtype, share memory, or belong to cells that
    cuDNN does not run.

    Args:
        cells: the cell of each direction.
        batch_first: as given to the layer.
    """
    cell = cells[0]
    if not isinstance(cell, LSTM | GRU | RNN):
        return
    weights = [weight for each in cells for weight in _weights(each)]
    first = weights[0]
    if not all(
        isinstance(weight, torch.nn.Parameter)
        and weight.is_cuda
        and weight.dtype == first.dtype
        and torch.backends.cudnn.is_acceptable(weight)
        for weight in weights
    ):
        return
    if len({weight.data_ptr() for weight in weights}) != len(weights):
        return
    if next(_why_not_cell(cell), None) is not None:
        return
    from torch.backends.cudnn import rnn  # can be imported everywhere, is used only here

    mode = type(cell).__name__
    if isinstance(cell, RNN):
        mode = "RNN_TANH" if cell.activation is torch.tanh else "RNN_RELU"
    width = cell.weight_ih.shape[0] // len(cell.gates)
    with torch.cuda.device_of(first), torch.no_grad():
        if torch._use_cudnn_rnn_flatten_weight():
            torch._cudnn_rnn_flatten_weight(
                weights,
                len(weights) // len(cells),
                cell.weight_ih.shape[1],
                rnn.get_cudnn_mode(mode),
                width,
                0 if getattr(cell, "weight_hr", None) is None else cell.weight_hh.shape[1],
                1,  # layers
                batch_first,
                len(cells) == 2,
            )
