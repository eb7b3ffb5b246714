"""From a cell to a program: the compile step as a whole."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Hashable, Iterable, Sequence
from functools import cached_property
from math import prod
from pathlib import Path as FilePath
from traceback import extract_tb

import torch
from torch import Tensor

from cello.cells.contract import Cell, state_dtype
from cello.compile.answers import hold_assertions, traced_with_answers
from cello.compile.counters import growth
from cello.compile.derive import Used, Wanted
from cello.compile.held import Held
from cello.compile.instructions import Product, Value
from cello.compile.integers import is_whole
from cello.compile.inventory import hooks_of
from cello.compile.kept import found, places_in
from cello.compile.links import Links
from cello.compile.loops import Loops, make_loops, results
from cello.compile.lower import Lowering, hold_apart
from cello.compile.node import Trace
from cello.compile.pairs import as_real, in_pairs
from cello.compile.precision import Precision
from cello.compile.reasons import CannotCompile
from cello.compile.replay import Replay
from cello.compile.simplify import simplify
from cello.compile.trace import hold_for, trace
from cello.foreign.apart import TRIAL_LOCK, unobserved
from cello.foreign.path import Path
from cello.foreign.scope import Watch


class Program:
    """A compiled cell: one step as instructions, and how to run it.

    Attributes:
        trace: the step in ATen operations.
        loop: the step as instructions.
        statics: for each static value the tensor of the trace.
        beforehand: for each input likewise.
        dtype: the dtype that it computes in.
        state_dtypes: the dtypes of the cell's state.
        state_shapes: the shape of a row of each state.
        output_dtype: the dtype of its output.
        output_shape: the shape of a row of the output.
        is_complex: whether the cell computes with complex numbers.
        growth: how far integers of the state may grow, or ``None`` without such.
        outside: what it depends on beside parameters, buffers, plain attributes of modules, and code.
        is_plain: whether the cell is one of Cello's own with plain functions, of which nothing can change
            unseen.
        dead_ends: the questions for which there is no program with another answer.
    """

    outside: tuple[str, ...] = ()
    is_plain = False

    def __init__(
        self, trace: Trace, label: str, dtype: torch.dtype, precision: Precision, held: Held
    ) -> None:
        self.state_dtypes = tuple(node.dtype for node in trace.state)
        self.state_shapes = tuple(node.shape[1:] for node in trace.state)
        self.output_dtype, self.output_shape = trace.output.dtype, trace.output.shape[1:]
        for old, new in zip(trace.state, trace.new_state, strict=True):
            if new.dtype != old.dtype:
                raise CannotCompile(f"{label} takes a state of {old.dtype} and returns {new.dtype}")
        given, trace = trace, in_pairs(trace, label)
        self.is_complex = trace is not given
        lowering = Lowering(trace, label, dtype, precision.compute, held)
        lowered = lowering.lower()
        self.growth = growth(trace, label, lowering.integers)
        hold_apart(trace, label, lowered.beforehand, held)
        simplify(lowered.loop)
        self.trace, self.label, self.dtype = trace, label, precision.compute
        self.loop = lowered.loop
        self.statics, self.beforehand = lowered.statics, lowered.beforehand
        if precision.product != precision.compute:
            self._keep_weights_in(precision.product)
        self._known_rows: frozenset[int] = frozenset()
        self.dead_ends: set[int] = set()
        self._loops: dict[Hashable, Loops] = {}
        self._links: dict[bool, Links] = {}
        self._lock = threading.Lock()

    @cached_property
    def _paths(self) -> tuple[Path, ...]:
        return tuple(node.source for node in self.trace.nodes if isinstance(node.source, Path))

    def elsewhere(self, cell: Cell, device: torch.device) -> tuple[Path, torch.device] | None:
        """Return which tensor that the step reads of the cell is on another device, and on which.

        A tensor of one number may be on the CPU, as everywhere in torch.
        """
        held, places = vars(cell), places_in(cell)
        for path in self._paths:
            tensor = found(cell, path, held, places)
            if tensor.device != device and not _is_number(tensor):
                return path, tensor.device
        return None

    @property
    def sets_attributes(self) -> bool:
        """Whether the step sets attributes, which the last step is to leave behind."""
        return bool(self.trace.sets)

    @cached_property
    def assumed(self) -> list[str]:
        """What is assumed where the step asks for truth values in Python; the last result checks it."""
        return list(dict.fromkeys(question.told for question in self.trace.questions))

    @property
    def asks_for_rows(self) -> bool:
        """Whether the step has asked for the number of rows."""
        return self.trace.counted

    def can_stand_for(self, other: Program) -> bool:
        """Whether it has the same state and output as another program, and does nothing else."""
        kinds = [
            (p.state_shapes, p.state_dtypes, p.output_shape, p.output_dtype, p.dtype)
            for p in (self, other)
        ]
        return kinds[0] == kinds[1] and not self.sets_attributes

    def knows(self, sizes: Iterable[int]) -> bool:
        """Whether the step is known to be the same for some numbers of rows."""
        return self._known_rows.issuperset(sizes)

    def hold_for(
        self, cell: Cell, x: Tensor, state: Sequence[Tensor], sizes: Iterable[int]
    ) -> None:
        """Check that the step is the same for some numbers of rows.

        Raises:
            CannotCompile: it is not.
        """
        if self.knows(sizes):
            return
        new = frozenset(sizes) - self._known_rows
        with TRIAL_LOCK, torch.inference_mode(False), unobserved():
            hold_for(self.trace, cell, x, tuple(state), self.label, sorted(new))
            self._known_rows |= new

    def static_tensors(self, cell: Cell, device: torch.device) -> list[Tensor]:
        """Compute the tensors that are the same for all steps, under autograd."""
        replay: Replay | None = None
        tensors = []
        held, places = vars(cell), places_in(cell)
        for node, value in zip(self.statics, self.loop.statics, strict=True):
            path = node.source
            if isinstance(path, Path):
                tensor = found(cell, path, held, places)
            else:
                replay = replay or Replay(self.trace.rows, cell, self.trace.rows, device)
                tensor = replay(node)
            if tensor.device != device and _is_number(tensor):  # others are for the user to move
                tensor = tensor.to(device)
            dtype = value.dtype or self.dtype
            if tensor.dtype != dtype:
                tensor = tensor.to(dtype)
            tensors.append(tensor if tensor.is_contiguous() else tensor.contiguous())
        return tensors

    def _keep_weights_in(self, dtype: torch.dtype) -> None:
        """Leave statics in a dtype that are in it and nothing but matrices."""
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
            if node.dtype == dtype and value not in others:
                value.dtype = dtype

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
        x = as_real(x)
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

    def loops(self, keep_states: bool, wanted: Wanted | None, used: Used | None = None) -> Loops:
        """Return the step, and its gradient if any is wanted, as loops over instructions.

        Args:
            keep_states: whether the states of all steps are results.
            wanted: which gradients are, or ``None`` for none.
            used: which results and final states have gradients, or ``None`` for all. The forward loop is
                the same, and so is the backward loop where it makes no difference.
        """
        key = (keep_states, wanted, used)
        if key not in self._loops:
            whole = None if used is None else self.loops(keep_states, wanted)
            with self._lock:
                if key not in self._loops:
                    made = make_loops(
                        self.loop,
                        keep_states,
                        wanted,
                        used,
                        label=self.label,
                        dtype=self.dtype,
                        static_shapes=tuple([node.shape for node in self.statics]),
                    )
                    if whole is not None and made.used is None:
                        made = whole
                    self._loops[key] = made
        return self._loops[key]

    def links(self, keep_states: bool) -> Links:
        """Return which results of a loop have gradients, and which tensors get them."""
        if keep_states not in self._links:
            self._links[keep_states] = Links(self.loop, results(self.loop, keep_states))
        return self._links[keep_states]


def loop_dtype(cell: Cell, x: Tensor, state: Sequence[Tensor]) -> torch.dtype:
    """Return the dtype of a state as the loop has it, in which it holds integers, too."""
    for part in state:
        if not is_whole(part.dtype):
            return part.dtype.to_real()
    return state_dtype(x.dtype, cell).to_real()


def _is_number(tensor: Tensor) -> bool:
    """Whether it is one number on the CPU, which meets tensors of any device in torch."""
    return tensor.dim() == 0 and tensor.is_cpu


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that torch.autocast casts to on devices of this type, or ``None`` where it is off."""
    if (
        not torch._C._is_any_autocast_enabled()
    ):  # before the name of a type is made, which takes longer
        return None
    kind = device.type
    is_on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if is_on else None


