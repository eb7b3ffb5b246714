"""Operations on tensors without memory (torch's "meta" device): shapes and dtypes come out, no numbers.

torch can do this by itself, but many of its own rules are written in Python and import its compiler at
their first use, for a second or more. What most cells are made of is therefore answered here: products
by a rule, and what takes no time by doing it on ones. Everything else is left to torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from cello.foreign.scope import words

Op = torch._ops.OpOverload
Meta = torch.device("meta")


NUMBERS_OF_TENSORS = words("_local_scalar_dense item is_nonzero equal nonzero")
"""Operations whose result in Python depends on the values of tensors."""

_DONE_ON_ONES = words(
    "cat stack unsafe_split unsafe_split_with_sizes split_with_sizes_copy constant_pad_nd roll flip "
    "repeat sum mean amax amin max min prod var std logsumexp linalg_vector_norm norm cumsum cumprod "
    "var_mean _softmax _log_softmax _safe_softmax log_sigmoid_forward glu _prelu_kernel hardswish "
    "_to_copy clone native_layer_norm native_group_norm _fused_rms_norm tril triu diag_embed "
    "masked_fill index_select gather argmax argmin sort topk native_batch_norm "
    "native_layer_norm_backward native_group_norm_backward _softmax_backward_data "
    "_log_softmax_backward_data log_sigmoid_backward glu_backward _prelu_kernel_backward "
    "tanh_backward sigmoid_backward threshold_backward hardtanh_backward hardsigmoid_backward "
    "elu_backward gelu_backward silu_backward softplus_backward leaky_relu_backward mish_backward "
    "hardswish_backward slice_backward select_backward ones_like zeros_like full_like new_zeros "
    "new_ones new_full scalar_tensor embedding any all _is_all_true _is_any_true"
)
"""Operations that take no more time than to write their result, and that any numbers will do for."""


class NeedsNumbersError(RuntimeError):
    """An operation whose result depends on the numbers in a tensor."""


class CarriedError(RuntimeError):
    """A step read what an earlier step had computed and kept beside the state."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(f"a tensor {tuple(tensor.shape)} of an earlier step")
        self.tensor = tensor


class Mode(TorchDispatchMode):
    """A mode of torch's dispatcher that does not load torch's compiler, which takes a second."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would import torch._dynamo at the first use


class Memoryless(Mode):
    """Every tensor that is made of one without memory has none.

    What is made of tensors with memory alone is computed: numbers that are the same at every step may be
    read in Python. What somebody else holds is not written into; from such a write on it is unknown.

    Steps that run in it one after the other may share what they are given, and nothing that one of them
    computes for the rows of its batch.

    Attributes:
        carried: what this step has read that an earlier one computed, if there is such a tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, Tensor] = {}
        self.unknown: dict[int, Tensor] = {}
        self.carried: Tensor | None = None
        self._step, self._rows = 0, 1
        self._varying: dict[int, tuple[Tensor, int, int]] = {}  # with its step and the rows of that

    def begin(self, rows: int, given: Iterable[Tensor]) -> None:
        """Say that a step begins, and what it is given for each of its rows."""
        self._step, self._rows, self.carried = self._step + 1, rows, None
        for tensor in given:
            self._vary(tensor)

    def forget(self) -> None:
        """Forget the steps so far, the last of which did not come to its end."""
        self._varying.clear()

    def _vary(self, tensor: Tensor) -> None:
        self._varying[id(tensor)] = tensor, self._step, self._rows

    def _varies(self, name: str, operands: list[Tensor]) -> bool:
        """Whether the result of an operation depends on what the step was given.

        Raises:
            CarriedError: it depends on what an earlier step was given.
        """
        if name in SHAPE_ALONE:
            return False
        varies = False
        for position, tensor in enumerate(operands):
            found = self._varying.get(id(tensor))
            if found is None or (position == 0 and name in OVERWRITING):
                continue
            _, step, rows = found
            if step < self._step and tensor.dim() > 0 and tensor.shape[0] == rows:
                self.carried = tensor
                if rows > 1:  # one row may as well be an axis for broadcasting
                    raise CarriedError(tensor)
            varies = True
        return varies

    def own(self, tensor: Tensor) -> Tensor:
        """Say that a tensor is a copy, which may be written into."""
        self.made[id(tensor)] = tensor
        return tensor

    def __torch_dispatch__(
        self, func: Op, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        kwargs = kwargs or {}
        operands = list(each_tensor((args, kwargs)))
        varies = self._varies(name, operands)
        out = self._computed(func, name, args, kwargs, operands)
        if varies:
            for tensor in each_tensor(out):
                self._vary(tensor)
        return out

    def _computed(
        self,
        func: Op,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        operands: list[Tensor],
    ) -> Any:
        with _disable_current_modes():
            if self._is_known(func, operands):
                if func._schema.is_mutable and id(args[0]) not in self.made:
                    self.unknown[id(args[0])] = args[0]
                    return args[0]
                out = func(*args, **kwargs)
                for tensor in each_tensor(out):
                    self.own(tensor)
                return out
            if name in NUMBERS_OF_TENSORS:
                raise NeedsNumbersError(str(func))
            if name == "index":
                args = (args[0], [self._positions(index) for index in args[1]])
            if func._schema.is_mutable and isinstance(args[0], Tensor) and not args[0].is_meta:
                self.unknown[id(args[0])] = args[0]  # and its shape stays what it is
                return args[0]
            kwargs = {k: map_tensors(without_memory, value) for k, value in kwargs.items()}
            if "device" in kwargs:
                kwargs["device"] = Meta
            return run(func, map_tensors(without_memory, args), kwargs)

    def _is_known(self, func: Op, tensors: list[Tensor]) -> bool:
        """Whether an operation is about tensors with numbers alone, and few enough of them."""
        return (
            bool(tensors)
            and torch.Tag.nondeterministic_seeded not in func.tags
            and sum(tensor.numel() for tensor in tensors) <= _FEW
            and not any(tensor.is_meta or id(tensor) in self.unknown for tensor in tensors)
        )

    def _positions(self, index: Any) -> Any:
        """A mask of which the numbers are known, as the positions where it is true."""
        is_mask = isinstance(index, Tensor) and index.dtype == torch.bool and index.dim() == 1
        if not is_mask or index.is_meta or id(index) in self.unknown:
            return index
        return index.nonzero().squeeze(1)


SHAPE_ALONE = words(
    "zeros_like ones_like full_like empty_like rand_like randn_like randint_like new_zeros new_ones "
    "new_full new_empty new_empty_strided sym_size"
)
"""Operations that take the shape of an operand, and not its numbers."""

OVERWRITING = words("copy_ fill_ zero_")
"""Operations that do not read what they write into."""

_FEW = 1 << 16
"""How many numbers are computed with while a cell is tried."""
_MANY = 1 << 23
"""How many numbers are written sooner than torch's compiler is imported, at most."""


def without_hooks() -> AbstractContextManager[object]:
    """Keep what autograd saves from hooks of the caller's: a checkpoint counts what they are given."""
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)


