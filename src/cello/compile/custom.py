"""Custom functions of autograd in a step: subclasses of ``torch.autograd.Function``.

What their ``forward`` does is traced like the rest of the step. Their ``backward`` is traced with it, on
gradients that are not known yet, and becomes the rule for the gradient of their results.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd import function as autograd

from cello.compile.reasons import CannotCompile, line_of
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
        is_wanted: what it is told, if it asks whether gradients are wanted; ``None`` in a backward.
        has_asked: whether it has.
    """

    is_wanted: bool | None
    has_asked: bool = False

    def answer(self) -> bool:
        """Say whether gradients are wanted."""
        self.has_asked = True
        return bool(self.is_wanted)


class Recorder(Protocol):
    """What writes the operations down.

    Attributes:
        inside: the forward or backward of a custom function that runs, if one does.
        call: the call whose operation comes next.
    """

    inside: Inside | None
    call: Call | None

    def refuse(self, message: str) -> CannotCompile:
        """Remember a reason not to compile, and return it."""

    def count(self) -> int:
        """How many tensors the step has made."""

    def since(self, start: int) -> list[Any]:
        """Describe the operations from one on, to compare them with others."""

    def ask_for_gradient(self) -> None:
        """Take the latest tensor for a gradient, which is not known yet."""


class Context(autograd.FunctionCtx):
    """What a custom function is given to keep things in, from its forward to its backward.

    Args:
        arguments: what the function is called with.
        inside: knows whether gradients are wanted.
    """

    to_save: tuple[Tensor, ...] = ()
    dirty_tensors: tuple[Tensor, ...] = ()
    non_differentiable: tuple[Tensor, ...] = ()
    materialize_grads = True

    def __init__(self, arguments: tuple[Any, ...], inside: Inside) -> None:
        self._arguments, self._inside = arguments, inside

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]:
        """What the forward has saved."""
        return self.to_save

    @property
    def needs_input_grad(self) -> tuple[bool, ...]:
        """For each argument whether its gradient is wanted."""
        is_wanted = True if self._inside.is_wanted is None else self._inside.answer()
        return tuple([is_wanted and _has_gradient(argument) for argument in self._arguments])


class CustomFunctions:
    """Runs the custom functions that a step calls.

    Args:
        label: what messages call the cell.
        recorder: writes down what they do.
        frozen: makes a context in which tensors may not be written into.
    """

    def __init__(
        self,
        label: str,
        recorder: Recorder,
        frozen: Callable[[list[Tensor]], AbstractContextManager[None]],
    ) -> None:
        self._label, self._recorder, self._frozen = label, recorder, frozen

    @contextmanager
    def seen(self) -> Iterator[None]:
        """See the calls of this thread."""
        base: Any = autograd._SingleLevelFunction
        thread = threading.get_ident()
        before = vars(base).get("apply")  # there is one within another trace
        below = before or vars(torch._C._FunctionBase)["apply"]
        are_active = torch._C._are_functorch_transforms_active
        caller = cast(Any, autograd.Function.apply).__func__.__code__

        def apply(function: Any, *arguments: Any) -> Any:
            if threading.get_ident() != thread:
                return below.__get__(None, function)(*arguments)
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
        recorder, outer = self._recorder, self._recorder.inside
        if outer is not None:  # whose own backward is the gradient
            return self._forward(function, arguments, outer)[1]
        for argument in arguments:
            self._hold_argument(argument)
        given, start = list(each_tensor(arguments)), recorder.count()
        with self._frozen(given):
            context, out = self._forward(function, arguments, Inside(True))
            if context._inside.has_asked:
                described, middle = recorder.since(start), recorder.count()
                self._forward(function, arguments, Inside(False))
                if recorder.since(middle) != described:
                    raise self._refuse("computes something else where no gradient is wanted")
        results = list(out) if isinstance(out, tuple) else [out]
        if not all(isinstance(result, Tensor) for result in results):
            raise self._refuse("returns something else than tensors")
        if context.dirty_tensors:
            raise self._refuse("writes into what it is given")
        if not context.materialize_grads:
            raise self._refuse("takes None for a gradient of zeros")
        constant = {id(result) for result in context.non_differentiable}
        differentiable = tuple([r.is_floating_point() and id(r) not in constant for r in results])
        asked = []
        for result, is_asked in zip(results, differentiable, strict=True):
            # Made anew, a tensor may be written into, as torch's own gradients may be.
            make = torch.empty if is_asked else torch.zeros
            asked.append(make(result.shape, dtype=result.dtype, device="meta"))
            if is_asked:
                recorder.ask_for_gradient()
        saved = list(each_tensor(context.to_save))  # with None in between, it may be
        with self._frozen([*given, *results, *asked, *saved]):
            gradients = self._backward(function, context, asked)
        recorder.call = Call(function, arguments, differentiable)
        made = CUSTOM(given, results, asked, self._by_tensor(arguments, gradients))
        return tuple(made) if isinstance(out, tuple) else made[0]

    def _forward(
        self, function: Any, arguments: tuple[Any, ...], inside: Inside
    ) -> tuple[Context, Any]:
        context = Context(arguments, inside)
        with self._running(inside):
            if function.setup_context is autograd.Function.setup_context:
                return context, function.forward(context, *arguments)
            out = function.forward(*arguments)
            function.setup_context(context, arguments, out)
            return context, out

    def _backward(self, function: Any, context: Context, asked: list[Tensor]) -> tuple[Any, ...]:
        is_vjp = function.backward is autograd.Function.backward
        context._inside = Inside(None)
        with self._running(context._inside):
            found = (function.vjp if is_vjp else function.backward)(context, *asked)
        return found if isinstance(found, tuple) else (found,)

    @contextmanager
    def _running(self, inside: Inside) -> Iterator[None]:
        before, self._recorder.inside = self._recorder.inside, inside
        try:
            with torch.no_grad():
                yield
        finally:
            self._recorder.inside = before

    def _by_tensor(
        self, arguments: tuple[Any, ...], gradients: tuple[Any, ...]
    ) -> list[Tensor | None]:
        """The gradient of each tensor among the arguments; of those in lists torch takes none."""
        if len(gradients) < len(arguments) or any(
            g is not None for g in gradients[len(arguments) :]
        ):
            raise self._refuse("returns another number of gradients than it has arguments")
        found: list[Tensor | None] = []
        for argument, gradient in zip(arguments, gradients, strict=False):
            if isinstance(argument, Tensor):
                found.append(gradient if _has_gradient(argument) else None)
            else:
                found += [None for _ in each_tensor(argument)]
        return found

    def _hold_argument(self, argument: Any) -> None:
        """Refuse an object as an argument: another cell with the same program would have another one."""
        if isinstance(argument, tuple | list):
            for item in argument:
                self._hold_argument(item)
        elif not isinstance(argument, _ARGUMENTS):
            raise self._refuse(f"is given a {type(argument).__name__}")

    def _refuse(self, why: str) -> CannotCompile:
        return self._recorder.refuse(
            f"{self._label} uses a custom autograd.Function{line_of()} that {why}"
        )


_ARGUMENTS = Tensor, bool, int, float, str, torch.dtype, type(None)


def _has_gradient(argument: Any) -> bool:
    """Whether an argument of a custom function may have a gradient."""
    return isinstance(argument, Tensor) and argument.is_floating_point()
