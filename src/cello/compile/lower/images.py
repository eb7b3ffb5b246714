"""Operations on images, except convolutions: windows, other sizes, other places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from itertools import product as combinations
from math import prod
from operator import add

from cello.compile.arithmetic import where
from cello.compile.lower.arguments import Result
from cello.compile.lower.axes import DoesNotFit
from cello.compile.lower.rows import Refused, Rows
from cello.compile.lower.views import constant_pad_nd, expand, permute, stack, unsqueeze, view

Sizes = Sequence[int]


def avg_pool(
    axes: int,
    x: Rows,
    kernel_size: Sizes,
    stride: Sizes = (),
    padding: Sizes = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    result: Result,
) -> Rows:
    kernel, sizes = _each(kernel_size, axes), result.shape

    def summed(x: Rows) -> Rows:
        return reduce(add, _windows(x, kernel, stride, padding, (1,), 0.0, sizes))

    if divisor_override is None and not count_include_pad and any(padding):
        return summed(x) / summed(x.full(1.0, x.shape))
    return summed(x) / float(divisor_override or prod(kernel))


def max_pool_with_indices(
    axes: int,
    x: Rows,
    kernel_size: Sizes,
    stride: Sizes = (),
    padding: Sizes = (0,),
    dilation: Sizes = (1,),
    ceil_mode: bool = False,
    *,
    result: Result,
) -> Rows:
    if result.index:
        raise Refused("asks in {op}{line} for the places of extrema")
    kernel, around = _each(kernel_size, axes), float("-inf")
    most, *rest = _windows(x, kernel, stride, padding, dilation, around, result.shape)
    for part in rest:  # the first of equal ones gets the gradient, and NaN is more than any number
        is_more, is_nan = part.apply("gt", part, most), part.apply("ne", part, part)
        most = where(is_more.apply("maximum", is_more, is_nan), part, most)
    return most


def _windows(
    x: Rows,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    number: float,
    shape: Sizes,
) -> Iterator[Rows]:
    """For each place of a window the numbers that are there, as the window moves over the image.

    Args:
        x: the image, whose last axes have the sizes.
        kernel: the sizes of the window.
        stride: how far it moves; by its own size, if there is none.
        padding: how far it begins in front of the image.
        dilation: how far its numbers are apart.
        number: what lies around the image.
        shape: of the result, whose last sizes count.
    """
    axes = len(kernel)
    steps = _each(stride, axes) if stride else kernel
    pads, apart = _each(padding, axes), _each(dilation, axes)
    sizes = shape[-len(kernel) :]
    x = constant_pad_nd(x, [pad for pad in reversed(pads) for _ in range(2)], number)
    for place in combinations(*map(range, kernel)):
        part = x
        for axis, (k, space, step, size) in enumerate(zip(place, apart, steps, sizes, strict=True)):
            dim = x.rank - len(kernel) + axis
            if k * space + (size - 1) * step >= x.shape[dim]:  # a window that reaches beyond
                raise Refused("moves in {op}{line} beyond the image")
            part = part.part(dim, k * space, size, step)
        yield part


def _each(sizes: Sizes, axes: int) -> tuple[int, ...]:
    """A size for each axis of an image, where one may stand for all."""
    return tuple(sizes) if len(sizes) > 1 else tuple(sizes) * axes


def adaptive_avg_pool(x: Rows, output_size: Sizes) -> Rows:
    for dim, size in zip(range(x.rank - len(output_size), x.rank), output_size, strict=True):
        if x.shape[dim] % size:
            raise Refused("divides an image unequally in {op}{line}")
        x = view(x, (*x.shape[:dim], size, x.shape[dim] // size, *x.shape[dim + 1 :]))
        x = x.reduced("sum", dim + 1, False) / float(x.shape[dim + 1])
    return x


def upsample_nearest(
    x: Rows,
    output_size: Sizes,
    first: float | None = None,
    second: float | None = None,
    third: float | None = None,
) -> Rows:
    scales, dims = (first, second, third), range(x.rank - len(output_size), x.rank)
    for dim, size, scale in zip(dims, output_size, scales[: len(dims)], strict=True):
        times = size // x.shape[dim]
        if size % x.shape[dim] or scale not in (None, times):
            raise Refused("repeats the numbers of an image unequally in {op}{line}")
        wide = unsqueeze(x, dim + 1)
        wide = expand(wide, (*x.shape[: dim + 1], times, *x.shape[dim + 1 :]))
        x = view(wide, (*x.shape[:dim], size, *x.shape[dim + 1 :]))
    return x


def pixel_shuffle(x: Rows, upscale_factor: int) -> Rows:
    r = upscale_factor
    *batch, channels, height, width = x.shape
    x = view(x, (*batch, channels // (r * r), r, r, height, width))
    n = len(batch)
    x = permute(x, [*range(n + 1), n + 3, n + 1, n + 4, n + 2])
    return view(x, (*batch, channels // (r * r), height * r, width * r))


def pixel_unshuffle(x: Rows, downscale_factor: int) -> Rows:
    r = downscale_factor
    *batch, channels, height, width = x.shape
    x = view(x, (*batch, channels, height // r, r, width // r, r))
    n = len(batch)
    x = permute(x, [*range(n + 1), n + 2, n + 4, n + 1, n + 3])
    return view(x, (*batch, channels * r * r, height // r, width // r))


def channel_shuffle(x: Rows, groups: int) -> Rows:
    batch, channels, *sizes = x.shape
    x = view(x, (batch, groups, channels // groups, *sizes))
    return view(permute(x, [0, 2, 1, *range(3, x.rank)]), (batch, channels, *sizes))


def im2col(
    x: Rows, kernel_size: Sizes, dilation: Sizes, padding: Sizes, stride: Sizes, *, result: Result
) -> Rows:
    if x.rank != 4:
        raise DoesNotFit
    kernel, pads, apart, steps = (
        _each(given, 2) for given in (kernel_size, padding, dilation, stride)
    )
    sizes = [
        (n + 2 * pad - space * (k - 1) - 1) // step + 1
        for n, pad, space, k, step in zip(x.shape[2:], pads, apart, kernel, steps, strict=True)
    ]
    parts = list(_windows(x, kernel, steps, pads, apart, 0.0, sizes))
    return view(stack(parts, 2), result.shape)


IMAGES: dict[str, Callable[..., Rows]] = {
    **{f"avg_pool{n}d": partial(avg_pool, n) for n in (2, 3)},
    **{f"max_pool{n}d_with_indices": partial(max_pool_with_indices, n) for n in (2, 3)},
    **{f"_adaptive_avg_pool{n}d": adaptive_avg_pool for n in (2, 3)},
    **{f"upsample_nearest{n}d": upsample_nearest for n in (1, 2, 3)},
    **{f"_upsample_nearest_exact{n}d": upsample_nearest for n in (1, 2, 3)},
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
    "im2col": im2col,
}