def without_autocast(kind: str) -> AbstractContextManager[object]:
    """Keep the weights' dtype, as torch.autocast keeps that of what has no memory: both are compared."""
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


@contextmanager
def without_cache() -> Iterator[None]:
    """Leave alone what torch.nn.utils.parametrize.cached() keeps for its caller."""
    module = sys.modules.get("torch.nn.utils.parametrize")
    cache = {} if module is None else module._cache
    kept = dict(cache)
    cache.clear()
    try:
        yield
    finally:
        cache.clear()
        cache.update(kept)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Let what torch.compile has made run as it was written: its compiler would compile this module.

    A first import takes more than a second. torch's rules of shapes that are written in Python would import
    it, to say that it is not to look into them. If a step itself imports the compiler, as `torch.cond`
    does, then what it has compiled meanwhile, for this module too, is removed.
    """
    if "torch._dynamo" in sys.modules:
        with torch.compiler.set_stance("force_eager"):
            yield
        return
    marked = [rule for rule in _rules_in_python() if not hasattr(rule, _DISABLED)]
    for rule in marked:
        setattr(rule, _DISABLED, rule)
    try:
        yield
    finally:
        for rule in marked:
            vars(rule).pop(_DISABLED, None)
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()


@cache
def _rules_in_python() -> tuple[FunctionType, ...]:
    """The functions of torch that are wrapped so that its compiler does not look into them."""
    modules = [module for name, module in sys.modules.items() if name.startswith("torch._refs")]
    stack = [value for module in modules for value in vars(module).values()]
    seen: set[int] = set()
    found = []
    while stack:
        function = stack.pop()
        if not isinstance(function, FunctionType) or id(function) in seen:
            continue
        seen.add(id(function))
        names = function.__code__.co_freevars
        held = {
            name: _content(cell)
            for name, cell in zip(names, function.__closure__ or (), strict=True)
        }
        wrapped = held.get("fn")
        if function.__code__ is _WRAPPER and isinstance(wrapped, FunctionType):
            found.append(wrapped)
        stack += held.values()
    return tuple(found)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


_WRAPPER = _disable_dynamo(lambda: None).__code__
_DISABLED = "__dynamo_disable"
"""Where such a function keeps what is called in its place."""


@contextmanager
def without_symbols() -> Iterator[None]:
    """Check shapes of writes in place without torch's symbolic ones, whose first import takes a second."""
    module, name = torch._meta_registrations, "check_inplace_broadcast"
    known = getattr(module, name, None)
    if known is None or "torch.fx.experimental.symbolic_shapes" in sys.modules:
        yield
        return

    def check(shape: tuple[int, ...], *others: tuple[int, ...]) -> None:
        if broadcast(shape, *others) != tuple(shape):
            known(shape, *others)  # which says what is wrong

    setattr(module, name, check)
    try:
        yield
    finally:
        setattr(module, name, known)


