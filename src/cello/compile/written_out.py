"""Functions of torch that a trace sees written out, in operations that become instructions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cello.compile import recurrent_layers


def written_out(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """The function that computes what one of torch's does, in other operations, if there is one."""
    return _FUNCTIONS.get(function) if getattr(function, "__name__", "") in _NAMES else None


def _allclose(*args: Any, **kwargs: Any) -> bool:
    return bool(torch.isclose(*args, **kwargs).all())


def _bucketize(
    input: Any, boundaries: Tensor, *, out_int32: bool = False, right: bool = False
) -> Tensor:
    return _searchsorted(boundaries, input, out_int32=out_int32, right=right)


def _searchsorted(
    sorted_sequence: Tensor,
    input: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    is_usual = sorter is None and side in (None, "left", "right") and isinstance(input, Tensor)
    if not is_usual or sorted_sequence.dim() != 1:
        given: dict[str, Any] = {"side": side, "sorter": sorter}
        return torch.searchsorted(sorted_sequence, input, out_int32=out_int32, right=right, **given)
    x = input.unsqueeze(-1)
    # A NaN comes behind all.
    behind = torch.gt if right or side == "right" else torch.ge
    return (
        behind(sorted_sequence, x)
        .logical_not()
        .sum(-1, dtype=torch.int32 if out_int32 else torch.int64)
    )


def _count_nonzero(input: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    dims = range(input.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    return input.ne(0).sum(list(dims))


def _cross(input: Tensor, other: Tensor, dim: int | None = None) -> Tensor:
    if dim is None:  # the first axis of three, with a warning
        return torch.cross(input, other)
    return _linalg_cross(input, other, dim=dim)


def _linalg_cross(input: Tensor, other: Tensor, *, dim: int = -1) -> Tensor:
    if input.shape[dim] != 3 or other.shape[dim] != 3:
        raised: Tensor = torch.linalg.cross(input, other, dim=dim)  # an error
        return raised
    input, other = torch.broadcast_tensors(input, other)
    a, b = input.unbind(dim), other.unbind(dim)
    parts = [a[k - 2] * b[k - 1] - a[k - 1] * b[k - 2] for k in range(3)]
    return torch.stack(parts, dim)


def _isin(
    elements: Tensor, test_elements: Any, *, assume_unique: bool = False, invert: bool = False
) -> Tensor:
    if not isinstance(elements, Tensor) or not isinstance(test_elements, Tensor):
        return torch.isin(elements, test_elements, assume_unique=assume_unique, invert=invert)
    found: Tensor = elements.unsqueeze(-1).eq(test_elements.flatten()).any(-1)
    return found.logical_not() if invert else found


def _gaussian_nll_loss(
    input: Tensor,
    target: Tensor,
    var: Any,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    is_usual = isinstance(var, Tensor) and var.shape == input.shape == target.shape
    if reduction != "none" or not is_usual or not eps > 0:
        return F.gaussian_nll_loss(input, target, var, full, eps, reduction)
    if torch.any(var < 0):
        raise ValueError("var has negative entry/entries")
    var = var + (var.clamp(min=eps) - var).detach()
    loss: Tensor = 0.5 * (torch.log(var) + (input - target) ** 2 / var)
    return loss + 0.5 * math.log(2 * math.pi) if full else loss


def _isfinite(input: Tensor) -> Tensor:
    if not input.dtype.is_floating_point:
        return torch.isfinite(input)
    return (input - input).eq(0)


def _interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """Along each axis of an image a product with a matrix, which torch's own function makes."""
    axes = input.dim() - 2
    options: dict[str, Any] = {"align_corners": align_corners, "antialias": antialias, "mode": mode}
    options["recompute_scale_factor"] = recompute_scale_factor
    is_wide = input.dtype in (torch.float32, torch.float64)
    if antialias or not is_wide or axes != _SEPARABLE.get(mode):
        return F.interpolate(input, size, scale_factor, **options)
    sizes, scales = ([v] * axes if isinstance(v, int | float) else v for v in (size, scale_factor))
    for axis in range(axes):
        places = input.shape[2 + axis]
        shape = [places if k == axis else 1 for k in range(axes)]
        one = torch.eye(places, dtype=input.dtype, device=input.device).view(places, 1, *shape)
        given: dict[str, Any] = {
            "size": None
            if sizes is None
            else [sizes[axis] if k == axis else 1 for k in range(axes)],
            "scale_factor": None
            if scales is None
            else [scales[axis] if k == axis else 1.0 for k in range(axes)],
        }
        matrix = F.interpolate(one, **given, **options).flatten(1)
        input = (input.movedim(2 + axis, -1) @ matrix).movedim(-1, 2 + axis)
    return input


def _cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """What torch computes, whose norms are at least `eps` and have their gradients nevertheless."""

    def unit(x: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(x, 2, dim, keepdim=True)
        return x / (norm + (norm.clamp_min(eps) - norm).detach())

    x1, x2 = torch.broadcast_tensors(x1, x2)
    return (unit(x1) * unit(x2)).sum(dim)


_SEPARABLE = {"linear": 1, "bilinear": 2, "bicubic": 2, "trilinear": 3}
"""For modes that treat each axis by itself: how many axes an image has."""

_WRITES_UNSEEN = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13)
"""Whether a write of torch's own into a temporary, past gradients, is seen as a new tensor without one."""

_FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.allclose: _allclose,
    Tensor.allclose: _allclose,
    torch.bucketize: _bucketize,
    torch.searchsorted: _searchsorted,
    torch.count_nonzero: _count_nonzero,
    Tensor.count_nonzero: _count_nonzero,
    torch.cross: _cross,
    Tensor.cross: _cross,
    torch.linalg.cross: _linalg_cross,
    torch.isfinite: _isfinite,
    Tensor.isfinite: _isfinite,
    torch.isin: _isin,
    F.gaussian_nll_loss: _gaussian_nll_loss,
    F.interpolate: _interpolate,
}
if _WRITES_UNSEEN:
    _FUNCTIONS[torch.cosine_similarity] = _cosine_similarity

_FUNCTIONS |= {getattr(torch._VF, name): own for name, own in recurrent_layers.FUNCTIONS.items()}

_NAMES = {function.__name__ for function in _FUNCTIONS}
