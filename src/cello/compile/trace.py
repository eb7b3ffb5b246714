"""One step of a cell as a list of ATen operations.

The cell runs once on tensors without memory (torch's "meta" device), below autograd and with writes in
place turned into new values. Every operation that reaches torch's dispatcher is written down, with the
line of the cell that asked for it. Nothing is computed and no random number is drawn.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cello.cells.contract import Cell
from cello.compile.asked import Asked
from cello.compile.reasons import CannotCompile, line_of
from cello.foreign.memoryless import (
    NUMBERS_OF_TENSORS,
    Meta,
    NeedsNumbersError,
    map_tensors,
    run,
    without_hooks,
    without_memory,
)
from cello.foreign.path import Path
from cello.foreign.reach import Reach
from cello.foreign.scope import Scope, Watch, place, words
from cello.foreign.undo import Undo

Op = torch._ops.OpOverload


@dataclass(frozen=True, eq=False)
class Node:
    """One tensor of a step.

    Attributes:
        op: the operation that makes it, or ``None`` for a tensor that the step is given.
        args: its arguments; tensors among them are nodes.
        kwargs: likewise.
        index: which of the operation's results it is, where there are several.
        shape: its shape, with `Trace.rows` rows where it has one for each row of the batch.
        dtype: its dtype.
        source: what the step was given: ``"x"``, a position in the state, or the path of a tensor that
            the cell holds.
        line: where in the cell's code the operation was asked for.
        is_detached: whether no gradient flows into it: it was made under ``torch.no_grad``.
        in_place_of: the node that it overwrote, whose gradient it passes on where it is detached.
    """

    op: Op | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    index: int | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    source: str | int | Path | None = None
    line: str = ""
    is_detached: bool = False
    in_place_of: Node | None = None

    def inputs(self) -> Iterator[Node]:
        """The nodes among the arguments."""
        yield from _nodes((self.args, tuple(self.kwargs.values())))

    def view_of(self) -> Node | None:
        """The node that it is a view of, if it is the one result of a view."""
        if self.op is None or not self.op.is_view or self.index is not None or self.kwargs:
            return None
        parts = list(self.inputs())
        return parts[0] if len(parts) == 1 and self.args[0] is parts[0] else None


def _nodes(value: Any) -> Iterator[Node]:
    if isinstance(value, Node):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _nodes(item)


@dataclass(frozen=True)
class Trace:
    """One step of a cell.

    Attributes:
        nodes: all tensors, each after those that it is made from.
        x: the input.
        state: the state before the step.
        output: the output.
        new_state: the state after the step.
        rows: the number of rows of the traced batch: a prime that divides no other size, so that a
            size says by itself whether it counts rows.
        autocast: the dtype that operands of products were cast to, or ``None`` without torch.autocast.
        calls: what the step has called of torch's.
        counted: whether it has asked for a number of rows whose use cannot be seen.
    """

    nodes: tuple[Node, ...]
    x: Node
    state: tuple[Node, ...]
    output: Node
    new_state: tuple[Node, ...]
    rows: int
    autocast: torch.dtype | None = None
    calls: tuple[tuple[Any, ...], ...] = ()
    counted: bool = False


def trace(
    cell: Cell,
    x: Tensor,
    state: tuple[Tensor, ...],
    label: str,
    watch: Watch,
    autocast: torch.dtype | None = None,
) -> Trace:
    """Trace one step of `cell`, twice: with batches of different sizes it must be the same.

    Args:
        cell: the cell; whatever the step changes in it, or elsewhere, is put back.
        x: rows of its input; only shape and dtype count.
        state: a state, likewise.
        label: what messages call the cell.
        watch: is shown what runs.
        autocast: the dtype that torch.autocast casts to now, or ``None`` where it is off.

    Raises:
        CannotCompile: the step depends on values of tensors or on the number of rows, changes the cell,
            draws on a tensor that the cell does not hold, or on anything else that may be another at the
            next call without Cello's seeing it.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in cell.modules()):
        raise CannotCompile(
            f"{label} is made by torch.jit, or holds a module that is, and what that computes cannot be "
            "read; give the module that it was made from"
        )
    if any("_orig_mod" in vars(module).get("_modules", {}) for module in cell.modules()):
        raise CannotCompile(
            f"{label} is made by torch.compile, or holds a module that is; give the module itself"
        )
    undo = Undo(cell)
    sizes = {s for t in (x, *state) for s in t.shape[1:]}
    sizes |= {s for tensor in undo.reach.tensors for s in tensor.shape}
    primes = (p for p in _PRIMES if all(size % p for size in sizes if size))
    first = _trace(cell, undo.reach, x, state, label, next(primes), autocast, watch, undo)
    _hold_calls(label, watch)
    scope = watch.scope()
    reach = Reach(cell, scope)
    _hold_reads(label, scope, reach)
    second = _trace(cell, reach, x, state, label, next(primes), autocast, watch, undo)
    _compare(first, second, label)
    if first.counted:
        # On few rows torch itself takes other ways; what the step calls must be the same.
        for few in (1, 2):
            again = _trace(cell, reach, x, state, label, few, autocast, watch, undo)
            if again.calls != first.calls:
                raise CannotCompile(_ON_ROWS.format(label, ""))
    return second