@contextmanager
def without_tracer() -> Iterator[None]:
    """Let modules be called as usual while torch.fx, for torch.export, stands in between.

    Its stack of modules is no longer right once a call has raised an error, as a step that cannot be traced
    does.
    """
    call = nn.Module.__call__
    if getattr(call, "__globals__", {}).get("__name__") != "torch.fx._symbolic_trace":
        yield
        return
    nn.Module.__call__ = nn.Module._wrapped_call_impl  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__ = call  # type: ignore[method-assign]


def without_memory(tensor: Tensor) -> Tensor:
    """A tensor like `tensor` without its numbers."""
    if tensor.is_meta:
        return tensor
    if tensor.layout is not torch.strided:
        return torch.empty(tensor.size(), dtype=tensor.dtype, device=Meta)
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=Meta)


def run(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Do one operation on tensors without memory.

    Args:
        func: the operation.
        args: its arguments, on the meta device.
        kwargs: likewise.

    Raises:
        NeedsNumbersError: torch has no rule for it: its result has no shape of its own.
    """
    name = func._schema.name.removeprefix("aten::")
    _hold_integers(name, args)
    if name in _PRODUCTS and func._overloadname == "default":
        return _PRODUCTS[name](*args, **kwargs)
    if torch.Tag.pointwise in func.tags and not func.is_view:
        return _pointwise(func, args, kwargs)
    if name in _PUTS_IN and not kwargs:
        whole, source, *place = args
        if getattr(torch.ops.aten, _PUTS_IN[name])(whole, *place).shape == source.shape:
            return torch.empty(whole.shape, dtype=whole.dtype, device=Meta)
    small = sum(tensor.numel() for tensor in each_tensor((args, kwargs))) <= _MANY
    if name in _DONE_ON_ONES and small and not func._schema.is_mutable:
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        with torch.no_grad():
            return map_tensors(without_memory, func(*_ones(args), **_ones(kwargs)))
    try:
        return func(*args, **kwargs)
    except NotImplementedError as error:
        unknown = bool(_HAS_NO_SHAPE.intersection(func.tags)) and name != "linalg_lstsq"
        if unknown or func._schema.is_mutable:
            raise NeedsNumbersError(str(func)) from error
    # An operation for which torch has no rule of shapes.
    with torch.no_grad():
        return map_tensors(without_memory, func(*_ones(args), **_ones(kwargs)))


_PUTS_IN = {
    "select_scatter": "select",
    "slice_scatter": "slice",
    "diagonal_scatter": "diagonal",
}
"""Writes into a part, with what takes that part: torch's rule of shapes imports a compiler for them."""


def _hold_integers(name: str, args: tuple[Any, ...]) -> None:
    """Refuse floating-point numbers where torch refuses them only if they have memory.

    Raises:
        IndexError: they are an index.
        RuntimeError: they are the index of an operation along an axis.
    """
    if name.startswith("index_"):
        is_put = name.startswith("index_put")
        if any(tensor.is_floating_point() for tensor in each_tensor(args[1 if is_put else 2])):
            if is_put:
                raise IndexError("tensors used as indices must be long, int, byte or bool tensors")
            raise RuntimeError(f"{name}(): Expected dtype int32/int64 for index")


_HAS_NO_SHAPE = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
"""Least squares have them for the sake of the ranks that they return beside their solution."""


def _pointwise(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    is_mutable = func._schema.is_mutable
    if is_mutable and not func._schema.name.endswith("_"):
        return func(*args, **kwargs)
    tensors = list(each_tensor((args, kwargs)))
    shape = broadcast(*(tensor.shape for tensor in tensors))
    if is_mutable and args[0].shape != shape:
        return func(*args, **kwargs)  # torch says what is wrong

    def result(tensor: Tensor) -> Tensor:
        return torch.empty(shape, dtype=tensor.dtype, device=Meta)

    # The dtype, and whether there is such an operation at all, of one number in as many axes.
    with torch.no_grad():
        results = func(*_ones(args, single=True), **_ones(kwargs, single=True))
    return args[0] if is_mutable else map_tensors(result, results)


def _ones(value: Any, single: bool = False) -> Any:
    def make(tensor: Tensor) -> Tensor:
        shape = (1,) * tensor.dim() if single else tensor.shape
        # Integers may count rows, from 0 on.
        is_one = single or tensor.is_floating_point() or tensor.is_complex()
        return torch.full(shape, int(is_one), dtype=tensor.dtype, device="cpu")

    return map_tensors(make, value)


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a pointwise result.

    Raises:
        RuntimeError: there is none.
    """
    out: list[int] = []
    for shape in shapes:
        out[:0] = [1] * (len(shape) - len(out))
        for axis in range(-len(shape), 0):
            if out[axis] == 1:
                out[axis] = shape[axis]
            elif shape[axis] not in (1, out[axis]):
                raise RuntimeError(
                    f"The size of tensor a ({out[axis]}) must match the size of tensor b ({shape[axis]}) "
                    f"at non-singleton dimension {len(out) + axis}"
                )
    return tuple(out)


def _mm(a: Tensor, b: Tensor) -> Tensor:
    if a.dim() != 2 or b.dim() != 2:
        return torch.mm(a, b)  # torch says what is wrong
    if a.shape[1] != b.shape[0]:
        raise RuntimeError(
            f"mat1 and mat2 shapes cannot be multiplied ({a.shape[0]}x{a.shape[1]} and "
            f"{b.shape[0]}x{b.shape[1]})"
        )
    return _product(a, b, (a.shape[0], b.shape[1]))


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    out = _mm(a, b)
    if not _expands(bias, out):
        return torch.addmm(bias, a, b, beta=beta, alpha=alpha)
    return out


def _mv(a: Tensor, b: Tensor) -> Tensor:
    if a.dim() != 2 or b.dim() != 1 or a.shape[1] != b.shape[0]:
        return torch.mv(a, b)
    return _product(a, b, a.shape[:1])


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    if a.dim() != 3 or b.dim() != 3 or a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1]:
        return torch.bmm(a, b)
    return _product(a, b, (*a.shape[:2], b.shape[2]))


def _baddbmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    out = _bmm(a, b)
    if not _expands(bias, out):
        return torch.baddbmm(bias, a, b, beta=beta, alpha=alpha)
    return out


def _expands(bias: Tensor, out: Tensor) -> bool:
    sizes = zip(reversed(bias.shape), reversed(out.shape), strict=False)
    fits = bias.dim() <= out.dim() and all(a in (1, b) for a, b in sizes)
    return fits and bias.dtype == out.dtype


def _product(a: Tensor, b: Tensor, shape: tuple[int, ...]) -> Tensor:
    if a.dtype != b.dtype:
        raise RuntimeError(
            f"mat1 and mat2 must have the same dtype, but got {a.dtype} and {b.dtype}"
        )
    return torch.empty(shape, dtype=a.dtype, device=Meta)


def _convolution(x: Tensor, weight: Tensor, *args: Any) -> Tensor:
    """A convolution; torch's rule of shapes imports a compiler."""
    _, stride, padding, dilation, is_transposed, more, groups = args
    channels, wanted = weight.shape[:2] if is_transposed else weight.shape[1::-1]
    sizes, kernel = x.shape[2:], weight.shape[2:]
    axes = len(kernel)
    if x.dim() != weight.dim() or not len(stride) == len(padding) == len(dilation) == axes:
        return _convolved(x, weight, *args)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if is_transposed:
        made = [
            (n - 1) * s - 2 * p + r + m
            for n, s, p, r, m in zip(sizes, stride, padding, reach, more, strict=True)
        ]
        wanted *= groups
    else:
        made = [
            (n + 2 * p - r) // s + 1
            for n, s, p, r in zip(sizes, stride, padding, reach, strict=True)
        ]
        channels *= groups
    if x.shape[1] != channels or min(made) <= 0 or x.dtype != weight.dtype:
        return _convolved(x, weight, *args)  # torch says what is wrong
    return torch.empty((len(x), wanted, *made), dtype=x.dtype, device=Meta)


_convolved: Callable[..., Tensor] = torch.ops.aten.convolution.default

_PRODUCTS: dict[str, Callable[..., Tensor]] = {
    "convolution": _convolution,
    "mm": _mm,
    "addmm": _addmm,
    "mv": _mv,
    "bmm": _bmm,
    "baddbmm": _baddbmm,
}


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Apply a function to the tensors among arguments."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return tuple(map_tensors(function, item) for item in value)
    if isinstance(value, list):
        return [map_tensors(function, item) for item in value]
    if isinstance(value, dict):
        return {key: map_tensors(function, item) for key, item in value.items()}
    return value


def each_tensor(value: Any) -> Iterator[Tensor]:
    """The tensors among arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from each_tensor(item)
    elif isinstance(value, dict):
        yield from each_tensor(tuple(value.values()))
