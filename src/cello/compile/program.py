"""From a cell to a program: the compile step as a whole, and its cache."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cello.cells.contract import Cell
from cello.compile.derive import Wanted, derive
from cello.compile.instructions import Assemble, Loop, Pointwise, Product, Reduce, Ref, Value
from cello.compile.inventory import hooks_of, kind_of, plain_fingerprint
from cello.compile.lower import Lowering, computed_in
from cello.compile.reasons import CannotCompile
from cello.compile.replay import Replay
from cello.compile.save import choose_saved
from cello.compile.schedule import Column, Schedule, schedule
from cello.compile.simplify import drop_unread, fuse, simplify
from cello.compile.trace import Trace, trace
from cello.foreign.path import Path, find
from cello.foreign.reach import Reach
from cello.foreign.scope import Scope, Watch


@dataclass(frozen=True)
class Run:
    """The two loops of one way to run a program.

    Forward streams are: the inputs; the output; each state, if the states of all steps are kept; and
    what is saved for the backward loop, if anything. Backward streams are: the gradients of the output
    and of the kept states; the inputs; the output and the kept states; what was saved; the gradients
    of those inputs that want one.

    Attributes:
        forward: the forward loop.
        backward: the backward loop, or ``None`` without gradients.
        wanted: which inputs and statics get gradients.
        saved_width: how many numbers are saved for each row of each step.
        reads_input: for each input whether the backward loop reads it.
        reads_output: likewise for the output and the kept states.
    """

    forward: Schedule
    backward: Schedule | None
    wanted: Wanted
    saved_width: int
    reads_input: tuple[bool, ...]
    reads_output: tuple[bool, ...]


class Program:
    """A compiled cell: one step as instructions, and how to run it.

    Attributes:
        trace: the step in ATen operations.
        loop: the step as instructions.
        statics: for each static value the tensor of the trace.
        beforehand: for each input likewise.
        dtype: the dtype that it computes in: float32 for half precision, which is for storage only.
        state_dtypes: the dtypes of the cell's state.
        output_dtype: the dtype of its output.
        outside: what it depends on beside parameters, buffers, plain attributes of modules, and code.
    """

    outside: tuple[str, ...] = ()

    def __init__(self, trace: Trace, label: str, dtype: torch.dtype) -> None:
        lowered = Lowering(trace, label, dtype, computed_in(dtype)).lower()
        simplify(lowered.loop)
        self.trace, self.label, self.dtype = trace, label, computed_in(dtype)
        self.state_dtypes = tuple(node.dtype for node in trace.state)
        self.output_dtype = trace.output.dtype
        self.loop = lowered.loop
        self.statics, self.beforehand = lowered.statics, lowered.beforehand
        if self.dtype == torch.float32:
            self._mark_bfloat16()
        self._runs: dict[Hashable, Run] = {}
        self._lock = threading.Lock()
        self.run(False, None)  # finds out here, and not at the first call, what cannot be scheduled
        self.run(False, Wanted((True,) * len(self.loop.inputs), (True,) * len(self.loop.statics)))

    @cached_property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of a row of the output."""
        return self.trace.output.shape[1:]

    @cached_property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of a row of each state."""
        return tuple(node.shape[1:] for node in self.trace.state)

    def static_tensors(self, cell: Cell, device: torch.device) -> list[Tensor]:
        """Compute the tensors that are the same for all steps, under autograd."""
        replay: Replay | None = None
        tensors = []
        held, places = vars(cell), _places_in(cell)
        for node, value in zip(self.statics, self.loop.statics, strict=True):
            path = node.source
            if isinstance(path, Path):
                tensor = held[path[0]] if len(path) == 1 and path[0] in held else places.get(path)
                if tensor is None:
                    tensor = find(cell, path)
            else:
                replay = replay or Replay(self.trace.rows, cell, self.trace.rows, device)
                tensor = replay(node)
            dtype = torch.bfloat16 if value.is_bfloat16 else self.dtype
            if tensor.dtype != dtype:
                tensor = tensor.to(dtype)
            tensors.append(tensor if tensor.is_contiguous() else tensor.contiguous())
        return tensors

    def _mark_bfloat16(self) -> None:
        """Find the statics in bfloat16 that are nothing but matrices."""
        others: set[Value] = set()
        for instruction in self.loop.body:
            weights = (
                [t.weight for t in instruction.terms] if isinstance(instruction, Product) else []
            )
            others.update(value for value in instruction.reads() if value not in weights)
            if isinstance(instruction, Product):
                others.update(bias.value for bias in instruction.biases)
                others.update(term.row for term in instruction.terms)
        others.update(self.loop.outputs, self.loop.new_states)
        for value, node in zip(self.loop.statics, self.statics, strict=True):
            value.is_bfloat16 = node.dtype == torch.bfloat16 and value not in others

    def weight_names(self, cell: Cell) -> list[str] | None:
        """The names of the attributes that :attr:`statics` are, if that is all that they are."""
        held, names = vars(cell), []
        for node in self.statics:
            path = node.source
            if not isinstance(path, Path) or len(path) != 1 or path[0] not in held:
                return None
            names.append(path[0])
        return names

    @property
    def reads_input_as_it_is(self) -> bool:
        """Whether the loop reads the input itself, and nothing that is made from it beforehand."""
        return [node.source for node in self.beforehand] == ["x"]

    def input_tensors(self, cell: Cell, x: Tensor) -> list[Tensor]:
        """Compute what is made from the input alone, for the rows of all steps, under autograd."""
        replay: Replay | None = None
        tensors = []
        for node in self.beforehand:
            if node.source == "x":
                tensor = x
            else:
                if replay is None:
                    replay = Replay(self.trace.rows, cell, x.shape[0], x.device)
                    replay.give(self.trace.x, x)
                    for state in self.trace.state:  # of which only the shape can count
                        like = x.new_empty(1, dtype=self.dtype)
                        replay.give(state, like.expand(x.shape[0], *state.shape[1:]))
                tensor = replay(node)
            if tensor.dtype != self.dtype:
                tensor = tensor.to(self.dtype)
            if tensor.dim() != 2:
                tensor = tensor.reshape(x.shape[0], prod(tensor.shape[1:]))
            tensors.append(tensor if tensor.is_contiguous() else tensor.contiguous())
        return tensors

    def run(self, keep_states: bool, wanted: Wanted | None) -> Run:
        """Return how to run the program.

        Args:
            keep_states: whether the states of all steps are results.
            wanted: which gradients are, or ``None`` for none.
        """
        key = (keep_states, wanted)
        if key not in self._runs:
            with self._lock:
                if key not in self._runs:
                    self._runs[key] = self._make_run(keep_states, wanted)
        return self._runs[key]

    def _make_run(self, keep_states: bool, wanted: Wanted | None) -> Run:
        loop = self.loop
        kept = [*loop.outputs, *(loop.new_states if keep_states else [])]
        inputs = {v: Column(k, 0, v.width) for k, v in enumerate(loop.inputs)}
        writes = [(v, 0, v.width, Column(len(inputs) + k, 0, v.width)) for k, v in enumerate(kept)]
        if wanted is None:
            forward = _copy(loop)
            fuse(forward)
            none = (False,) * len(loop.inputs), (False,) * len(kept)
            made = schedule(forward, inputs, writes)
            return Run(made, None, Wanted((), ()), 0, *none)

        forward = _copy(loop)
        forward.outputs = kept
        gradient = derive(forward, wanted)
        drop_unread(gradient)
        saved, befores, again = choose_saved(forward, gradient)
        gradient.body = again + gradient.body
        windows = {value: _window(value, gradient) for value in saved}
        after = [(forward.new_states[forward.states.index(state)], state) for state in befores]
        for value in dict.fromkeys(value for value, _ in after):
            parts = [state for new, state in after if new is value]
            parts += [value] if _is_read(value, gradient) else []
            reached = [_window(part, gradient) for part in parts]
            windows[value] = min(a for a, _ in reached), max(b for _, b in reached)
        stored = [v for v in saved if v not in loop.inputs and v not in kept]
        saved_width = sum(windows[v][1] - windows[v][0] for v in stored)
        grads = {v: Column(k, 0, v.width) for k, v in enumerate(gradient.inputs)}
        first_input = len(grads)
        first_kept = first_input + len(loop.inputs)
        at = first_kept + len(kept)
        reads = dict(grads)
        for k, value in enumerate(loop.inputs):
            if value in saved:
                reads[value] = Column(first_input + k, 0, value.width)
        for k, value in enumerate(kept):
            if value in saved:
                reads[value] = Column(first_kept + k, 0, value.width)
        place = 0
        for value in stored:
            first, last = windows[value]
            column = Column(len(inputs) + len(kept), place, saved_width)
            writes.append((value, first, last, column))
            reads[value] = Column(at, place - first, saved_width)
            place += last - first
        for value, state in after:
            reads[state] = replace(reads[value], origin=forward.states.index(state))
        for value, _ in after:
            if not _is_read(value, gradient):
                reads.pop(value, None)
        results = [
            (v, 0, v.width, Column(at + 1 + k, 0, v.width)) for k, v in enumerate(gradient.outputs)
        ]
        fuse(forward)
        fuse(gradient)
        return Run(
            forward=schedule(forward, inputs, writes),
            backward=schedule(gradient, reads, results),
            wanted=wanted,
            saved_width=saved_width,
            reads_input=tuple(value in saved for value in loop.inputs),
            reads_output=tuple(value in saved for value in kept),
        )


def _copy(loop: Loop) -> Loop:
    """A loop with instructions of its own, which may be rewritten."""
    body = [copy.copy(instruction) for instruction in loop.body]
    return Loop(loop.inputs, loop.states, loop.statics, body, loop.outputs, loop.new_states)


def _is_read(value: Value, loop: Loop) -> bool:
    """Whether a loop reads a value."""
    return bool(_ranges(value, loop))


def _window(value: Value, loop: Loop) -> tuple[int, int]:
    """The first and the last number of a value that a loop reads; all of it where it reads none."""
    ranges = _ranges(value, loop)
    if not ranges:
        return 0, value.width
    return min(first for first, _ in ranges), max(last for _, last in ranges)


def _ranges(value: Value, loop: Loop) -> list[tuple[int, int]]:
    """The first number and the end of every part of a value that a loop reads."""
    ranges: list[tuple[int, int]] = []

    def read(ref: Ref, shape: tuple[int, ...]) -> None:
        if ref.value is value:
            steps = [(n - 1) * s for n, s in zip(shape, ref.strides, strict=True)]
            first = ref.offset + sum(min(0, step) for step in steps)
            ranges.append((first, ref.offset + sum(max(0, step) for step in steps) + 1))

    for instruction in loop.body:
        if isinstance(instruction, Pointwise):
            for arg in instruction.args:
                read(arg, instruction.shape)
        elif isinstance(instruction, Reduce):
            read(instruction.arg, instruction.shape)
        elif isinstance(instruction, Assemble):
            for piece in instruction.pieces:
                read(piece.source, piece.shape)
        elif isinstance(instruction, Product):
            for term in instruction.terms:
                read(Ref(term.row, term.offset, (1,)), (term.K,))
    for outer in loop.outers:
        read(Ref(outer.row, outer.offset, (1,)), (outer.K,))
        read(Ref(outer.gradient, outer.g_offset, (1,)), (outer.N,))
    for row_sum in loop.row_sums:
        read(row_sum.source, row_sum.shape)
    return ranges


_MAX_PROGRAMS, _MAX_SCOPES = 512, 8
_programs: OrderedDict[Hashable, Program | CannotCompile] = OrderedDict()
_scopes: OrderedDict[Hashable, list[Scope]] = OrderedDict()
_lock = threading.RLock()

_Known = tuple[Hashable, Reach, "Program | CannotCompile"]
_latest: WeakKeyDictionary[Cell, _Known] = WeakKeyDictionary()
"""For a cell what was found last, for which settings, and how to tell whether it still holds."""


def compiled(cell: Cell, x: Tensor, state: Sequence[Tensor]) -> Program:
    """Return the program of a cell, compiled at the first call for what it reads and for these dtypes.

    Args:
        cell: the cell.
        x: rows of its input, (N, ...).
        state: its state, (B, ...) each.

    Raises:
        CannotCompile: there is none; the message says why.
    """
    shapes = tuple([(part.shape[1:], part.dtype) for part in (x, *state)])
    settings = (shapes, torch.get_default_dtype(), autocast_dtype())
    fingerprint = plain_fingerprint(cell)
    if fingerprint is None:
        known = _known_of(cell, settings, x, tuple(state))
    else:
        key = (fingerprint, settings)
        found = _programs.get(key)
        if found is None:
            with _lock:
                found = _programs.get(key) or _compile(cell, x, tuple(state), Watch())
                _store(key, found)
        known = found
    if isinstance(known, CannotCompile):
        # A new one each time: an exception keeps the frames that it went through, with their tensors.
        raise CannotCompile(*known.args)
    return known


def _known_of(
    cell: Cell, settings: Hashable, x: Tensor, state: tuple[Tensor, ...]
) -> Program | CannotCompile:
    """The program of a cell whose code may read anything, or why there is none."""
    latest = _latest.get(cell)
    if latest is not None and latest[0] == settings and latest[1].holds():
        return latest[2]
    kind = kind_of(cell)
    with _lock:
        scopes = _scopes.setdefault(kind, [])
        for scope in scopes:
            reach = Reach(cell, scope)
            known = _programs.get((kind, scope, tuple(reach.marks), settings))
            if known is not None:
                break
        else:
            watch = Watch()
            known = _compile(cell, x, state, watch)
            scope = watch.scope()
            reach = Reach(cell, scope)
            if isinstance(known, Program):
                known.outside = tuple(dict.fromkeys(reach.outside))
            _store((kind, scope, tuple(reach.marks), settings), known)
        # The latest scope first; each program is known by the scope of its own trace.
        _scopes[kind] = [scope, *(other for other in scopes if other != scope)][:_MAX_SCOPES]
        _scopes.move_to_end(kind)
        while len(_scopes) > _MAX_PROGRAMS:
            _scopes.popitem(last=False)
    reach.drop_kept()
    if reach.can_be_kept:
        _latest[cell] = (settings, reach, known)
    else:
        _latest.pop(cell, None)
    return known


def _places_in(cell: Cell) -> Mapping[Path, Tensor]:
    """The tensors of a cell by their paths, as they were when its program was last asked for."""
    latest = _latest.get(cell)
    return {} if latest is None else latest[1].places


def _store(key: Hashable, known: Program | CannotCompile) -> None:
    _programs[key] = known
    while len(_programs) > _MAX_PROGRAMS:
        _programs.popitem(last=False)


@contextmanager
def _unobserved() -> Iterator[None]:
    """Hide a trace from whatever watches the layer, such as torch.export: it is no part of the run."""
    modes = []
    while torch._C._len_torch_function_stack() > 0:
        modes.append(torch.overrides._pop_mode())
    try:
        with torch.utils._python_dispatch._disable_current_modes():
            yield
    finally:
        for mode in reversed(modes):
            torch.overrides._push_mode(mode)


def autocast_dtype() -> torch.dtype | None:
    """The dtype that torch.autocast casts to on the CPU, or ``None`` where it is off."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None