def _hold_still(changed: list[str]) -> None:
    """Refuse a step that changes what outlives it.

    Raises:
        CannotCompile: something is in the list of what has changed.
    """
    if changed:
        names = ", ".join(changed)
        raise CannotCompile(f"the cell changes {names} at every step; make it a part of the state")


def _hold_calls(label: str, watch: Watch) -> None:
    """Refuse a step that calls what may answer otherwise at another call.

    Raises:
        CannotCompile: the message names it.
    """
    if watch.refusal is not None:
        raise CannotCompile(
            f"{label} calls {watch.refusal}, which may answer otherwise at another step or call, or "
            "changes something"
        )


def _hold_reads(label: str, scope: Scope, reach: Reach) -> None:
    """Refuse a step that may read what cannot be compared with what it will read at another call.

    Raises:
        CannotCompile: the message names it.
    """
    for path, kind in reach.opaque:
        raise CannotCompile(
            f"{label} reads {path}, a {kind}, whose content cannot be compared from call to call"
        )
    unknown = scope.codes - reach.codes
    for code in sorted(unknown, key=lambda code: (code.co_filename, code.co_firstlineno)):
        raise CannotCompile(
            f"{label} runs {code.co_name} ({place(code, code.co_firstlineno)}), and where it comes from "
            "cannot be found, nor what it reads"
        )


def _compare(first: Trace, second: Trace, label: str) -> None:
    """Refuse a step that computes with the number of rows, in the one place where it shows.

    Raises:
        CannotCompile: the traces differ.
    """
    places = [{id(n): k for k, n in enumerate(trace.nodes)} for trace in (first, second)]

    def same(a: Any, b: Any, counts: bool) -> bool:
        if isinstance(a, Node) and isinstance(b, Node):
            return places[0][id(a)] == places[1][id(b)]
        if isinstance(a, tuple | list) and isinstance(b, tuple | list):
            return len(a) == len(b) and all(map(same, a, b, [counts] * len(a)))
        if type(a) is int and type(b) is int and counts and a and a % first.rows == 0:
            return b % second.rows == 0 and a // first.rows == b // second.rows
        return type(a) is type(b) and (a == b or a != a)

    def same_arguments(a: Node, b: Node) -> bool:
        name = "" if a.op is None else a.op._schema.name.removeprefix("aten::")
        given = [[*node.args, *node.kwargs.values()] for node in (a, b)]
        in_lists, alone = name in _SIZED or name in _COUNTING, name in _COUNTING
        counts = [in_lists if isinstance(value, list | tuple) else alone for value in given[0]]
        return len(given[0]) == len(given[1]) and all(map(same, *given, counts))

    pairs = list(zip(first.nodes, second.nodes, strict=False))
    differing = [
        a
        for a, b in pairs
        if (a.op, _kind_of(a.source), a.dtype, a.is_detached)
        != (b.op, _kind_of(b.source), b.dtype, b.is_detached)
        or not same_arguments(a, b)
    ]
    if differing or len(first.nodes) != len(second.nodes):
        where = differing[0].line if differing else ""
        raise CannotCompile(_ON_ROWS.format(label, where))


