"""What engines of programs share: which scans they take, and how a scan becomes runs of a program."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cello.cells.contract import State, state_dtype
from cello.compile import (
    CannotCompile,
    Precision,
    Program,
    as_real,
    autocast_dtype,
    compiled,
    for_storage,
    loop_dtype,
    other_program,
    watched,
)
from cello.compile.counters import Growth
from cello.compile.describe import describe
from cello.compile.integers import MOST_IN_STATE, is_integer
from cello.engines.contract import (
    Declined,
    Direction,
    DirectionResult,
    Engine,
    Prepared,
    Scan,
)
from cello.engines.programs.assumed import (
    NotAsAssumedError,
    Waits,
    declined_if,
    first_unlike_assumed,
    hold_assumed,
    mends_left,
    not_as_assumed,
)
from cello.engines.programs.kernel import Kernel
from cello.engines.programs.operator import is_registered
from cello.engines.programs.parts import run_by_itself, run_in_two
from cello.engines.programs.scan import OneWay, are_readable, have_memory, hold_to_one_device
from cello.engines.programs.scan import scan as scan_steps
from cello.engines.sequence import Layout
from cello.foreign.adapt import Adapted
from cello.foreign.generators import Generators

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Of states, for which there are programs."""


def why_no_program(scan: Scan, engine: str) -> Iterator[str]:
    """Say why an engine of programs cannot run `scan`, whatever its device and cells.

    Args:
        scan: the scan.
        engine: what the reasons call the engine.
    """
    x = scan.sequence.data
    for tensor in (x, *(part for direction in scan.directions for part in direction.state or ())):
        if type(tensor) is not Tensor and _sees_operations(type(tensor)):
            yield f"{type(tensor).__name__} has a __torch_function__, which is to see each operation"
            break
    for direction in scan.directions:
        dtype = loop_dtype(direction.cell, x, direction.state or ())
        if dtype not in DTYPES:
            yield f"{engine} takes {', '.join(map(str, DTYPES))}, not {dtype}"
            break
    if scan.sequence.batch_size == 0:
        yield "there are no sequences in the batch"


def _sees_operations(kind: type[Tensor]) -> bool:
    """Whether a class of tensors has a ``__torch_function__`` of its own."""
    own: Any = kind.__torch_function__
    usual: Any = Tensor.__torch_function__
    disabled = torch._C._disabled_torch_function_impl
    return own is not disabled and getattr(own, "__func__", own) is not usual.__func__


class _Latest(threading.local):
    scan: Scan | None = None
    programs: tuple[Program | None, ...] = ()


