"""The dispatch mode that writes down what a step does, on meta tensors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from cello.cells.contract import Cell
from cello.compile.assumed import apart, assumptions, told_of, usual_answer
from cello.compile.constant import CONSTANT, numbers_of
from cello.compile.custom import CUSTOM, Call, Inside
from cello.compile.held import MOST_HELD
from cello.compile.node import (
    CHOSEN,
    MOST_MASKS,
    Assumption,
    Custom,
    Node,
    Op,
    Question,
    all_inputs,
    are_chosen,
    depends_on_rows,
    hold_the_same,
    is_random,
    nodes_in,
    operation,
)
from cello.compile.overwritten import is_kept_by_none
from cello.compile.real_nodes import NodeWriter
from cello.compile.reasons import CannotCompile, line_of
from cello.compile.replay import Replay
from cello.compile.sampling import sampled
from cello.foreign.memoryless import (
    NUMBERS_OF_TENSORS,
    Meta,
    Mode,
    NeedsNumbersError,
    each_tensor,
    map_tensors,
    run,
    without_memory,
)
from cello.foreign.path import Path
from cello.foreign.reach import Reach
from cello.foreign.scope import Watch, words


class StepRecorder(Mode):
    """Writes down what a step does, on tensors without memory."""

    def __init__(
        self,
        cell: Cell,
        reach: Reach,
        label: str,
        autocast: torch.dtype | None,
        rows: int,
        tells_rows: bool,
        watch: Watch,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.tells_rows = tells_rows
        self.cell, self.rows, self.watch, self.device = cell, rows, watch, device
        self.autocast, self.autocast_depth = autocast, _autocast_depth()
        self.casts: dict[int, Tensor] = {}  # by the identity of what was cast
        self.reach = reach
        self.label = label
        self.nodes: list[Node] = []
        self.found: dict[int, tuple[Tensor, Node]] = {}  # by the identity of the tensor
        self.twins: dict[int, tuple[Tensor, Tensor]] = {}  # of real tensors, without memory
        self.refusal: CannotCompile | None = None
        self.inside: Inside | None = None
        self.call: Call | None = None
        self.written: Custom | None = None
        self.counted = False
        self.has_grad = self.overwrites = self.may_be_copied = False
        self.outdated: set[int] = set()  # by identity: nodes of views of what was written to since
        self.calls: list[tuple[Any, ...]] = []
        self.lines: list[str] = []  # of these
        self.viewed: set[int] = set()  # by identity: nodes of which there are views
        self.most: int | None = None  # operations
        self.masks: list[Node] = []  # that have chosen
        self.answers: Sequence[bool] = ()  # to the first questions
        self.replay: Replay | None = None  # of this step, on numbers that answer questions
        self.questions: list[Question] = []

    def enter(self, tensor: Tensor, source: str | int | Path) -> Node:
        node = Node(None, (), {}, None, tuple(tensor.shape), tensor.dtype, source)
        self.nodes.append(node)
        self.found[id(tensor)] = (tensor, node)
        return node

    def node(self, tensor: Tensor) -> Node:
        node = self.found[id(self._without_memory(tensor))][1]
        if id(node) in self.outdated:
            raise self.refuse(
                f"{self.label} reads a view of a tensor into which torch has written{line_of()}"
            )
        return node

    def is_static(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on neither the input nor the state."""
        found = self.found.get(id(tensor))
        return found is not None and not depends_on_rows(found[1], {})

    def is_made(self, tensor: Tensor) -> bool:
        """Whether the step has made a tensor: of the input or the state, or as it is static."""
        return torch._C._functorch.is_functionaltensor(tensor) or self.is_static(tensor)

    def refuse(self, message: str) -> CannotCompile:
        """Remember a reason not to compile, and return it."""
        self.refusal = CannotCompile(message)
        return self.refusal

    def plain(self, tensor: Tensor) -> Tensor:
        """A tensor without memory in the place of one that the cell holds; any other one as it is."""
        if self.reach.path(tensor) is None:
            return tensor
        # To make it is no part of the step.
        with torch._C._DisableFuncTorch(), torch.utils._python_dispatch._disable_current_modes():
            return self._without_memory(tensor)

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
                f"{self.label} uses a tensor {tuple(tensor.shape)} that is neither made by the "
                f"step's operations nor held by the cell{line_of()}; make it a parameter, a buffer or "
                "an attribute, or write "
                "torch.tensor in the place of torch.from_numpy and torch.as_tensor"
            )
        if tensor.layout is not torch.strided:
            raise self.refuse(
                f"{self.label} computes with {path.readable}, a tensor of {tensor.layout}{line_of()}; hold "
                "it as a dense one"
            )
        twin = without_memory(tensor)
        self.twins[id(tensor)] = (tensor, twin)
        self.enter(twin, path)
        return twin

    def __torch_dispatch__(
        self, func: Op, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Below the dispatcher nothing of the cell's own runs, which is watched by a profiler.
        profiler = sys.getprofile()
        sys.setprofile(None)
        try:
            return self._record(func, args, kwargs)
        finally:
            sys.setprofile(profiler)

    def _record(self, func: Op, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in NUMBERS_OF_TENSORS:
            return self._numbers(func, args, kwargs or {})
        if name == "_assert_async":
            if not self._numbers(torch.ops.aten._local_scalar_dense.default, args[:1], {}):
                raise self.refuse(f"{self.label} asserts what cannot be assumed{line_of()}")
            return None
        if name in ("lift_fresh", "lift_fresh_copy"):  # of what torch has just made of numbers
            with torch.utils._python_dispatch._disable_current_modes():
                made = self._constant(args[0])
            if made is not None:
                return made
        with torch.utils._python_dispatch._disable_current_modes():
            if name == "index":
                args = (args[0], [self._positions(index) for index in args[1]])
                if len(args[1]) == 1 and self._is_mask(args[1][0]):
                    return self._chosen(func, *map_tensors(self._without_memory, args))
            meta_args = map_tensors(self._without_memory, args)
            meta_kwargs = {
                key: Meta if key == "device" else map_tensors(self._without_memory, value)
                for key, value in (kwargs or {}).items()
            }
            self._hold_chosen(func, name, meta_args)
            if func._schema.is_mutable:
                self._check_writes(func, meta_args, meta_kwargs)
            if self.autocast is not None:
                if _autocast_depth() != self.autocast_depth:
                    raise self.refuse(
                        f"{self.label} has a region of torch.autocast of its own{line_of()}"
                    )
                if name in _CAST:
                    meta_args = map_tensors(self._cast, meta_args)
                given = each_tensor(meta_args) if name in _WIDENED else ()
                if any(tensor.dtype == self.autocast for tensor in given):
                    raise self.refuse(
                        f"{self.label} uses {name}{line_of()}, which torch.autocast computes in float32; "
                        "convert its operands with .float()"
                    )
            if self._is_about_all(name, meta_args):
                return self._all(name, self.node(meta_args[0]).args[0])
            try:
                out = run(func, meta_args, meta_kwargs)
            except NeedsNumbersError as error:
                raise self.refuse(
                    f"{self.label} uses {name}{line_of()}, whose result has no shape of its own"
                ) from error
        if func is CUSTOM:
            self._write_call(out, *meta_args)
            return out
        if func._schema.is_mutable:
            return self._rebind(func, meta_args, meta_kwargs, out)
        given = map_tensors(self.node, (meta_args, meta_kwargs))
        if self.overwrites and name == "masked_fill":
            self._write_past_gradient(func, given, out)
            return out
        self._hold_gradients(name, out)
        if self._sample(name, given, out):
            return out
        several = isinstance(out, tuple | list)
        for index, part in enumerate(out if several else (out,)):
            if isinstance(part, Tensor):
                self._write(part, self._node(func, given, index if several else None, part))
        return out

    def _is_about_all(self, name: str, args: tuple[Any, ...]) -> bool:
        """Whether a comparison asks if as many are true as there are, as in ``mask.sum() == len(x)``."""
        if name not in _ABOUT_ALL or len(args) != 2 or not isinstance(args[1], int):
            return False
        count = self.node(args[0])
        if operation(count) != "sum" or len(count.args) != 1 or count.kwargs:
            return False
        truths = count.args[0]
        return (
            truths.dtype == torch.bool
            and self.rows in truths.shape[:1]
            and args[1] == prod(truths.shape)
        )

    def _all(self, name: str, truths: Node) -> Tensor:
        """The answer to such a comparison, written as a question for all."""
        node = self._write_node(torch.ops.aten.all.default, truths)
        if not _ABOUT_ALL[name]:
            node = self._write_node(torch.ops.aten.logical_not.default, node)
        out = torch.empty((), dtype=torch.bool, device=Meta)
        self.found[id(out)] = (out, node)
        return out

    def _write_past_gradient(
        self, func: Op, given: tuple[Any, dict[str, Any]], out: Tensor
    ) -> None:
        """Write down what a tensor holds after a write past its gradient, which it goes on having.

        Raises:
            CannotCompile: a gradient may be computed from what is overwritten.
        """
        self.overwrites = False
        old = given[0][0]
        if not is_kept_by_none(old, self.nodes, may_be_copied=self.may_be_copied):
            raise self.refuse(
                f"{self.label} writes in place through .data or .detach(){line_of()} into what gradients "
                "are computed from; use masked_fill"
            )
        node = self._node(func, given, None, out)
        self._write(out, replace(node, is_detached=True, in_place_of=old))

    def _hold_gradients(self, name: str, out: Any) -> None:
        """Refuse what a function of torch computes past gradients, of which it may write into its own.

        Raises:
            CannotCompile: it does.
        """
        is_past = self.has_grad and self.inside is None and not torch.is_grad_enabled()
        if is_past and any(tensor.is_floating_point() for tensor in each_tensor(out)):
            raise self.refuse(
                f"{self.label} calls a function of torch{line_of()} that computes {name} past gradients"
            )

    def _constant(self, tensor: Tensor) -> Tensor | None:
        """Write down a tensor that was made of Python numbers; ``None`` if it is none, or too large."""
        known = id(tensor) in self.found or id(tensor) in self.twins
        if known or tensor.is_meta or not tensor.dim() or self.reach.path(tensor) is not None:
            return None
        numbers = numbers_of(tensor)
        if numbers is None:
            return None
        given = (numbers, tuple(tensor.shape), tensor.dtype, Meta)
        twin: Tensor = CONSTANT(*given)
        self._write(twin, self._node(CONSTANT, (given, {}), None, twin))
        return twin

    def _numbers(self, func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer what depends on the numbers of tensors, where these are the cell's own at every step.

        The program then depends on these numbers, which the watch is told.
        """
        with torch.utils._python_dispatch._disable_current_modes():
            if func is torch.ops.aten._local_scalar_dense.default:
                answer = self._answer(self.node(args[0]))
                if answer is not None:
                    return answer
            given = map_tensors(lambda tensor: self._real(self.node(tensor)), (args, kwargs))
            with torch.no_grad():
                out = func(*given[0], **given[1])
            if not isinstance(out, Tensor):
                return out
            twin = without_memory(out)
            nodes = map_tensors(self.node, (args, kwargs))
            self._write(twin, self._node(func, nodes, None, twin))
            return twin

    def _answer(self, node: Node, *, is_assertion: bool = False) -> bool | None:
        """What to assume of a truth value that may be another one at each step, if that can be assumed."""
        if node.dtype != torch.bool or self.inside is not None:
            return None
        usual = usual_answer(node)
        has_rule = usual is not None
        if not depends_on_rows(node, {}):
            if is_random(node) or not any(map(self._is_trained, all_inputs(node))):
                return None
            usual = bool(Replay(self.rows, self.cell, self.rows, self.device)(node))
        if usual is None:
            return None
        if len(self.questions) >= _MOST_QUESTIONS:  # as in a loop that ends when something is found
            raise self.refuse(
                f"{self.label} asks in Python for more than {_MOST_QUESTIONS} truth values that depend on "
                f"the values of tensors{line_of()}"
            )
        answer = next(iter(self.answers[len(self.questions) :]), usual)
        if self.replay is not None:
            with apart(self.device):
                answer = bool(self.replay(node))
        assumed: list[Assumption] | None = [Assumption(node, answer, True)]
        told = "what it asks of weights"
        if has_rule:
            assumed, told = assumptions(node, answer, self._write_node), told_of(node)
        if assumed is None:
            return None
        told = f"{told} is {answer}{line_of()}"
        is_assertion = is_assertion or _in_distribution()
        self.questions.append(Question(node, answer, tuple(assumed), told, is_assertion))
        return answer

    def _is_trained(self, node: Node) -> bool:
        return isinstance(node.source, Path) and self.reach.places[node.source].requires_grad

    def _sample(self, name: str, given: tuple[Any, dict[str, Any]], out: Any) -> bool:
        """Write down a sample that depends on the state, if that can be; return whether it was."""
        depends = any(type(n.source) is int for p in nodes_in(given[0]) for n in all_inputs(p))
        if not depends or self.inside is not None:
            return False
        found = sampled(name, *given, self.rows, self._write_node)
        if found is None:
            return False
        node, truths = found
        for one in truths:
            all_hold = self._write_node(torch.ops.aten.all.default, one)
            answer = self._answer(all_hold, is_assertion=True)
            if not (self._real(all_hold) if answer is None else answer):
                raise self.refuse(
                    f"{self.label} draws random numbers by {name}{line_of()} with what torch refuses"
                )
        self.found[id(out)] = (out, node)
        return True

    def _write_node(self, func: Op, *args: Any, **kwargs: Any) -> Node:
        """Write an operation that the step has not asked for."""
        with torch.utils._python_dispatch._disable_current_modes():
            writer = NodeWriter(self.nodes, line_of(), self._is_detached())
            return writer.write(func, *args, **kwargs)

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
        if tensor.requires_grad or tensor.numel() > MOST_HELD:
            advice = (
                "; validate_args=False spares a distribution that" if _in_distribution() else ""
            )
            raise self.refuse(
                f"{self.label} reads the numbers of {path.readable} in Python{line_of()}, "
                + ("which training changes" if tensor.requires_grad else "which are many")
                + advice
            )
        self.watch.values.add(path)

    def _positions(self, index: Any) -> Any:
        """A mask that the cell holds, as the positions where it is true."""
        if not isinstance(index, Tensor) or index.dtype != torch.bool or index.dim() != 1:
            return index
        if self._is_mask(index):
            return index
        found = self._numbers(torch.ops.aten.nonzero.default, (index,), {})
        func = torch.ops.aten.select.int
        out = func(found, 1, 0)
        self._write(out, self._node(func, ((self.node(found), 1, 0), {}), None, out))
        return out

    def _is_mask(self, index: Any) -> bool:
        """Whether an index is a mask that the step has made of its input or its state."""
        is_mask = isinstance(index, Tensor) and index.dtype == torch.bool
        return is_mask and depends_on_rows(self.node(index), {})

    def _chosen(self, func: Op, x: Tensor, masks: list[Tensor]) -> Tensor:
        """What a mask chooses: as many numbers as nobody knows, for which another number stands."""
        (mask,) = masks
        if x.shape[: mask.dim()] != mask.shape:
            refused: Tensor = run(func, (x, masks), {})  # which raises
            return refused
        node = self.node(mask)
        same = (place for place, other in enumerate(self.masks) if hold_the_same(node, other))
        place = next(same, len(self.masks))
        if place == MOST_MASKS:
            raise self.refuse(f"{self.label} chooses by more than {MOST_MASKS} masks{line_of()}")
        if place == len(self.masks):
            self.masks.append(node)
        shape = (CHOSEN + place, *x.shape[mask.dim() :])
        out = torch.empty(shape, dtype=x.dtype, device="meta")
        self._write(out, self._node(func, ((self.node(x), [node]), {}), None, out))
        return out

    def _hold_chosen(self, func: Op, name: str, args: Any) -> None:
        """Refuse to do with what a mask has chosen anything but to compute with single numbers.

        Raises:
            CannotCompile: the operation does something else.
        """
        if not self.masks or torch.Tag.pointwise in func.tags or name in _OF_CHOSEN:
            return
        if any(are_chosen(tensor.shape) for tensor in each_tensor(args)):
            raise self.refuse(
                f"{self.label} uses {name}{line_of()} on what a mask has chosen; compute with all numbers, "
                "and choose with torch.where"
            )

    def _real(self, node: Node) -> Tensor:
        """The tensor of a node that is the same at every step, with its numbers.

        Raises:
            CannotCompile: it is not, or training changes it.
        """
        message = (
            f"{self.label} depends on the values of tensors in Python{line_of()}; use torch.where, "
            "or arithmetic with (x > 0).float(), in the place of if, float() or .item()"
        )
        if _in_distribution():
            message = (
                f"{self.label} has torch.distributions check its arguments{line_of()}, which depends on "
                "their values; with validate_args=False it may compile"
            )
        parts = list(all_inputs(node))
        for part in parts:
            if part.source is not None and not isinstance(part.source, Path):
                raise self.refuse(message)
            if part.op is not None and torch.Tag.nondeterministic_seeded in part.op.tags:
                raise self.refuse(message)
        for part in parts:
            if isinstance(part.source, Path):
                self._read(self.reach.places[part.source], part.source)
        return Replay(self.rows, self.cell, self.rows, self.device)(node)

    def is_cast(self, tensor: Tensor) -> bool:
        return tensor.is_floating_point() and tensor.dtype not in (self.autocast, torch.float64)

    def _cast(self, tensor: Tensor) -> Tensor:
        """What torch.autocast makes of an operand of a product: of a view, a view of what was cast."""
        if not self.is_cast(tensor):
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
        kind, line, is_detached = _kind(out), line_of(), self._is_detached()
        return Node(func, args, kwargs, index, *kind, line=line, is_detached=is_detached)

    def _is_detached(self) -> bool:
        """Whether no gradient flows into what the step makes now."""
        return self.inside is None and not torch.is_grad_enabled()

    # Custom functions

    def ask_for_gradient(self) -> None:
        """Take the latest tensor for a gradient, which is not known yet."""
        node = self.nodes.pop()
        tensor = next(tensor for tensor, known in self.found.values() if known is node)
        asked = replace(node, op=None, args=(), kwargs={}, source="gradient")
        self._write(tensor, asked)

    def _write_call(
        self,
        out: list[Tensor],
        given: list[Tensor],
        results: list[Tensor],
        asked: list[Tensor],
        gradients: list[Tensor | None],
    ) -> None:
        """Write down the results of a custom function."""
        call = self.call
        assert call is not None
        custom = Custom(
            call.function,
            given=tuple(map(self.node, given)),
            results=tuple(map(self.node, results)),
            asked=tuple(map(self.node, asked)),
            gradients=tuple([None if t is None else self.node(t) for t in gradients]),
        )
        self._check_call(custom)
        self.written = custom
        nodes = iter(custom.given)
        arguments = map_tensors(lambda _: next(nodes), call.arguments)
        pairs = zip(out, call.differentiable, strict=True)
        for index, (part, has_gradient) in enumerate(pairs):
            node = self._node(CUSTOM, (arguments, {}), index, part)
            is_detached = node.is_detached or not has_gradient
            self._write(part, replace(node, custom=custom, is_detached=is_detached))

    def _check_call(self, custom: Custom) -> None:
        """Refuse a custom function that cannot be called again with the same result.

        Raises:
            CannotCompile: it draws random numbers, or reads tensors that it is not given.
        """
        known = (*custom.given, *custom.asked)
        for node in (*custom.results, *(g for g in custom.gradients if g is not None)):
            for part in all_inputs(node, known):
                if part in known:
                    continue
                if part.op is not None and torch.Tag.nondeterministic_seeded in part.op.tags:
                    why = "draws random numbers"
                elif part.source is not None:
                    why = "reads tensors that it is not given"
                else:
                    continue
                raise self.refuse(
                    f"{self.label} uses a custom autograd.Function{line_of()} that {why}"
                )

    def _check_writes(self, func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse a write into a tensor that outlives the step, which functionalizing leaves in place."""
        pairs = [*zip(func._schema.arguments, args, strict=False)]
        pairs += [(a, kwargs[a.name]) for a in func._schema.arguments if a.name in kwargs]
        for argument, value in pairs:
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if isinstance(tensor, Tensor):
                    source = self.node(tensor).source
                    if isinstance(source, Path):
                        raise self.refuse_write(source)

    def refuse_write(self, path: Path) -> CannotCompile:
        """Remember that the step writes into a tensor of the cell, and return that as an error."""
        advice = ", or call .eval() if only training does" if self.cell.training else ""
        return self.refuse(
            f"{self.label} writes into {path.readable} at every step{line_of()}; make it a part of the "
            f"state{advice}"
        )

    def _rebind(self, func: Op, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        """Write down a write in place, of torch itself into a temporary of its own, as a new value."""
        target = args[0]
        if func is torch.ops.aten.copy_.default and self._fill(target, args[1]):
            return out
        name, overload = func._schema.name.removeprefix("aten::"), func._overloadname
        functional = getattr(getattr(torch.ops.aten, name.removesuffix("_"), None), overload, None)
        is_viewed = id(self.node(target)) in self.viewed
        if out is not target or functional is None or is_viewed or target._is_view():
            raise self.refuse(
                f"{self.label} writes in place with {name}{line_of()}, or calls a function of torch that "
                "does, into a tensor with views; compute a new tensor instead"
            )
        given = (
            map_tensors(self.node, args),
            {k: map_tensors(self.node, v) for k, v in kwargs.items()},
        )
        old, new = self.node(target), self._node(functional, given, None, target)
        self._write(target, replace(new, in_place_of=old))
        return out

    def _fill(self, part: Tensor, source: Tensor) -> bool:
        """Write down a copy into a part of such a temporary; return whether it is one."""
        new, whole = self.node(source), self.node(part)
        if new.shape != whole.shape or new.dtype != whole.dtype or whole.view_of() is None:
            return False
        func = torch.ops.aten.slice_scatter.default
        while whole.op is torch.ops.aten.slice.Tensor:
            before, *where = whole.args
            new = replace(whole, op=func, args=(before, new, *where), shape=before.shape)
            self.nodes.append(new)
            whole = before
        base = next((t for t, node in self.found.values() if node is whole), None)
        if base is None or whole.op is None or whole.op.is_view:
            return False
        # What was seen of it before is not what it holds now.
        self.outdated |= {id(node) for node in self.nodes if _is_view_of(node, whole)}
        self._write(base, replace(new, in_place_of=whole))
        return True

    @property
    def is_too_long(self) -> bool:
        """Whether the step has more operations than it may have."""
        return self.most is not None and len(self.nodes) > self.most

    def _write(self, tensor: Tensor, node: Node) -> None:
        if self.is_too_long:
            raise RuntimeError("the step has too many operations")
        if node.op is not None and node.op.is_view:
            self.viewed.update(map(id, node.inputs()))
        self.nodes.append(node)
        self.found[id(tensor)] = (tensor, node)
        self.casts.pop(id(tensor), None)  # of what it held before


_ABOUT_ALL = {"eq": True, "ge": True, "ne": False, "lt": False}
"""For comparisons of how many are true with how many there are: the answer if all are."""


_CAST = words("mm addmm bmm baddbmm addbmm")
"""What torch.autocast computes in its dtype, of what reaches the dispatcher below it."""


_WIDENED = words("prod _cdist_forward polar view_as_complex _fft_r2c _fft_c2c _fft_c2r")
"""What it computes in float32, of the operations that a program has."""


_MOST_QUESTIONS = 1000
"""For so many truth values a step may ask."""


_OF_CHOSEN = words("clone detach alias _to_copy lift_fresh index_put index_put_")
"""What may be done with numbers that a mask has chosen, beside what is done with each of them."""


def _in_distribution() -> bool:
    """Whether a distribution of torch is checking its arguments now."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith("torch.distributions"):
            return True
        frame = frame.f_back
    return False


def _is_view_of(node: Node, whole: Node) -> bool:
    """Whether a node is another one, or one of its views, or of their views."""
    while node is not whole:
        if node.op is None or not node.op.is_view or not isinstance(node.args[0], Node):
            return False
        node = node.args[0]
    return True


def _kind(tensor: Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    return tuple(tensor.shape), tensor.dtype


def _autocast_depth() -> int:
    """How many regions of torch.autocast are open."""
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return depth
