"""Answers what a step asks of its tensors, where a trace would answer differently from a call.

On meta tensors some questions have another answer than on the rows of a batch: those for the device and the
class are answered as in a call, those for the number of rows with a number that sees how it is used, and
those for memory, gradients and hooks are refused.
"""

from __future__ import annotations

import builtins
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from types import FrameType
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cello.compile.constant import with_tensors, without_array
from cello.compile.custom import Inside
from cello.compile.node import are_chosen
from cello.compile.reasons import CannotCompile, line_of
from cello.compile.row_count import RowCount
from cello.compile.written_out import written_out
from cello.foreign.memoryless import each_tensor, map_tensors
from cello.foreign.path import Path
from cello.foreign.reach import Reach
from cello.foreign.scope import is_constant, words

_functorch = torch._C._functorch


class Recorder(Protocol):
    """What writes the operations down.

    Attributes:
        rows: the number of rows of the traced batch.
        tells_rows: whether a size tells by itself whether it counts rows, which no other number divides.
        device: the device of the tensors that the trace stands for.
        autocast: the dtype that torch.autocast casts to, or ``None`` where it is off.
        counted: whether the step has asked for a number of rows.
        calls: what the step has called of torch's, with arguments and results.
        lines: where it has called each.
        inside: the forward or backward of a custom function that runs, if one does.
        has_grad: whether gradients were on where the step called the function of torch that runs.
        overwrites: whether the next tensor that is filled is one that is written to past its gradient.
        may_be_copied: whether the step has called what copies tensors only with gaps in their memory.
    """

    rows: int
    autocast: torch.dtype | None
    tells_rows: bool
    device: torch.device
    counted: bool
    calls: list[tuple[Any, ...]]
    lines: list[str]
    inside: Inside | None
    has_grad: bool
    overwrites: bool
    may_be_copied: bool

    def is_cast(self, tensor: Tensor) -> bool:
        """Whether torch.autocast, which is on, casts an operand of a product."""

    def plain(self, tensor: Tensor) -> Tensor: ...

    def refuse(self, message: str) -> CannotCompile:
        """Remember a reason not to compile, and return it."""

    def refuse_write(self, path: Path) -> CannotCompile:
        """Remember that the step writes into a tensor of the cell, and return that as an error."""

    def may_read(self, tensor: Any) -> bool:
        """Whether a tensor is one that the cell holds, whose numbers may be read in Python."""