class ProgramEngine(Engine):
    """Compiled cells: one call below Python for all steps of a direction.

    An engine says why it does not take a scan whose cells do compile, and brings a :class:`Kernel`. If it
    registers that for the operators (:func:`cello.engines.programs.operator.register`), it has them.
    """

    is_fused = True

    def __init__(self) -> None:
        self._latest = _Latest()
        self._waits = Waits()

    @property
    @abstractmethod
    def kernels(self) -> type[Kernel[Any]]:
        """What runs loops."""

    @property
    def has_operator(self) -> bool:
        return is_registered(self.kernels)

    def precision(self, dtype: torch.dtype) -> Precision:
        """Say in which dtypes it computes for a state of `dtype`."""
        return for_storage(dtype)

    @abstractmethod
    def why_not_here(self, scan: Scan) -> Iterator[str]:
        """Say why this engine cannot run `scan`, whatever its cells compute."""

    def why_not(self, scan: Scan) -> list[str]:
        reasons = [*self.why_not_here(scan), *_why_not_now()]
        if reasons:
            return reasons
        try:
            programs = self._programs(scan)
            for direction, program in zip(scan.directions, programs, strict=True):
                self._hold_for_rows(scan, direction, program)
                _hold_counters(scan, direction, program)
                hold_assumed(scan, direction, program)
        except CannotCompile as error:
            self._latest.scan = None
            return [str(error)]
        reasons = list(_why_not_there(scan, programs))
        if torch.compiler.is_compiling() and any(one.sets_attributes for one in programs):
            reasons.append("the cell sets attributes, which a graph cannot do")
        if reasons:
            self._latest.scan = None
        return reasons

    def why_rather_not(self, scan: Scan) -> list[str]:
        for direction, program in zip(scan.directions, self._programs(scan), strict=True):
            if program.assumed and not self._waits.is_over(direction.cell):
                self._latest.scan = None
                return [
                    f"{program.label} asks in Python for what depends on the values of tensors, and in the "
                    f"calls before it was not as assumed: {'; '.join(program.assumed)}"
                ]
        return []

    def _hold_for_rows(self, scan: Scan, direction: Direction, program: Program) -> None:
        layout = scan.sequence.layout
        # In a graph for any size no size is known.
        if program.asks_for_rows and type(layout.batch_size) is int:
            state = self._state(scan, direction)
            program.hold_for(direction.cell, scan.sequence.data, state, layout.numbers_of_rows)

    def describe(self, scan: Scan) -> list[str]:
        cell = scan.directions[0].cell
        program = self._program(scan, scan.directions[0])
        lines = describe(program, cell.state_names).lines()
        if program.sets_attributes:
            names = ", ".join(sorted(path.readable for path in program.trace.sets))
            lines.append(f"the last step runs in Python, and leaves {names} behind")
        if program.assumed:
            lines.append(
                "assumed; where it does not hold, another program runs the step, or all run in Python:"
            )
            lines += [f"  {told}" for told in program.assumed]
        return lines

    def outside(self, scan: Scan) -> tuple[str, ...]:
        programs = [self._program(scan, direction) for direction in scan.directions]
        return tuple([name for program in programs for name in program.outside])

    def run(self, scan: Scan) -> tuple[DirectionResult, ...] | Declined:
        programs = self._programs(scan)
        self._latest.scan = None  # it holds tensors
        pairs = list(zip(scan.directions, programs, strict=True))
        is_random = any(one.assumed and one.trace.is_random for one in programs)
        before = Generators(scan.sequence.data.device) if is_random else None
        try:
            if any(one.state is None or program.sets_attributes for one, program in pairs):
                results = tuple([self._run_direction(scan, *pair) for pair in pairs])
            else:
                results = self._run_steps(scan, programs)
        except NotAsAssumedError as error:
            self._note(pairs, held=False)
            if before is not None:
                before.put_back()
            return Declined(str(error))
        self._note(pairs, held=True)
        return results

    def _note(self, pairs: list[tuple[Direction, Program]], *, held: bool) -> None:
        for direction, program in pairs:
            if program.assumed:
                self._waits.note(direction.cell, held=held)

    def prepare(self, scan: Scan) -> Prepared | None:
        (direction,) = scan.directions
        program, cell, x = self._programs(scan)[0], direction.cell, scan.sequence.data
        self._latest.scan = None  # it holds tensors
        device, own = x.device, program.dtype
        is_simple = len(program.output_shape) == 1 and not program.sets_attributes
        is_simple = is_simple and program.growth is None and not program.is_complex
        is_simple = is_simple and not program.assumed
        if autocast_dtype(device) is not None or not is_simple:
            return None
        weights: list[Tensor] = []
        is_current = None
        if program.is_plain:  # then nothing but its weights can change
            names = program.weight_names(cell)
            if names is None or not program.reads_input_as_it_is:
                return None
            weights = [vars(cell)[name] for name in names]
        else:
            is_current = watched(cell, program)
            if is_current is None:
                return None
        kernels = self.kernels
        kernel = kernels.of(program, False, None)
        dtypes = kernel.dtypes
        returned = (program.output_dtype, *program.state_dtypes)
        is_uniform = {x.dtype, *dtypes, *returned} == {own}  # nothing is to be cast

        def holds(layout: Layout) -> bool:
            return (
                next(_why_not_now(), None) is None
                and torch._C._len_torch_function_stack() == 0
                and autocast_dtype(device) is None
                and (is_current is None or is_current())
                and (not program.asks_for_rows or program.knows(layout.numbers_of_rows))
            )

        def run(x: Tensor, layout: Layout, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            if not is_uniform:
                state = [_in_dtype(part, own) for part in state]
            if is_current is not None:
                inputs = program.input_tensors(cell, x)
                statics = program.static_tensors(cell, device)
                hold_to_one_device(inputs, statics, state)
                seen = (*inputs, *statics, *state)
            else:
                statics = weights
                if not is_uniform:
                    x, statics = _in_dtype(x, own), list(map(_in_dtype, weights, dtypes))
                inputs = [x.contiguous()]
                seen = (*inputs, *state)  # whoever keeps the weights sees to them
            if torch.is_grad_enabled() or not have_memory(seen):
                flat = [part.view(layout.batch_size, -1) for part in state]
                way = OneWay(program, cell, direction.reverse, inputs, statics, flat)
                ((results, finals),) = scan_steps(kernels, [way], layout, False)
                finals = [f.view(s.shape) for f, s in zip(finals, state, strict=True)]
            else:
                call, results, finals, _ = kernel.forward(
                    layout.steps,
                    layout.rows,
                    None,
                    direction.reverse,
                    inputs,
                    statics,
                    state,
                    layout.batch_size,
                )
                kernel.run([call])
            if is_uniform:
                return results[0], finals
            output, *finals = map(_in_dtype, (results[0], *finals), returned)
            return output, finals

        return Prepared(holds, run)

    def _programs(self, scan: Scan) -> tuple[Program, ...]:
        if self._latest.scan is not scan:
            self._latest.programs = tuple([self._program(scan, d) for d in scan.directions])
            self._latest.scan = scan
        return self._latest.programs  # type: ignore[return-value]

    def _program(self, scan: Scan, direction: Direction) -> Program:
        state = self._state(scan, direction)
        cell, x = direction.cell, scan.sequence.data
        return compiled(cell, x, state, self.precision(loop_dtype(cell, x, state)))

    def _state(self, scan: Scan, direction: Direction) -> tuple[Tensor, ...]:
        """The state of a direction, or one like that which its cell makes itself."""
        if direction.state is not None:
            return direction.state
        assert isinstance(direction.cell, Adapted)  # no other makes its first state itself
        x = scan.sequence.data
        dtype = state_dtype(x.dtype, direction.cell)
        return direction.cell.zeros(1, dtype=dtype, device=x.device)

    def _run_direction(self, scan: Scan, direction: Direction, program: Program) -> DirectionResult:
        if program.sets_attributes:
            return self._end_by_itself(scan, direction, program)
        if direction.state is None:
            return self._start_by_itself(scan, direction, program)
        (result,) = self._run_steps(scan._replace(directions=(direction,)), (program,))
        return result

    def _run_steps(
        self,
        scan: Scan,
        programs: tuple[Program, ...],
        mends: int | None = None,
        *,
        is_known: bool = False,
    ) -> tuple[DirectionResult, ...]:
        """Run directions that all have a state to start from.

        Args:
            scan: the scan.
            programs: those of its directions.
            is_known: whether what they assume is known to be so.
            mends: how many steps that are not as assumed may be run by other programs; ``None`` for a call
                in which none was yet.

        Raises:
            NotAsAssumedError: there are more, or no other programs.
        """
        sequence, x = scan.sequence, scan.sequence.data
        ways = []
        for (cell, state, descending), program in zip(scan.directions, programs, strict=True):
            assert state is not None
            with declined_if(program.assumed):  # what a question guards may be an error
                inputs = program.input_tensors(cell, x)
                statics = program.static_tensors(cell, x.device)
            states = [_rows(part, program.dtype) for part in state]
            ways.append(OneWay(program, cell, descending, inputs, statics, states))
        found = scan_steps(self.kernels, ways, sequence.layout, scan.keep_states)
        made = []
        for direction, way, (results, finals) in zip(scan.directions, ways, found, strict=True):
            first = first_unlike_assumed(scan, way, results) if way.program.assumed else None
            if first is None or is_known:
                made.append(_result(way.program, results, finals))
            else:
                made.append(self._mend(scan, direction, way.program, first, mends))
        return tuple(made)

    def _mend(
        self, scan: Scan, direction: Direction, program: Program, first: int, mends: int | None
    ) -> DirectionResult:
        """Run a direction again, with another program for the first step that is not as assumed.

        Raises:
            NotAsAssumedError: there are many such steps, or there is no such program.
        """
        left = mends_left(program, first, scan.sequence.steps, mends)

        def run(
            part: Scan, program: Program, mends: int, is_known: bool = False
        ) -> DirectionResult:
            growth, state = program.growth, part.directions[0].state
            assert state is not None
            if growth is not None and not _are_small(state, growth, part.sequence.steps):
                raise not_as_assumed(program)
            return self._run_steps(part, (program,), mends, is_known=is_known)[0]

        def mend(part: Scan) -> DirectionResult:
            cell, state, _ = part.directions[0]
            x = part.sequence.data
            assert state is not None
            precision = self.precision(loop_dtype(cell, x, state))
            other = other_program(cell, x, state, program, precision)
            if other is None:
                raise not_as_assumed(program)
            return run(part, other, 0, is_known=True)

        def go_on(part: Scan) -> DirectionResult:
            return run(part, program, left)

        def mend_and_go_on(part: Scan) -> DirectionResult:
            return run_in_two(part, part.directions[0], 1, mend, go_on)

        if first == 0:
            return run_in_two(scan, direction, 1, mend, go_on)
        return run_in_two(
            scan, direction, first, lambda part: run(part, program, 0), mend_and_go_on
        )

    def _start_by_itself(
        self, scan: Scan, direction: Direction, program: Program
    ) -> DirectionResult:
        """Let the cell take its own first step, since it makes its own state, and go on from there."""

        def go_on(part: Scan) -> DirectionResult:
            state, growth = part.directions[0].state, program.growth
            assert state is not None
            if growth is not None and not _are_small(state, growth, part.sequence.steps):
                return run_by_itself(part)  # it started further on than the loop counts
            return self._run_steps(part, (program,))[0]

        return run_in_two(scan, direction, 1, run_by_itself, go_on)

    def _end_by_itself(self, scan: Scan, direction: Direction, program: Program) -> DirectionResult:
        """Let the cell take the last step itself, so that its attributes are set to what they then are."""

        def begin(part: Scan) -> DirectionResult:
            if part.directions[0].state is None:
                return self._start_by_itself(part, part.directions[0], program)
            return self._run_steps(part, (program,))[0]

        def end(part: Scan) -> DirectionResult:
            if program.assumed:  # whether the last step is as assumed, too
                self._run_steps(part, (program,), 0)
            return run_by_itself(part)

        steps = scan.sequence.steps - 1
        first = begin if steps else run_by_itself
        return run_in_two(scan, direction, steps, first, end)


def _why_not_now() -> Iterator[str]:
    if torch._C._is_tracing():
        yield "torch.jit.trace does not see what runs below Python"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        yield "a transform of torch.func is active"
    if forward_ad._current_level >= 0:
        yield "forward-mode differentiation is active"
    modes: list[Any] = []
    if torch._C._len_torch_function_stack():
        modes += torch.overrides._get_current_function_mode_stack()
    if torch._C._len_torch_dispatch_stack():
        modes += torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    for mode in modes:
        if not type(mode).__module__.startswith("torch."):
            yield f"a {type(mode).__name__} is active, which may see and change each operation"


def _hold_counters(scan: Scan, direction: Direction, program: Program) -> None:
    """Hold the integers of a state to what the loop counts to.

    Raises:
        CannotCompile: in so many steps they may grow beyond.
    """
    if program.growth is None:
        return
    state, steps = direction.state or (), scan.sequence.steps
    if not are_readable(state):
        raise CannotCompile(
            f"the state of {program.label} holds integers, whose size is not known here"
        )
    if not _are_small(state, program.growth, steps):
        raise CannotCompile(
            f"the integers in the state of {program.label} may grow beyond {MOST_IN_STATE} in {steps} "
            "steps, which is how far the loop counts in a state"
        )


def _are_small(state: State, growth: Growth, steps: int) -> bool:
    """Whether the integers of a state stay within what the loop counts to for so many steps."""
    counters = [part for part in state if is_integer(part.dtype) and part.numel()]
    ends = [end.double() for part in counters for end in part.aminmax()]
    start = float(torch.stack(ends).abs().amax()) if ends else 0.0
    return growth.after(steps, start) <= MOST_IN_STATE


def _why_not_there(scan: Scan, programs: tuple[Program, ...]) -> Iterator[str]:
    """Say what is on another device than the input; a Python loop may bring it there."""
    device = scan.sequence.data.device
    for (cell, state, _), program in zip(scan.directions, programs, strict=True):
        found = program.elsewhere(cell, device)
        if found is not None:
            path, other = found
            told = f"{path.readable} of {cell.label} is on {other}, the input on {device}"
            if other.type == "meta":  # some operations of torch would read what is not there
                raise RuntimeError(f"{told}; a tensor on the meta device has no numbers")
            yield told
        elif any(part.device != device for part in state or ()):
            yield f"the state of {cell.label} is not on {device}, where the input is"


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
    if dtype.is_complex:  # a row holds the real parts, and then the imaginary ones
        return torch.complex(*_in_dtype(tensor, dtype.to_real()).chunk(2, -1))
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _rows(state: Tensor, dtype: torch.dtype) -> Tensor:
    state = as_real(state)
    state = state if state.dim() == 2 else state.reshape(state.shape[0], -1)
    return _in_dtype(state, dtype).contiguous()


def _shaped(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    return rows if len(shape) == 1 else rows.view(rows.shape[0], *shape)