_ON_ROWS = (
    "what {} computes depends on the number of rows in the batch{}; rows must not see each other"
)


def _kind_of(source: str | int | Path | None) -> str | int | None:
    """The source of a node, of which a path may differ: it is looked for in another order."""
    return "path" if isinstance(source, Path) else source


_SIZED = words(
    "view _unsafe_view reshape _reshape_alias expand repeat zeros ones full empty rand randn randint "
    "new_zeros new_ones new_full new_empty empty_strided new_empty_strided as_strided bernoulli "
    "split_with_sizes"
)
"""Operations of which a list of sizes may count rows."""

_COUNTING = words("slice narrow split unsafe_split native_group_norm slice_scatter")
"""Operations of which any number may count rows."""


def _trace(
    cell: Cell,
    reach: Reach,
    x: Tensor,
    state: tuple[Tensor, ...],
    label: str,
    rows: int,
    autocast: torch.dtype | None,
    watch: Watch,
    undo: Undo,
) -> Trace:
    """Trace one step of `cell` on a batch of `rows` rows."""
    recorder = _Recorder(cell, reach, label, autocast, rows, watch, x.device)
    given = [
        torch.empty((rows, *tensor.shape[1:]), dtype=tensor.dtype, device="meta")
        for tensor in (x, *state)
    ]
    x_node = recorder.enter(given[0], "x")
    state_nodes = tuple(recorder.enter(part, index) for index, part in enumerate(given[1:]))

    def step(x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        output, new_state = cell(x, state)
        return (output, *new_state)

    try:
        # Gradient mode is on to see where the cell turns it off; no hook of the caller's is to meet what
        # autograd saves meanwhile.
        with (
            torch.enable_grad(),
            without_hooks(),
            _without_autocast(x.device.type),
            Asked(label, recorder),
            recorder,
            watch,
        ):
            results = torch.func.functionalize(step)(*given)
    except CannotCompile:
        raise
    except Exception as error:
        if recorder.refusal is not None:
            raise recorder.refusal from None
        _hold_calls(label, watch)
        _hold_still(undo.restore(recorder.is_static))
        # Written in styles that the tracer cannot enter: forward(ctx, ...), and setup_context.
        if any(told in str(error) for told in ("autograd.Function", "custom_function_call")):
            raise CannotCompile(_OWN_FUNCTION.format(label, line_of(error.__traceback__))) from None
        where = line_of(error.__traceback__)
        told = (str(error).splitlines() or [""])[0]
        meets_rows = f" {rows} " in told or f"({rows})" in told or f"({rows}x" in told
        raise CannotCompile(
            f"{label} could not be traced{where}: {type(error).__name__}: {told}"
            + (
                f"; the step is traced on {rows} rows, and fits one batch size only"
                if meets_rows
                else ""
            )
        ) from error
    finally:
        changed = undo.restore(recorder.is_static)
    if recorder.refusal is not None:  # which the cell has caught
        raise recorder.refusal
    _hold_still(changed)
    output, *new_state = (recorder.node(result) for result in results)
    return Trace(
        tuple(recorder.nodes),
        x_node,
        state_nodes,
        output,
        tuple(new_state),
        rows,
        autocast,
        tuple(recorder.calls),
        recorder.counted,
    )


@contextmanager
def _without_autocast(device: str) -> Iterator[None]:
    """Switch torch.autocast off: it casts weights, and not tensors without memory, and keeps the casts."""
    before = torch.is_autocast_enabled(device)
    torch.set_autocast_enabled(device, False)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device, before)