class Asked(TorchFunctionMode):
    """Sees what is asked of tensors above the dispatcher, and refuses what nothing else would show.

    Args:
        label: what messages call the cell.
        recorder: what writes the operations down.
        reach: finds the tensors that the cell holds.
    """

    def __init__(self, label: str, recorder: Recorder, reach: Reach) -> None:
        super().__init__()
        self.label, self.recorder, self.reach = label, recorder, reach
        self.numbers: dict[int, tuple[Tensor, str]] = {}  # of tensors, as they come
        self.count = count()
        self.detached: dict[int, Tensor] = {}  # with views: writes there go past the gradient
        self.beside: dict[int, tuple[Tensor, Tensor]] = {}  # detached, and that of which it is all
        self.has_written = False
        self.frozen: dict[int, Tensor] = {}  # with views
        self.touched: dict[int, Tensor] = {}  # made by the custom function that runs

    def _cast(self, tensor: Tensor) -> Tensor:
        """A tensor as torch.autocast hands it on."""
        return tensor.to(self.recorder.autocast) if self.recorder.is_cast(tensor) else tensor

    def _plain_within(self, tensor: Tensor) -> Tensor:
        """A tensor of vmap's over one of torch.export's, with which torch would crash: over a plain one."""
        if not _functorch.is_batchedtensor(tensor):
            return tensor
        inside = _functorch.get_unwrapped(tensor)
        plain = self._plain_within(inside)
        if type(plain) not in (Tensor, nn.Parameter):
            plain = self.recorder.plain(plain)
        if plain is inside:
            return tensor
        level, axis = _functorch.maybe_get_level(tensor), _functorch.maybe_get_bdim(tensor)
        mapped: Tensor = _functorch._add_batch_dim(plain, axis, level)
        return mapped

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        kind = self.recorder.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            # below here it does not show
            raise self._refuse(
                "has a region of torch.autocast of its own", "casts what it computes"
            )
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
            if name == "data":
                data = self._detach(args[0].detach())
                self.beside[id(data)] = data, args[0]
                return data
            if name in _OF_DEVICE and _is_users(sys._getframe(1)):
                device = self.recorder.device
                return device if name == "device" else name == f"is_{device.type}"
            if name in ("shape", "nbytes"):
                return self._count(name, func(*args), sys._getframe(1))
            if name in _OF_AUTOGRAD and _is_users(sys._getframe(1)):
                inside = self.recorder.inside
                if name == "requires_grad" and inside is not None and inside.is_forward:
                    return inside.answer(args[0])
                raise self._refuse(f"asks for .{name} of a tensor", "may differ from step to step")
        elif name == "__set__":
            raise self._refuse(
                "sets an attribute of a tensor", "is seen by autograd or outlives the step"
            )
        elif name == "type" and not (len(args) == 2 and isinstance(args[1], torch.dtype)):
            raise self._refuse("calls .type() of a tensor", "tells of its device")
        elif name == "type":
            func = Tensor.to
        elif name in _SHARES_MEMORY:
            raise self._refuse(f"calls {name}() of a tensor", "shares its memory, unseen")
        elif name in _READS_MEMORY and args and not self.recorder.may_read(args[0]):
            raise self._refuse(f"calls {name}() of a tensor", "reads its memory, unseen")
        elif name in _FOR_AUTOGRAD:
            if _is_functorchs(sys._getframe(1)):
                name = "torch.func.grad, or another function that takes gradients"
                raise self._refuse(f"calls {name}", "no program does within a step")
            raise self._refuse(f"calls .{name}()", "acts on the gradients of single steps")
        is_watched = self.recorder.inside is None
        if self.has_written and is_watched and not torch.is_grad_enabled():
            # Views of what was written are made anew when they are read, without a gradient.
            raise self._refuse("computes under no_grad after a write in place", "views may lose")
        if self._fill_past_gradient(name, args):
            return args[0]
        if name == "contiguous" or "memory_format" in (kwargs or {}):
            self.recorder.may_be_copied = True
        if name == "__setitem__" or (name.endswith("_") and not name.startswith("_")):
            self._check_write(func, args[:1])
        given = list(each_tensor((args, kwargs or {})))
        before = list(map(_writes_into, given))
        if name == "__getitem__" and type(args[0]) not in (Tensor, nn.Parameter):
            # Within a functional step torch cannot index tensors of torch.export's, which the cell holds.
            args = (self.recorder.plain(args[0]), *args[1:])
        if any(map(_functorch.is_batchedtensor, given)):
            args, kwargs = map_tensors(self._plain_within, (args, kwargs or {}))
        if name == "new_tensor" and len(args) == 2 and not isinstance(args[1], Tensor):
            func, args, kwargs = torch.tensor, args[1:], {"dtype": args[0].dtype, **(kwargs or {})}
        if self.recorder.autocast is not None:
            args, kwargs = self._under_autocast(name, args, kwargs or {})
        if func is torch.cdist and len(args) < 4:  # by a product it would ask for memory
            kwargs = {**(kwargs or {}), "compute_mode": "donot_use_mm_for_euclid_dist"}
        if func is torch.tensor:
            args, kwargs = without_array(args, kwargs or {})
            if (
                str(kwargs.get("device", "")) == "meta"
            ):  # as of a tensor of the step, without numbers
                kwargs = {key: value for key, value in kwargs.items() if key != "device"}
        if name in ("__getitem__", "__setitem__"):
            args = (args[0], with_tensors(args[1]), *args[2:])
        if name != "interpolate" or self.recorder.autocast is None:  # it is no product to torch
            func = written_out(func) or func
        before_call, self.recorder.has_grad = self.recorder.has_grad, torch.is_grad_enabled()
        try:
            out: Any = func(*args, **(kwargs or {}))
        finally:
            self.recorder.has_grad = before_call
        written = [t for t, count in zip(given, before, strict=True) if _writes_into(t) != count]
        self._check_write(func, written)
        if name == "contiguous":  # it may be the same tensor, which makes no difference
            self.numbers.setdefault(id(out), (out, self._number(args[0])))
        self.note(name, args, tuple((kwargs or {}).items()), out)
        is_the_same = name == "contiguous" and not torch.is_grad_enabled()  # with its gradient
        if (name in _OF_LAYOUT or is_the_same) and _is_users(sys._getframe(1)):
            self._ask_layout(name)
        if name in _COUNTS:
            return self._count(name, out, sys._getframe(1))
        is_alias = name in _ALIASES and bool(args)
        results = out if isinstance(out, tuple | list) else (out,)
        if (is_alias and id(args[0]) in self.detached) or name in ("detach", "detach_"):
            for tensor in results:
                self._detach(tensor)
        if name == "detach":
            self.beside[id(out)] = out, args[0]
        tensors = {id(tensor): tensor for tensor in results if isinstance(tensor, Tensor)}
        if is_alias and id(args[0]) in self.frozen:
            self.frozen |= tensors
        if not is_watched:
            self.touched |= tensors
        return out

    def _fill_past_gradient(self, name: str, args: tuple[Any, ...]) -> bool:
        """Write a number past the gradient of a tensor, as in ``e.data.masked_fill_(mask, -inf)``.

        Returns:
            Whether the call did so, and it is done.
        """
        if name not in ("masked_fill_", "__setitem__") or len(args) != 3:
            return False
        data, mask, number = args
        is_mask = isinstance(mask, Tensor) and mask.dtype == torch.bool
        if name == "__setitem__":
            is_mask = is_mask and mask.shape == data.shape
        is_known = id(data) in self.beside and is_mask and isinstance(number, int | float)
        if not is_known or self.recorder.inside is not None or not torch.is_grad_enabled():
            return False
        _, tensor = self.beside[id(data)]
        self.has_written = self.recorder.overwrites = True
        tensor.copy_(tensor.masked_fill(mask, number))
        self.note(name, args)
        return True

    def _check_write(self, func: Callable[..., Any], tensors: Iterable[Any]) -> None:
        """Refuse a write in place that goes past gradients, or into what must stay."""
        is_watched = self.recorder.inside is None
        for tensor in tensors:
            path = self.reach.path(tensor)
            if path is not None:
                raise self.recorder.refuse_write(path)
            self.has_written = True
            if id(tensor) in self.frozen:
                raise self._refuse(
                    "writes into what a custom autograd.Function has seen", "its backward may read"
                )
            is_init = getattr(func, "__module__", None) == "torch.nn.init"
            if is_watched and (is_init or not torch.is_grad_enabled()):
                raise self._refuse("writes in place under no_grad", "gradients flow through unseen")
            if is_watched and id(tensor) in self.detached:
                raise self._refuse(
                    "writes in place through .data or .detach()", "gradients flow through unseen"
                )

    def note(self, *told: Any) -> None:
        """Note a call, or what the step is given or returns, to compare it with another trace."""
        self.recorder.calls.append(tuple(map(self._plain, told)))
        self.recorder.lines.append(line_of())

    def _plain(self, value: Any) -> Any:
        """A value with what can be compared of its tensors: which they are, and their shapes."""
        if isinstance(value, Tensor):
            path = self.reach.path(value)
            which = self._number(value) if path is None else path.readable
            return which, tuple(value.shape)
        if isinstance(value, tuple | list):
            return tuple(map(self._plain, value))
        if isinstance(value, slice):
            return tuple(map(self._plain, (value.start, value.stop, value.step)))
        if isinstance(value, dict):
            return tuple(map(self._plain, value.items()))
        if type(value) is RowCount:
            return int.__pos__(value)
        return value if isinstance(value, _COMPARED) else type(value).__qualname__

    def _number(self, tensor: Tensor) -> str:
        """What tells a tensor from the others."""
        if id(tensor) not in self.numbers:
            self.numbers[id(tensor)] = tensor, f"tensor {next(self.count)}"
        return self.numbers[id(tensor)][1]

    def freeze(self, tensors: Iterable[Tensor]) -> None:
        """Refuse writes into tensors, and into views of them that are made from now on."""
        self.frozen |= {id(tensor): tensor for tensor in tensors}

    def freeze_touched(self) -> None:
        """Refuse writes into all that was made by a forward or a backward."""
        self.freeze(self.touched.values())
        self.touched = {}

    def _count(self, name: str, out: Any, frame: FrameType | None) -> Any:
        """Answer a question for a size, or for several."""
        rows = self.recorder.rows
        if not _is_users(frame):
            return out
        if are_chosen(out if isinstance(out, tuple) else (out,)):
            raise self._refuse("asks how many numbers a mask chooses", "differs from step to step")
        if not self.recorder.tells_rows:
            return out
        if isinstance(out, tuple):
            sizes = [self._count(name, size, frame) for size in out]
            return torch.Size(sizes) if isinstance(out, torch.Size) else tuple(sizes)
        if type(out) is not int or out == 0 or out % rows:
            return out
        self.recorder.counted = True
        return RowCount(out, self._refuse_count)

    @contextmanager
    def counting_lengths(self) -> Iterator[None]:
        """Let ``len`` answer as the size does: it would make a plain number of what a tensor answers."""
        plain, thread = builtins.len, threading.get_ident()

        def length(obj: Any, /) -> int:
            out = plain(obj)
            if not isinstance(obj, Tensor) or threading.get_ident() != thread:
                return out
            return cast(int, self._count("__len__", out, sys._getframe(1)))

        builtins.len = length
        try:
            yield
        finally:
            builtins.len = plain
            _tell_compiler(plain)

    def _ask_layout(self, name: str) -> None:
        """Note a question of which the answer may be another one for another number of rows."""
        inside = self.recorder.inside
        if inside is not None and not inside.is_forward:
            raise self._refuse(f"calls {name}() of a gradient", "torch may lay out in another way")
        self.recorder.counted = True

    def _under_autocast(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What torch.autocast hands on to a function that is made of others below it.

        Raises:
            CannotCompile: it would compute in float32.
        """
        if name in _CAST_WHOLE:
            made: tuple[tuple[Any, ...], dict[str, Any]] = map_tensors(self._cast, (args, kwargs))
            return made
        is_border = name == "pad" and {"reflect", "replicate"}.intersection(
            (*args, *kwargs.values())
        )
        if name in _WIDENED_WHOLE or is_border:
            given = each_tensor((args, kwargs))
            if any(tensor.dtype == self.recorder.autocast for tensor in given):
                raise self.recorder.refuse(
                    f"{self.label} uses {name}{line_of()}, which torch.autocast computes in float32; "
                    "convert its operands with .float()"
                )
        return args, kwargs

    def _refuse_count(self) -> CannotCompile:
        return self._refuse(
            "decides by the number of rows in the batch", "differs from call to call"
        )

    def _detach(self, tensor: Any) -> Any:
        if isinstance(tensor, Tensor):
            self.detached[id(tensor)] = tensor
        return tensor

    def _refuse(self, what: str, why: str) -> CannotCompile:
        return self.recorder.refuse(f"{self.label} {what}{line_of()}, which {why}")


_COMPARED = bool, int, float, complex, str, type(None), torch.dtype, torch.device
"""What is compared of a call by its value; of other objects nothing is kept but the class."""


def _writes_into(tensor: Tensor) -> int:
    """How often a tensor was written into, or what it is a view of."""
    if not torch._is_functional_tensor(tensor):
        return tensor._version
    return torch._functionalize_mutation_counter(tensor)


_CAST_WHOLE = words(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution "
    "matmul __matmul__ __rmatmul__ prelu scaled_dot_product_attention vecdot linalg_vecdot"
)
"""What torch.autocast casts as it casts products, before it is taken apart.

For convolutions torch compares the dtypes of an image and a bias above the dispatcher, too.
"""
_WIDENED_WHOLE = words(
    "mse_loss l1_loss smooth_l1_loss huber_loss kl_div binary_cross_entropy_with_logits poisson_nll_loss "
    "hinge_embedding_loss cross_entropy nll_loss cosine_embedding_loss triplet_margin_loss "
    "soft_margin_loss margin_ranking_loss multi_margin_loss multilabel_margin_loss avg_pool3d "
    "max_pool3d adaptive_avg_pool3d"
)
"""What torch.autocast computes in float32 before it is taken apart."""

_OF_DEVICE = words("device is_cpu is_meta is_cuda is_mps is_xpu")
"""What is asked of the device, which while tracing is another one."""

_COUNTS = words("size stride numel nelement __len__")
"""Functions that give sizes of a tensor, or what is computed from them."""

_OF_LAYOUT = words(
    "is_contiguous stride dim_order is_non_overlapping_and_dense is_same_size squeeze squeeze_"
)
"""Functions of which the answer, or the shape of the result, differs where a size is one."""

_OF_AUTOGRAD = words(
    "requires_grad grad_fn grad is_leaf retains_grad _version _grad output_nr _base _backward_hooks"
)
_FOR_AUTOGRAD = words(
    "register_hook register_post_accumulate_grad_hook retain_grad backward requires_grad_ set_ "
    "untyped_storage data_ptr is_inference"
)
_SHARES_MEMORY = words("numpy __array__ __dlpack__")
"""Functions whose result has the memory of a tensor, in a trace that of one that is gone soon."""
_READS_MEMORY = words("tolist __repr__ __str__ __format__ __reduce_ex__ __deepcopy__ __contains__")
"""Functions that look at the numbers of a tensor without the dispatcher."""
_ALIASES = words(
    "view view_as reshape reshape_as __getitem__ chunk split tensor_split unbind select narrow transpose "
    "swapaxes swapdims t permute squeeze unsqueeze expand expand_as flatten unflatten movedim moveaxis "
    "diagonal unfold detach alias contiguous to float double ravel real imag hsplit vsplit dsplit"
)
"""Functions whose result may share its memory with their first argument."""


def _tell_compiler(function: Callable[..., Any]) -> None:
    """Put a builtin function into torch.compile's table, which it may have made while another was there."""
    rules = sys.modules.get("torch._dynamo.trace_rules")
    table: Any = getattr(rules, "_builtin_function_ids", None)
    known = getattr(table, "function_ids", None)
    if known is not None and id(function) not in known:
        table.add(id(function))


def _is_users(frame: FrameType | None) -> bool:
    """Whether a frame runs code of the cell's author, and not of a library around it."""
    while frame is not None and frame.f_globals.get("__name__") in (
        "torch.overrides",
        "torch._tensor",
    ):
        frame = frame.f_back  # a method of a tensor that is written in Python
    module = None if frame is None else frame.f_globals.get("__name__")
    # NumPy hands sizes on to whoever called it.
    return frame is not None and (not is_constant(module) or _is_numpys(module))


def _is_functorchs(frame: FrameType | None) -> bool:
    """Whether a frame runs code of torch.func."""
    module = "" if frame is None else str(frame.f_globals.get("__name__"))
    return module.startswith("torch._functorch.")


def _is_numpys(module: str | None) -> bool:
    return isinstance(module, str) and module.partition(".")[0] == "numpy"
