"""Custom functions of autograd in a step: subclasses of ``torch.autograd.Function``.

What their ``forward`` does is traced like the rest of the step. Their ``backward`` is traced with it, on
gradients that are not known yet, and becomes the rule for the gradient of their results.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd import function as autograd

from cello.compile.node import Custom, are_equal
from cello.compile.reasons import CannotCompile, line_of
from cello.compile.row_count import RowCount
from cello.foreign.memoryless import each_tensor

_library = torch.library.Library("cello", "FRAGMENT")
_library.define(
    "custom_function(Tensor[] given, Tensor[] results, Tensor[] asked, Tensor?[] gradients) -> Tensor[]"
)


def _results(given: object, results: list[Tensor], *_: object) -> list[Tensor]:
    return [torch.empty_like(result) for result in results]


_library.impl("custom_function", _results, "Meta")
CUSTOM = torch.ops.cello.custom_function.default
"""The operation by which a trace knows a call: from what it is given, what its forward and its backward
made, to the results, whose gradient is that of the backward."""


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a custom function.

    Attributes:
        function: the class.
        arguments: what it is called with.
        differentiable: for each result whether a gradient comes back from it.
    """

    function: Any
    arguments: tuple[Any, ...]
    differentiable: tuple[bool, ...]


@dataclass
class Inside:
    """A forward or a backward that runs.

    Attributes:
        arguments: what the function is called with.
        is_wanted: for each argument whether it is told that its gradient is wanted.
        is_forward: whether it is a forward.
        has_asked: whether it has asked which gradients are wanted.
    """

    arguments: tuple[Any, ...]
    is_wanted: tuple[bool, ...]
    is_forward: bool = True
    has_asked: bool = False

    def answer(self, tensor: Tensor) -> bool:
        """Say whether the gradient of a tensor is wanted, of which only arguments have one."""
        self.has_asked = True
        pairs = zip(self.arguments, self.is_wanted, strict=True)
        return any(argument is tensor and is_wanted for argument, is_wanted in pairs)


class Recorder(Protocol):
    """What writes the operations down.

    Attributes:
        inside: the forward or backward of a custom function that runs, if one does.
        call: the call whose operation comes next.
        written: the call that was written down last.
    """

    inside: Inside | None
    call: Call | None
    written: Custom | None

    def refuse(self, message: str) -> CannotCompile:
        """Remember a reason not to compile, and return it."""

    def ask_for_gradient(self) -> None:
        """Take the latest tensor for a gradient, which is not known yet."""


class Guard(Protocol):
    """What keeps tensors from writes in place."""

    def freeze(self, tensors: Iterable[Tensor]) -> None:
        """Refuse writes into tensors, and into views of them that are made from now on."""

    def freeze_touched(self) -> None:
        """Refuse writes into all that was made by a forward or a backward."""


class Context(autograd.FunctionCtx):
    """What a custom function is given to keep things in, from its forward to its backward."""

    to_save: tuple[Tensor, ...] = ()
    dirty_tensors: tuple[Tensor, ...] = ()
    non_differentiable: tuple[Tensor, ...] = ()
    materialize_grads = True

    def __init__(self, inside: Inside) -> None:
        self.__inside = inside

    def begin(self, inside: Inside) -> None:
        """Answer for another run."""
        self.__inside = inside

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]:
        """What the forward has saved."""
        return self.to_save

    @property
    def needs_input_grad(self) -> tuple[bool, ...]:
        """For each argument whether its gradient is wanted."""
        self.__inside.has_asked = True
        return self.__inside.is_wanted


