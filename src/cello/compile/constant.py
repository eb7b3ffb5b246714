"""Tensors of Python numbers that a step makes anew each time, as ``torch.tensor([0.5, 2.0])`` does."""

from __future__ import annotations

from array import array
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

MOST = 1024
"""A constant of more numbers is not kept in a program."""

_library = torch.library.Library("cello", "FRAGMENT")
_library.define(
    "constant(float[] numbers, SymInt[] shape, ScalarType dtype, Device device) -> Tensor"
)


@lru_cache(maxsize=256)
def _made(
    numbers: bytes, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    with torch.inference_mode(False):
        known = torch.tensor(array("d", numbers), dtype=torch.float64, device="cpu")
        if dtype.is_complex:
            known = torch.view_as_complex(known.view(-1, 2))
        return known.to(dtype).reshape(shape).to(device)


def _constant(
    numbers: list[float], shape: list[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    # Known by its bytes: 0.0 is not -0.0.
    return _made(array("d", numbers).tobytes(), tuple(shape), dtype, device).clone()


def _like(
    numbers: list[float], shape: list[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


_library.impl("constant", _constant, "CompositeExplicitAutograd")
_library.impl("constant", _like, "Meta")
CONSTANT = torch.ops.cello.constant.default
"""The operation by which a trace knows a tensor that was made of Python numbers."""


def with_tensors(index: Any) -> Any:
    """Return what a tensor is indexed with, with tensors in the place of lists of numbers.

    Torch makes these, too, but below where a trace sees it.
    """
    if isinstance(index, tuple):
        return tuple(map(with_tensors, index))
    is_list = isinstance(index, list) and bool(index) and {type(i) for i in index} <= {int, bool}
    return torch.tensor(index) if is_list else index


def without_array(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the arguments of ``torch.tensor`` with a list in the place of an array of numpy's.

    Torch copies the array, by a tensor with its memory.
    """
    name = getattr(getattr(args[0], "dtype", None), "name", None) if args else None
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(dtype, torch.dtype) or not hasattr(args[0], "tolist"):
        return args, kwargs
    return (args[0].tolist(), *args[1:]), {"dtype": dtype, **kwargs}


def numbers_of(tensor: Tensor) -> tuple[float, ...] | None:
    """Return the numbers of a tensor, if it may be kept in a program and double precision holds them.

    A complex number is its real and its imaginary part.

    Example:
        >>> numbers_of(torch.tensor([[1, 2]])), numbers_of(torch.tensor([2**60 + 1]))
        ((1.0, 2.0), None)
    """
    if tensor.numel() > MOST or tensor.layout != torch.strided:
        return None
    with torch._C.DisableTorchFunction():  # who sees what a step asks of tensors is not to see this
        if not tensor.untyped_storage().resizable():  # the memory of an array, which may change
            return None
        parts = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        given = parts.flatten().tolist()
    numbers = tuple(map(float, given))
    return numbers if all(a == b or a != a for a, b in zip(given, numbers, strict=True)) else None
