"""Which scans the native engine takes, and how a scan becomes runs of a program."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cello.cells.contract import state_dtype
from cello.compile import CannotCompile, Program, autocast_dtype, compiled
from cello.compile.describe import describe
from cello.compile.inventory import plain_fingerprint
from cello.engines.contract import Direction, DirectionResult, Engine, Repeat, Scan
from cello.engines.native.kernel import Kernel
from cello.engines.native.kernel import run as run_calls
from cello.engines.native.library import library, multiplies_bfloat16, why_missing
from cello.engines.native.scan import OneWay, have_memory
from cello.engines.native.scan import scan as scan_steps
from cello.engines.reference import Reference
from cello.engines.sequence import Layout, Sequence
from cello.engines.vendor import multiplies_in_bfloat16
from cello.foreign.adapt import Adapted

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


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
        if multiplies_in_bfloat16(scan) and not multiplies_bfloat16():
            return [
                "torch's LSTM kernel multiplies in bfloat16, and the native engine does not on this "
                "processor"
            ]
        return []

    def describe(self, scan: Scan) -> list[str]:
        cell = scan.directions[0].cell
        program = _program(scan, scan.directions[0])
        return describe(program, cell.state_names).lines()

    def outside(self, scan: Scan) -> tuple[str, ...]:
        programs = [_program(scan, direction) for direction in scan.directions]
        return tuple([name for program in programs for name in program.outside])

    def run(self, scan: Scan) -> tuple[DirectionResult, ...]:
        programs = self._programs(scan)
        self._latest.scan = None  # it holds tensors
        if any(direction.state is None for direction in scan.directions):
            pairs = zip(scan.directions, programs, strict=True)
            return tuple([_run_direction(scan, *pair) for pair in pairs])
        return _run_steps(scan, programs)

    def repeat(self, scan: Scan) -> Repeat | None:
        (direction,) = scan.directions
        program, cell, x = self._programs(scan)[0], direction.cell, scan.sequence.data
        if plain_fingerprint(cell) is None:  # its functions may change unseen
            return None
        names = program.weight_names(cell)
        if autocast_dtype() is not None:
            return None
        if names is None or not program.reads_input_as_it_is or len(program.output_shape) != 1:
            return None
        weights = [vars(cell)[name] for name in names]
        own = program.dtype
        dtypes = [torch.bfloat16 if value.is_bfloat16 else own for value in program.loop.statics]
        returned = (program.output_dtype, *program.state_dtypes)
        is_plain = {x.dtype, *dtypes, *returned} == {own}  # nothing is to be cast
        kernel = Kernel.of(program, False, None)

        def run(
            x: Tensor, layout: Layout, state: list[Tensor]
        ) -> tuple[Tensor, list[Tensor]] | None:
            if next(_why_not_now(), None) is not None or torch._C._len_torch_function_stack() > 0:
                return None
            if autocast_dtype() is not None:
                return None
            statics = weights
            if not is_plain:
                x, statics = _in_dtype(x, own), list(map(_in_dtype, weights, dtypes))
                state = [_in_dtype(part, own) for part in state]
            x = x.contiguous()
            if torch.is_grad_enabled() or not have_memory((x, *state)):
                flat = [part.view(layout.batch_size, -1) for part in state]
                way = OneWay(program, cell, direction.reverse, [x], statics, flat)
                ((results, finals),) = scan_steps([way], layout, False)
                finals = [f.view(s.shape) for f, s in zip(finals, state, strict=True)]
            else:
                call, results, finals, _ = kernel.forward(
                    layout.steps,
                    layout.rows,
                    None,
                    direction.reverse,
                    [x],
                    statics,
                    state,
                    layout.batch_size,
                )
                run_calls([call])
            if is_plain:
                return results[0], finals
            output, *finals = map(_in_dtype, (results[0], *finals), returned)
            return output, finals

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
        assert isinstance(direction.cell, Adapted)  # no other makes its first state itself
        x = scan.sequence.data
        dtype = state_dtype(x.dtype, direction.cell)
        state = direction.cell.zeros(1, dtype=dtype, device=x.device)
    return compiled(direction.cell, scan.sequence.data, state)


def _run_direction(scan: Scan, direction: Direction, program: Program) -> DirectionResult:
    if direction.state is None:
        return _start_by_itself(scan, direction, program)
    (result,) = _run_steps(scan._replace(directions=(direction,)), (program,))
    return result


def _run_steps(scan: Scan, programs: tuple[Program, ...]) -> tuple[DirectionResult, ...]:
    """Run directions that all have a state to start from."""
    sequence, x = scan.sequence, scan.sequence.data
    ways = []
    for (cell, state, descending), program in zip(scan.directions, programs, strict=True):
        assert state is not None
        inputs = program.input_tensors(cell, x)
        statics = program.static_tensors(cell, x.device)
        states = [_rows(part, program.dtype) for part in state]
        ways.append(OneWay(program, cell, descending, inputs, statics, states))
    found = scan_steps(ways, sequence.layout, scan.keep_states)
    return tuple([_result(way.program, *parts) for way, parts in zip(ways, found, strict=True)])


def _result(program: Program, results: list[Tensor], finals: list[Tensor]) -> DirectionResult:
    finals = list(map(_in_dtype, finals, program.state_dtypes))
    states = list(map(_in_dtype, results[1:], program.state_dtypes))
    output = _in_dtype(results[0], program.output_dtype)
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
        onwards = Scan(rest, (Direction(direction.cell, going),), scan.keep_states)
        (end,) = _run_steps(onwards, (program,))
        output = torch.cat([output, end.output])
        final = tuple(
            torch.cat([new, old[alive:]]) for new, old in zip(end.state, final, strict=True)
        )
        states = tuple(torch.cat(pair) for pair in zip(states, end.states, strict=True))
    if direction.reverse:
        output = scan.sequence.reverse_rows(output)
        states = tuple(scan.sequence.reverse_rows(rows) for rows in states)
    return DirectionResult(output, final, states)