class CustomFunctions:
    """Runs the custom functions that a step calls.

    Args:
        label: what messages call the cell.
        recorder: writes down what they do.
        guard: keeps what they have seen from writes.
    """

    def __init__(self, label: str, recorder: Recorder, guard: Guard) -> None:
        self._label, self._recorder, self._guard = label, recorder, guard

    @contextmanager
    def seen(self) -> Iterator[None]:
        """See the calls of this thread."""
        base: Any = autograd._SingleLevelFunction
        thread = threading.get_ident()
        before = vars(base).get("apply")  # there is one within another trace
        below = before or vars(torch._C._FunctionBase)["apply"]
        are_active = torch._C._are_functorch_transforms_active
        caller = cast(Any, autograd.Function.apply).__func__.__code__

        def apply(function: Any, *arguments: Any, **keywords: Any) -> Any:
            if threading.get_ident() != thread:
                return below.__get__(None, function)(*arguments, **keywords)
            if keywords:
                raise self._refuse("is called with keywords")
            return self._apply(function, arguments)

        def are_active_but_here() -> bool:
            # Below functionalize torch takes another way, which is closed to functions of one style.
            is_here = threading.get_ident() == thread and sys._getframe(1).f_code is caller
            return not is_here and are_active()

        base.apply = classmethod(apply)
        torch._C._are_functorch_transforms_active = are_active_but_here
        try:
            yield
        finally:
            if before is None:
                del base.apply
            else:
                base.apply = before
            torch._C._are_functorch_transforms_active = are_active

    def _apply(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        if self._recorder.inside is not None:  # the backward of the outer one is the gradient
            return self._forward(function, self._recorder.inside, arguments)[1]
        self._hold(function)
        for argument in arguments:
            self._hold_argument(argument)
        self._guard.freeze(each_tensor(arguments))
        may_want = tuple([_has_gradient(argument) for argument in arguments])
        out, has_asked, asked = self._run(function, Inside(arguments, may_want), None)
        if has_asked:
            first = self._recorder.written
            for is_wanted in _fewer(may_want):
                self._run(function, Inside(arguments, is_wanted), asked)
                self._hold_same(first, self._recorder.written, is_wanted, arguments)
        return out

    def _run(
        self, function: Any, inside: Inside, asked: list[Tensor] | None
    ) -> tuple[Any, bool, list[Tensor]]:
        """Run a function both ways.

        Args:
            function: the class.
            inside: its arguments, and what it is told of them.
            asked: the gradients of its results, if it has run before.

        Returns:
            The results, whether it has asked which gradients are wanted, and the gradients of the results.
        """
        context, out = self._forward(function, inside, inside.arguments)
        results = list(out) if isinstance(out, tuple) else [out]
        self._hold_results(context, results, inside.arguments)
        self._guard.freeze_touched()
        constant = {id(result) for result in context.non_differentiable}
        differentiable = tuple([r.is_floating_point() and id(r) not in constant for r in results])
        if asked is None:
            asked = [self._ask(*pair) for pair in zip(results, differentiable, strict=True)]
            self._guard.freeze(asked)
        if len(asked) != len(results):
            raise self._refuse("returns something else where a gradient is not wanted")
        backward = replace(inside, is_forward=False)
        gradients: list[Tensor | None] = [None for _ in each_tensor(inside.arguments)]
        if any(inside.is_wanted):
            gradients = self._backward(function, context, backward, asked)
            self._guard.freeze_touched()
        self._recorder.call = Call(function, inside.arguments, differentiable)
        made = CUSTOM(list(each_tensor(inside.arguments)), results, asked, gradients)
        self._guard.freeze(made)  # which the context may keep, or which is an argument, in torch
        has_asked = inside.has_asked or backward.has_asked
        return tuple(made) if isinstance(out, tuple) else made[0], has_asked, asked

    def _ask(self, result: Tensor, is_asked: bool) -> Tensor:
        # Made anew, it is a tensor of functionalize, as the results of weights are not.
        make = torch.empty if is_asked else torch.zeros
        made = make(result.shape, dtype=result.dtype, device="meta")
        if is_asked:
            self._recorder.ask_for_gradient()
        return made

    def _forward(
        self, function: Any, inside: Inside, arguments: tuple[Any, ...]
    ) -> tuple[Context, Any]:
        context = Context(inside)
        with self._running(inside):
            if function.setup_context is autograd.Function.setup_context:
                return context, function.forward(context, *arguments)
            out = function.forward(*arguments)
            function.setup_context(context, arguments, out)
            return context, out

    def _backward(
        self, function: Any, context: Context, inside: Inside, asked: list[Tensor]
    ) -> list[Tensor | None]:
        """The gradient of each tensor among the arguments; of those in lists torch takes none."""
        context.begin(inside)
        is_vjp = function.backward is autograd.Function.backward
        with self._running(inside):
            found = (function.vjp if is_vjp else function.backward)(context, *asked)
        gradients = found if isinstance(found, tuple) else (found,)
        arguments = inside.arguments
        rest = gradients[len(arguments) :]
        if len(gradients) < len(arguments) or any(g is not None for g in rest):
            raise self._refuse("returns another number of gradients than it has arguments")
        by_tensor: list[Tensor | None] = []
        for argument, gradient in zip(arguments, gradients, strict=False):
            if not isinstance(argument, Tensor):
                by_tensor += [None for _ in each_tensor(argument)]
                continue
            if gradient is not None and not isinstance(gradient, Tensor):
                raise self._refuse("returns something else than tensors as gradients")
            if not _has_gradient(argument):
                gradient = None
            if gradient is not None and not _expands(argument.shape, gradient.shape):
                raise self._refuse("returns a gradient of another shape than its argument has")
            by_tensor.append(gradient)
        return by_tensor

    @contextmanager
    def _running(self, inside: Inside) -> Iterator[None]:
        before, self._recorder.inside = self._recorder.inside, inside
        try:
            with torch.no_grad():
                yield
        finally:
            self._recorder.inside = before

    # What is refused

    def _hold(self, function: Any) -> None:
        """Refuse a class with tensors of its own: another cell with the same program would have others."""
        for name in ("forward", "setup_context", "backward", "vjp"):
            method = getattr(function, name)
            for cell in getattr(method, "__closure__", None) or ():
                try:
                    captured = cell.cell_contents
                except ValueError:  # not bound yet
                    continue
                if isinstance(captured, Tensor | torch.nn.Module):
                    raise self._refuse("captures tensors")

    def _hold_argument(self, argument: Any) -> None:
        """Refuse an object as an argument, for the same reason."""
        if type(argument) in (tuple, list):
            for item in argument:
                self._hold_argument(item)
        elif not isinstance(argument, _ARGUMENTS) or isinstance(argument, RowCount):
            raise self._refuse(f"is given a {type(argument).__name__}")

    def _hold_results(
        self, context: Context, results: list[Any], arguments: tuple[Any, ...]
    ) -> None:
        if not all(isinstance(result, Tensor) for result in results):
            raise self._refuse("returns something else than tensors")
        if any(t.is_complex() for t in (*results, *each_tensor(arguments))):
            raise self._refuse("takes or returns complex numbers")
        if context.dirty_tensors:
            raise self._refuse("writes into what it is given")
        if not context.materialize_grads:
            raise self._refuse("takes None for a gradient of zeros")
        own = [id(result) for result in results if not any(result is a for a in arguments)]
        if len(set(own)) < len(own):
            raise self._refuse("returns a tensor twice")

    def _hold_same(
        self,
        first: Custom | None,
        other: Custom | None,
        is_wanted: tuple[bool, ...],
        arguments: tuple[Any, ...],
    ) -> None:
        """Refuse a function that computes something else where fewer gradients are wanted."""
        assert first is not None
        assert other is not None
        wanted: list[bool] = []
        for argument, is_one in zip(arguments, is_wanted, strict=True):
            wanted += [is_one for _ in each_tensor(argument)]
        pairs = [*zip(first.results, other.results, strict=True)]
        for one, two, is_one in zip(first.gradients, other.gradients, wanted, strict=True):
            if is_one and (one is None) != (two is None):
                pairs.append((first.asked[0], other.results[0]))  # which differ
            elif is_one and one is not None and two is not None:
                pairs.append((one, two))
        same: dict[tuple[int, int], bool] = {}
        if not all(are_equal(one, two, same) for one, two in pairs):
            raise self._refuse("computes something else where a gradient is not wanted")

    def _refuse(self, why: str) -> CannotCompile:
        return self._recorder.refuse(
            f"{self._label} uses a custom autograd.Function{line_of()} that {why}"
        )


_ARGUMENTS = Tensor, bool, int, float, str, torch.dtype, type(None)


def _has_gradient(argument: Any) -> bool:
    """Whether an argument of a custom function may have a gradient."""
    return isinstance(argument, Tensor) and argument.is_floating_point()


def _fewer(may_want: tuple[bool, ...]) -> Iterator[tuple[bool, ...]]:
    """Each gradient left out, and all of them."""
    for place, is_one in enumerate(may_want):
        if is_one:
            yield tuple([w and k != place for k, w in enumerate(may_want)])
    yield tuple([False for _ in may_want])


def _expands(shape: Sequence[int], wider: Sequence[int]) -> bool:
    """Whether torch sums a gradient of one shape for a tensor of the other."""
    pairs = zip(reversed(shape), reversed(wider), strict=False)
    return len(shape) <= len(wider) and all(size in (1, other) for size, other in pairs)