def _compile(
    cell: Cell, x: Tensor, state: tuple[Tensor, ...], watch: Watch
) -> Program | CannotCompile:
    try:
        # A trace replaces parts of tensors, which those of inference mode do not allow.
        with torch.inference_mode(False), _unobserved():
            return _make_program(cell, x, state, watch)
    except CannotCompile as error:
        return CannotCompile(*error.args)


def _make_program(cell: Cell, x: Tensor, state: tuple[Tensor, ...], watch: Watch) -> Program:
    label = cell.label
    hooked = next(hooks_of(cell), None)
    if hooked is not None:
        raise CannotCompile(f"{label} has hooks on {hooked}, which are to see every step")
    dtypes = {part.dtype for part in state}
    autocast = autocast_dtype()
    if autocast is not None and dtypes == {torch.float32, autocast}:
        dtypes = {torch.float32}
    if len(dtypes) != 1:
        raise CannotCompile(f"the states of {label} differ in dtype: {', '.join(map(str, dtypes))}")
    (dtype,) = dtypes
    known = {dtype} if autocast is None else {dtype, torch.float32, autocast}
    if x.dtype.is_floating_point and x.dtype not in known:
        raise CannotCompile(f"{label} has an input of {x.dtype} and a state of {dtype}")
    if any(prod(part.shape[1:]) == 0 for part in (x, *state)):
        raise CannotCompile(f"{label} has an input or a state without numbers")
    traced = trace(cell, x, state, label, watch, autocast)
    after = [node.dtype for node in traced.new_state]
    if autocast is not None and after != [part.dtype for part in state]:
        # Under autocast the first step may change the dtype; the second step is that of the loop.
        state = tuple(
            part.new_empty((1, *part.shape[1:]), dtype=dtype)
            for part, dtype in zip(state, after, strict=True)
        )
        traced = trace(cell, x, state, label, watch, autocast)
    return Program(traced, label, dtype)