def try_to_compile(
    cell: Cell,
    x: Tensor,
    state: tuple[Tensor, ...],
    precision: Precision,
    watch: Watch,
    is_second: bool = True,
) -> Program | CannotCompile:
    """Return the program of a cell, or why there is none.

    Args:
        cell: the cell.
        x: rows of its input.
        state: its state.
        precision: the dtypes that an engine computes in.
        watch: what notes which code runs.
        is_second: whether the step is the second one after the state, and not the one from it.
    """
    try:
        # A trace replaces parts of tensors, which those of inference mode do not allow.
        with torch.inference_mode(False), unobserved():
            return _make_program(cell, x, state, precision, watch, is_second)
    except CannotCompile as error:
        return CannotCompile(*error.args)


def _make_program(
    cell: Cell,
    x: Tensor,
    state: tuple[Tensor, ...],
    precision: Precision,
    watch: Watch,
    is_second: bool,
) -> Program:
    label = cell.label
    hooked = next(hooks_of(cell), None)
    if hooked is not None:
        raise CannotCompile(f"{label} has hooks on {hooked}, which are to see every step")
    dtypes = {part.dtype.to_real() for part in state if not is_whole(part.dtype)}
    dtypes = dtypes or {loop_dtype(cell, x, state)}
    autocast = autocast_dtype(x.device)
    if autocast is not None and dtypes == {torch.float32, autocast}:
        dtypes = {torch.float32}
    if len(dtypes) != 1:
        raise CannotCompile(f"the states of {label} differ in dtype: {', '.join(map(str, dtypes))}")
    (dtype,) = dtypes
    known = {dtype} if autocast is None else {dtype, torch.float32, autocast}
    if not is_whole(x.dtype) and x.dtype.to_real() not in known:
        of_state = next((part.dtype for part in state if not is_whole(part.dtype)), dtype)
        raise CannotCompile(f"{label} has an input of {x.dtype} and a state of {of_state}")
    if any(prod(part.shape[1:]) == 0 for part in (x, *state)):
        raise CannotCompile(f"{label} has an input or a state without numbers")
    traced = traced_with_answers(cell, x, state, label, watch, autocast, is_second)
    after = [node.dtype for node in traced.new_state]
    if autocast is not None and after != [part.dtype for part in state]:
        # Under autocast the first step may change the dtype; the second step is that of the loop.
        state = tuple(
            torch.empty((1, *part.shape[1:]), dtype=dtype, device="meta")
            for part, dtype in zip(state, after, strict=True)
        )
        traced = trace(cell, x, state, label, watch, autocast)
    hold_assertions(traced, cell, x, state, label)
    try:
        return Program(traced, label, dtype, precision, Held(cell, watch))
    except CannotCompile:
        raise
    except Exception as error:  # whose cell runs in the loop all the same
        where = extract_tb(error.__traceback__)[-1]
        what = (
            f"the compile step of {label} failed, which is a fault of Cello's: "
            f"{type(error).__name__}: {error} ({FilePath(where.filename).name}:{where.lineno})"
        )
        warnings.warn(f"{what}; the cell runs in a Python loop", RuntimeWarning, stacklevel=2)
        raise CannotCompile(what) from error
