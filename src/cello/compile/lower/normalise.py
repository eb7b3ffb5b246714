"""Layers that normalise their features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cello.compile.arithmetic import rsqrt
from cello.compile.lower.arguments import Result, hold_first
from cello.compile.lower.axes import BATCH, DoesNotFit
from cello.compile.lower.reductions import mean
from cello.compile.lower.rows import Refused, Rows
from cello.compile.lower.views import view


def layer_norm(
    x: Rows,
    shape: Sequence[int],
    weight: Rows | None,
    bias: Rows | None,
    eps: float,
    *,
    result: Result,
) -> Rows:
    hold_first(result)
    return _affine(_normalised(x, range(-len(shape), 0), eps), weight, bias)


def _normalised(x: Rows, dims: Sequence[int], eps: float) -> Rows:
    """Take off the mean and divide by the deviation."""
    centred = x - mean(x, dims, True)
    return centred * rsqrt(mean(centred * centred, dims, True) + eps)


def _affine(x: Rows, weight: Rows | None, bias: Rows | None) -> Rows:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def group_norm(
    x: Rows,
    weight: Rows | None,
    bias: Rows | None,
    N: int,
    C: int,
    HxW: int,
    groups: int,
    eps: float,
    *,
    result: Result,
) -> Rows:
    hold_first(result)
    if BATCH not in x.axes[0]:
        raise DoesNotFit
    grouped = view(x, [x.shape[0], groups, C // groups * HxW])
    out = view(_normalised(grouped, [2], eps), x.shape)
    return _affine(out, _for_channels(weight, x), _for_channels(bias, x))


def _for_channels(vector: Rows | None, x: Rows) -> Rows | None:
    """A number for each channel, which are the second axis."""
    return None if vector is None else vector.with_axes((*vector.axes, *((),) * (x.rank - 2)))


def batch_norm(
    x: Rows,
    weight: Rows | None,
    bias: Rows | None,
    mean: Rows | None,
    variance: Rows | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Rows:
    if training and x.rank > 1 and BATCH in x.axes[1]:  # an instance norm: rows are channels
        dims = [0, *range(2, x.rank)]
        out = _normalised(x, dims, eps)
        return _affine(out, _for_channels(weight, x), _for_channels(bias, x))
    centre, scale = _for_channels(mean, x), _for_channels(variance, x)
    if training or centre is None or scale is None:
        raise Refused(
            "normalises over the batch{line}, which mixes its rows; in evaluation mode, or with an "
            "instance, layer or group norm, it compiles"
        )
    scale = rsqrt(scale + eps)
    out = (x - centre) * scale
    return _affine(out, _for_channels(weight, x), _for_channels(bias, x))


NORMALISATIONS: dict[str, Callable[..., Rows]] = {
    "native_layer_norm": layer_norm,
    "native_group_norm": group_norm,
    "native_batch_norm": batch_norm,
}
