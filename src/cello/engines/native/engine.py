"""Which scans the native engine takes, and how a scan becomes runs of a program."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cello.cells.contract import State, state_dtype
from cello.compile import CannotCompile, Program, autocast_dtype, compiled
from cello.compile.describe import describe
from cello.compile.inventory import plain_fingerprint
from cello.engines.contract import Direction, DirectionResult, Engine, Repeat, Scan
from cello.engines.native.kernel import Kernel
from cello.engines.native.library import library, multiplies_bfloat16, why_missing
from cello.engines.native.scan import have_memory
from cello.engines.native.scan import scan as scan_steps
from cello.engines.reference import Reference
from cello.engines.sequence import Layout, Sequence
from cello.engines.vendor import multiplies_in_bfloat16, returned_in

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# Where torch's kernel was measured to be faster in bfloat16 (docs/benchmarks.md).
_FEW_PRODUCTS = 1 << 20
_NARROW, _MANY_ROWS = 128, 64


class _Latest(threading.local):
    scan: Scan | None = None
    programs: tuple[Program | None, ...] = ()


class Native(Engine):
    """Compiled cells on the CPU: one call below Python for all steps of a direction."""

    name = "native"
    is_fused = True
    has_operator = True

    def __init__(self) -> None:
        self._latest = _Latest()

    def why_not(self, scan: Scan) -> list[str]:
        reasons = list(_why_not_here(scan))
        if reasons:
            return reasons
        try:
            self._programs(scan)
        except CannotCompile as error:
            return [str(error)]
        return []

    def why_rather_not(self, scan: Scan) -> list[str]:
        if not multiplies_in_bfloat16(scan):
            return []
        if not multiplies_bfloat16():
            return [
                "torch's LSTM kernel multiplies in bfloat16, and the native engine does not on this "
                "processor"
            ]
        sequence, H = scan.sequence, next(iter(scan.directions[0].cell.state_sizes.values()))
        assert isinstance(H, int)
        products = sequence.data.shape[0] * 4 * H * (sequence.data.shape[1] + H)
        if products < _FEW_PRODUCTS:
            return ["torch's bfloat16 LSTM kernel takes less time for as little work as this"]
        if H <= _NARROW and sequence.batch_size >= _MANY_ROWS and torch.is_grad_enabled():
            return [
                f"torch's bfloat16 LSTM kernel trains faster with {_NARROW} units and less in batches "
                f"of {_MANY_ROWS} and more"
            ]
        return []

    def describe(self, scan: Scan) -> list[str]:
        cell = scan.directions[0].cell
        program = _program(scan, scan.directions[0])
        return describe(program, cell.state_names).lines()

    def run(self, scan: Scan) -> tuple[DirectionResult, ...]:
        programs = self._programs(scan)
        self._latest.scan = None  # it holds tensors
        return tuple(
            [
                _run_direction(scan, direction, program)
                for direction, program in zip(scan.directions, programs, strict=True)
            ]
        )

    def repeat(self, scan: Scan) -> Repeat | None:
        (direction,) = scan.directions
        program, x, cell = self._programs(scan)[0], scan.sequence.data, direction.cell
        if plain_fingerprint(cell) is None:  # its functions may change unseen
            return None
        names = program.weight_names(cell)
        if autocast_dtype() is not None:
            return None
        is_plain = program.reads_input_as_it_is and program.output_dtype == program.dtype == x.dtype
        if names is None or not is_plain or len(program.output_shape) != 1:
            return None
        weights = [vars(cell)[name] for name in names]
        kernel = Kernel.of(program, False, None)

        def run(
            x: Tensor, layout: Layout, state: list[Tensor]
        ) -> tuple[Tensor, list[Tensor]] | None:
            if next(_why_not_now(), None) is not None or torch._C._len_torch_function_stack() > 0:
                return None
            if autocast_dtype() is not None:
                return None
            x = x.contiguous()
            if torch.is_grad_enabled() or not have_memory((x, *state)):
                flat = [part.view(layout.batch_size, -1) for part in state]
                results, finals = scan_steps(
                    program, cell, layout, direction.reverse, False, [x], weights, flat
                )
                return results[0], [f.view(s.shape) for f, s in zip(finals, state, strict=True)]
            results, finals, _ = kernel.forward(
                layout.steps,
                layout.rows,
                None,
                direction.reverse,
                [x],
                weights,
                state,
                layout.batch_size,
            )
            return results[0], finals

        return run

    def _programs(self, scan: Scan) -> tuple[Program, ...]:
        if self._latest.scan is not scan:
            self._latest.programs = tuple([_program(scan, d) for d in scan.directions])
            self._latest.scan = scan
        return self._latest.programs  # type: ignore[return-value]


def _why_not_here(scan: Scan) -> Iterator[str]:
    x = scan.sequence.data
    if x.device.type != "cpu":
        yield f"the native engine runs on the CPU, not on {x.device.type}"
        return
    if library() is None:
        yield f"the native engine was not built: {why_missing()}"
    for direction in scan.directions:
        dtype = direction.state[0].dtype if direction.state else x.dtype
        if dtype not in _DTYPES:
            yield f"the native engine takes {', '.join(map(str, _DTYPES))}, not {dtype}"
            break
    if scan.sequence.batch_size == 0:
        yield "there are no sequences in the batch"
    yield from _why_not_now()


def _why_not_now() -> Iterator[str]:
    if torch._C._is_tracing():
        yield "torch.jit.trace does not see what runs below Python"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        yield "a transform of torch.func is active"
    if forward_ad._current_level >= 0:
        yield "forward-mode differentiation is active"


def _program(scan: Scan, direction: Direction) -> Program:
    state = direction.state
    if state is None:
        sizes = direction.cell.state_sizes.values()
        x = scan.sequence.data
        dtype = state_dtype(x.dtype, direction.cell)
        state = tuple(
            torch.empty((1, *(s if isinstance(s, tuple) else (s,))), dtype=dtype, device=x.device)
            for s in sizes
        )
    return compiled(direction.cell, scan.sequence.data, state)


def _run_direction(scan: Scan, direction: Direction, program: Program) -> DirectionResult:
    if direction.state is None:
        return _start_by_itself(scan, direction, program)
    return _run_steps(scan.sequence, direction, direction.state, program, scan.keep_states)


def _run_steps(
    sequence: Sequence, direction: Direction, state: State, program: Program, keep_states: bool
) -> DirectionResult:
    cell, x = direction.cell, sequence.data
    results, finals = scan_steps(
        program,
        cell,
        sequence.layout,
        direction.reverse,
        keep_states,
        program.input_tensors(cell, x),
        program.static_tensors(cell, x.device),
        [_rows(part, program.dtype) for part in state],
    )
    dtype = returned_in(sequence, cell)
    dtypes = program.state_dtypes if dtype is None else (dtype,) * len(finals)
    finals = list(map(_in_dtype, finals, dtypes))
    states = list(map(_in_dtype, results[1:], dtypes))
    output = _in_dtype(results[0], program.output_dtype if dtype is None else dtype)
    return DirectionResult(
        output=_shaped(output, program.output_shape),
        state=tuple(map(_shaped, finals, program.state_shapes)),
        states=tuple(map(_shaped, states, program.state_shapes)),
    )


def _in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _rows(state: Tensor, dtype: torch.dtype) -> Tensor:
    state = state if state.dim() == 2 else state.reshape(state.shape[0], -1)
    return _in_dtype(state, dtype).contiguous()


def _shaped(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    return rows if len(shape) == 1 else rows.view(rows.shape[0], *shape)


def _start_by_itself(scan: Scan, direction: Direction, program: Program) -> DirectionResult:
    """Let the cell take its own first step, since it makes its own state, and go on from there."""
    sequence = scan.sequence.reversed() if direction.reverse else scan.sequence
    first = Sequence(sequence.data[: sequence.batch_size], sequence.batch_sizes[:1])
    start = Reference().run(Scan(first, (Direction(direction.cell, None),), scan.keep_states))[0]
    output, final, states = start.output, start.state, start.states
    if sequence.steps > 1:
        rest = Sequence(sequence.data[sequence.batch_size :], sequence.batch_sizes[1:])
        alive = rest.batch_size
        going = tuple(part[:alive] for part in final)
        end = _run_steps(rest, Direction(direction.cell, going), going, program, scan.keep_states)
        output = torch.cat([output, end.output])
        final = tuple(
            torch.cat([new, old[alive:]]) for new, old in zip(end.state, final, strict=True)
        )
        states = tuple(torch.cat(pair) for pair in zip(states, end.states, strict=True))
    if direction.reverse:
        output = scan.sequence.reverse_rows(output)
        states = tuple(scan.sequence.reverse_rows(rows) for rows in states)
    return DirectionResult(output, final, states)