def _autocast_depth() -> int:
    """How many regions of torch.autocast are open."""
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return depth


_CAST = words("mm addmm bmm baddbmm addbmm")
"""What torch.autocast computes in its dtype, of what reaches the dispatcher below it."""


_OWN_FUNCTION = (
    "{} uses an autograd.Function of its own{}, whose backward cannot be seen from outside; write it with "
    "torch's functions"
)

VIEWS = words(
    "view _unsafe_view reshape expand permute transpose t unsqueeze squeeze slice select "
    "split split_with_sizes unsafe_split unsafe_split_with_sizes unbind alias _reshape_alias "
    "narrow as_strided_"
)
"""Operations that only look at their operand in another way."""

FACTORIES = words(
    "zeros ones full empty zeros_like ones_like full_like empty_like new_zeros new_ones "
    "new_full new_empty scalar_tensor fill zero empty_strided new_empty_strided"
)
"""Operations that make a tensor of one number."""

_PRIMES = (1009, 1013, 1019, 1021, 1031, 1033, 1039, 1049, 1051, 1061, 1063, 1069, 1087, 1091)


class _Recorder(TorchDispatchMode):
    """Writes down what a step does, on tensors without memory."""

    def __init__(
        self,
        cell: Cell,
        reach: Reach,
        label: str,
        autocast: torch.dtype | None,
        rows: int,
        watch: Watch,
        device: torch.device,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cell, self.rows, self.watch, self.device = cell, rows, watch, device
        self.autocast, self.autocast_depth = autocast, _autocast_depth()
        self.casts: dict[int, Tensor] = {}  # by the identity of what was cast
        self.reach = reach
        self.label = label
        self.nodes: list[Node] = []
        self.found: dict[int, tuple[Tensor, Node]] = {}  # by the identity of the tensor
        self.twins: dict[int, tuple[Tensor, Tensor]] = {}  # of real tensors, without memory
        self.refusal: CannotCompile | None = None
        self.counted = False
        self.calls: list[tuple[Any, ...]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would import torch._dynamo, for a second, at the first use

    def enter(self, tensor: Tensor, source: str | int | Path) -> Node:
        node = Node(None, (), {}, None, tuple(tensor.shape), tensor.dtype, source)
        self.nodes.append(node)
        self.found[id(tensor)] = (tensor, node)
        return node

    def node(self, tensor: Tensor) -> Node:
        return self.found[id(self._without_memory(tensor))][1]

    def is_static(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on neither the input nor the state."""
        found = self.found.get(id(tensor))
        return found is not None and not _depends_on_rows(found[1], {})

    def refuse(self, message: str) -> CannotCompile:
        """Remember a reason not to compile, and return it."""
        self.refusal = CannotCompile(message)
        return self.refusal

    def _without_memory(self, tensor: Tensor) -> Tensor:
        if id(tensor) in self.found:
            return tensor
        if id(tensor) in self.twins:
            return self.twins[id(tensor)][1]
        path = self.reach.path(tensor)
        if path is None:
            if tensor.dim() == 0 and not tensor.is_meta:  # a number, wrapped by torch
                twin = torch.empty((), dtype=tensor.dtype, device="meta")
                node = Node(
                    torch.ops.aten.scalar_tensor.default,
                    (tensor.item(),),
                    {"dtype": tensor.dtype},
                    None,
                    (),
                    tensor.dtype,
                    line=line_of(),
                )
                self.nodes.append(node)
                self.found[id(twin)] = (twin, node)
                self.twins[id(tensor)] = (tensor, twin)
                return twin
            raise self.refuse(
                f"{self.label} uses a tensor {tuple(tensor.shape)} that is neither made in the step "
                f"nor held by the cell{line_of()}; make it a parameter, a buffer or an attribute"
            )
        twin = without_memory(tensor)
        self.twins[id(tensor)] = (tensor, twin)
        self.enter(twin, path)
        return twin

    def __torch_dispatch__(
        self, func: Op, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if _in_own_function():
            raise self.refuse(_OWN_FUNCTION.format(self.label, line_of()))
        if name in NUMBERS_OF_TENSORS:
            return self._numbers(func, args, kwargs or {})
        with torch.utils._python_dispatch._disable_current_modes():
            if name == "index":
                args = (args[0], [self._positions(index) for index in args[1]])
            meta_args = map_tensors(self._without_memory, args)
            meta_kwargs = {
                key: Meta if key == "device" else map_tensors(self._without_memory, value)
                for key, value in (kwargs or {}).items()
            }
            if func._schema.is_mutable:
                self._check_writes(func, meta_args, meta_kwargs)
            if self.autocast is not None:
                if _autocast_depth() != self.autocast_depth:
                    raise self.refuse(
                        f"{self.label} has a region of torch.autocast of its own{line_of()}"
                    )
                if name in _CAST:
                    meta_args = map_tensors(self._cast, meta_args)
            try:
                out = run(func, meta_args, meta_kwargs)
            except NeedsNumbersError as error:
                raise self.refuse(
                    f"{self.label} uses {name}{line_of()}, whose result has no shape of its own"
                ) from error
        if func._schema.is_mutable:
            return self._rebind(func, meta_args, meta_kwargs, out)
        given = map_tensors(self.node, (meta_args, meta_kwargs))
        several = isinstance(out, tuple | list)
        for index, part in enumerate(out if several else (out,)):
            if isinstance(part, Tensor):
                self._write(part, self._node(func, given, index if several else None, part))
        return out

    def _numbers(self, func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer what depends on the numbers of tensors, where these are the cell's own at every step.

        The program then depends on these numbers, which the watch is told.
        """
        with torch.utils._python_dispatch._disable_current_modes():
            given = map_tensors(lambda tensor: self._real(self.node(tensor)), (args, kwargs))
            with torch.no_grad():
                out = func(*given[0], **given[1])
            if not isinstance(out, Tensor):
                return out
            twin = without_memory(out)
            nodes = map_tensors(self.node, (args, kwargs))
            self._write(twin, self._node(func, nodes, None, twin))
            return twin

    def may_read(self, tensor: Any) -> bool:
        """Whether a tensor is one that the cell holds, whose numbers may be read in Python."""
        path = self.reach.path(tensor) if isinstance(tensor, Tensor) else None
        if path is not None:
            self._read(tensor, path)
        return path is not None

    def _read(self, tensor: Tensor, path: Path) -> None:
        """Note that the program depends on the numbers of a tensor.

        Raises:
            CannotCompile: training changes them, or there are many.
        """
        if tensor.requires_grad or tensor.numel() > _MAX_READ:
            raise self.refuse(
                f"{self.label} reads the numbers of {path.readable} in Python{line_of()}, "
                + ("which training changes" if tensor.requires_grad else "which are many")
            )
        self.watch.values.add(path)

    def _positions(self, index: Any) -> Any:
        """A mask that the cell holds, as the positions where it is true."""
        if not isinstance(index, Tensor) or index.dtype != torch.bool or index.dim() != 1:
            return index
        found = self._numbers(torch.ops.aten.nonzero.default, (index,), {})
        func = torch.ops.aten.select.int
        out = func(found, 1, 0)
        self._write(out, self._node(func, ((self.node(found), 1, 0), {}), None, out))
        return out

    def _real(self, node: Node) -> Tensor:
        """The tensor of a node that is the same at every step, with its numbers.

        Raises:
            CannotCompile: it is not, or training changes it.
        """
        from cello.compile.replay import Replay  # which needs what is defined here

        message = (
            f"{self.label} depends on the values of tensors in Python{line_of()}; use torch.where, "
            "or arithmetic with (x > 0).float(), in the place of if, float() or .item()"
        )
        for part in _all_inputs(node):
            if part.source is not None and not isinstance(part.source, Path):
                raise self.refuse(message)
            if part.op is not None and torch.Tag.nondeterministic_seeded in part.op.tags:
                raise self.refuse(message)
            if isinstance(part.source, Path):
                self._read(self.reach.places[part.source], part.source)
        return Replay(self.rows, self.cell, self.rows, self.device)(node)

    def _cast(self, tensor: Tensor) -> Tensor:
        """What torch.autocast makes of an operand of a product: of a view, a view of what was cast."""
        if tensor.dtype in (self.autocast, torch.float64) or not tensor.is_floating_point():
            return tensor
        if id(tensor) not in self.casts:
            node = self.node(tensor)
            base = next((t for t, n in self.found.values() if n is node.view_of()), None)
            if base is None:
                func, args = torch.ops.aten._to_copy.default, (tensor,)
                kwargs: dict[str, Any] = {"dtype": self.autocast}
            else:
                assert node.op is not None
                func, kwargs = node.op, {}
                args = (self._cast(base), *node.args[1:])
            out = func(*args, **kwargs)
            self._write(out, self._node(func, map_tensors(self.node, (args, kwargs)), None, out))
            self.casts[id(tensor)] = out
        return self.casts[id(tensor)]

    def _node(
        self, func: Op, given: tuple[Any, dict[str, Any]], index: int | None, out: Tensor
    ) -> Node:
        args, kwargs = given
        is_detached = not torch.is_grad_enabled()
        return Node(func, args, kwargs, index, *_kind(out), line=line_of(), is_detached=is_detached)

    def _check_writes(self, func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse a write into a tensor that outlives the step, which functionalizing leaves in place."""
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if isinstance(tensor, Tensor):
                    source = self.node(tensor).source
                    if isinstance(source, Path):
                        raise self.refuse(
                            f"{self.label} writes into {source.readable} at every step{line_of()}; "
                            "make it a part of the state"
                        )

    def _rebind(self, func: Op, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        """Write down a write in place, of torch itself into a temporary of its own, as a new value."""
        target = args[0]
        name, overload = func._schema.name.removeprefix("aten::"), func._overloadname
        functional = getattr(getattr(torch.ops.aten, name.removesuffix("_"), None), overload, None)
        is_viewed = any(
            before is self.node(target) and node.op is not None and node.op.is_view
            for node in self.nodes
            for before in node.inputs()
        )
        if out is not target or functional is None or is_viewed or target._is_view():
            raise self.refuse(
                f"{self.label} writes in place with {name}{line_of()}, into a tensor with views; "
                "compute a new tensor instead"
            )
        given = (
            map_tensors(self.node, args),
            {k: map_tensors(self.node, v) for k, v in kwargs.items()},
        )
        old, new = self.node(target), self._node(functional, given, None, target)
        self._write(target, replace(new, in_place_of=old))
        return out

    def _write(self, tensor: Tensor, node: Node) -> None:
        self.nodes.append(node)
        self.found[id(tensor)] = (tensor, node)


_MAX_READ = 4096
"""From so many numbers on it costs too much to compare them at each call."""


def _all_inputs(node: Node) -> Iterator[Node]:
    """A node, and all that it is made from."""
    seen: set[int] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if id(current) not in seen:
            seen.add(id(current))
            yield current
            stack += current.inputs()


def _kind(tensor: Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    return tuple(tensor.shape), tensor.dtype


def _depends_on_rows(node: Node, known: dict[int, bool]) -> bool:
    if id(node) not in known:
        known[id(node)] = node.source == "x" or isinstance(node.source, int)
        known[id(node)] |= any(_depends_on_rows(part, known) for part in node.inputs())
    return known[id(node)]


def _in_own_function() -> bool:
    """Whether an ``autograd.Function`` is at work."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code is not trace.__code__:
        if frame.f_globals.get("__name__") == "torch.autograd.function":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
