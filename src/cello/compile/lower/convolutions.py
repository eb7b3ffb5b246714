"""Convolutions with static weights: products at all places of an image.

The image is laid out with its channels innermost and with its padding. Then the numbers under one row of a
kernel lie next to each other, and those at the next place lie a step further on, so that nothing is copied
for each place. The places between the end of one row of the result and the start of the next are computed
as well, and left out. Groups of few channels are for `planes.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import product as combinations
from math import prod
from operator import add
from typing import Any, NamedTuple

import torch

from cello.compile.instructions import Assemble, Kind, Piece, Ref, Term, strides_of
from cello.compile.lower.axes import BATCH, Axis, DoesNotFit, contiguous_axes
from cello.compile.lower.planes import Kernel, convolved_in_planes
from cello.compile.lower.rows import Refused, Rows, hold_width
from cello.compile.node import Node

MOST_TERMS = 256
"""So many products make one convolution, at most."""

MOST_IN_PLANES = 4
"""So many channels has a group, at most, whose channels are planes of pixels."""

FEWEST_PIXELS = 16
"""A plane of channels in groups has so many pixels, at least: a vector of them."""


class Convolution(NamedTuple):
    """A convolution in any number of dimensions.

    Attributes:
        channels: of the image.
        outputs: channels of the result.
        groups: into which both are divided.
        kernel: the sizes of the kernel.
        stride: from place to place, along each axis.
        padding: zeros in front and behind.
        dilation: how far the numbers of the image under the kernel are apart.
        spread: how far the numbers of the image are apart, with zeros between them.
        behind: more zeros behind the image.
        is_transposed: whether the weight is that of a convolution of which this is the transpose.
    """

    channels: int
    outputs: int
    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    spread: tuple[int, ...]
    behind: tuple[int, ...]
    is_transposed: bool

    @classmethod
    def of(cls, image: Node, given: dict[str, Any]) -> Convolution:
        """The convolution that torch is asked for."""
        weight, groups, transposed = given["weight"], given["groups"], given["transposed"]
        kernel = tuple(weight.shape[2:])

        def each(name: str) -> tuple[int, ...]:
            sizes = tuple(given[name])
            return sizes * len(kernel) if len(sizes) == 1 else sizes

        once, none = (1,) * len(kernel), (0,) * len(kernel)
        padding, dilation = each("padding"), each("dilation")
        if not transposed:
            outputs, stride, spread, behind = weight.shape[0], each("stride"), once, none
        else:
            outputs, stride, spread = weight.shape[1] * groups, once, each("stride")
            behind = each("output_padding")
            sizes = zip(kernel, dilation, padding, strict=True)
            padding = tuple(apart * (size - 1) - pad for size, apart, pad in sizes)
        return cls(
            image.shape[1],
            outputs,
            groups,
            kernel,
            stride,
            padding,
            dilation,
            spread,
            behind,
            transposed,
        )

    @property
    def is_by_channels(self) -> bool:
        """Whether each channel of the result depends on one channel of the image."""
        return self.groups == self.channels

    def padded(self, sizes: Sequence[int]) -> list[int]:
        """The sizes of an image with all zeros."""
        rows = zip(sizes, self.spread, self.padding, self.behind, strict=True)
        return [(n - 1) * spread + 1 + 2 * pad + more for n, spread, pad, more in rows]

    def sizes_of_result(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """The sizes of what an image becomes."""
        rows = zip(self.padded(sizes), self.kernel, self.dilation, self.stride, strict=True)
        return tuple((n - apart * (size - 1) - 1) // step + 1 for n, size, apart, step in rows)

    def arranged(self, weight: Node, channels: range) -> Node:
        """The weight as (kernel..., channels of the image, those of the result), one of both in a group.

        Args:
            weight: as torch has it.
            channels: those of the image that are wanted: all of them, if there are several groups.
        """
        aten, rank = torch.ops.aten, len(self.kernel)
        if len(channels) < self.channels:
            sizes, dim = list(weight.shape), 1 - self.is_transposed
            sizes[dim] = len(channels)
            where = weight, dim, channels.start, channels.stop
            weight = Node(aten.slice.Tensor, where, {}, None, tuple(sizes), weight.dtype)
        order = [*range(2, rank + 2), 0, 1] if self.is_transposed else [*range(2, rank + 2), 1, 0]
        shape = tuple(weight.shape[k] for k in order)
        made = Node(aten.permute.default, (weight, order), {}, None, shape, weight.dtype)
        if self.is_transposed:
            axes = list(range(rank))
            made = Node(aten.flip.default, (made, axes), {}, None, shape, weight.dtype)
        return made


class _Image(NamedTuple):
    """An image with its padding, channels innermost.

    Attributes:
        rows: the numbers, (B, pixels..., channels).
        steps: from pixel to pixel along each axis, in pixels.
        weight: that of its channels.
    """

    rows: Rows
    steps: tuple[int, ...]
    weight: Rows


def convolved(
    x: Rows, weight_of: Callable[[range], Rows], bias: Rows | None, how: Convolution
) -> Rows:
    """Convolve images.

    Args:
        x: axes (B, channels, sizes...).
        weight_of: for some channels the weight, as `Convolution.arranged` makes it.
        bias: (channels of the result), or none.
        how: the convolution.

    Returns:
        Axes (B, channels of the result, sizes...).
    """
    if x.axes[0] != (BATCH,):
        raise DoesNotFit
    crop = [max(0, -pad) for pad in how.padding]
    how = how._replace(padding=tuple(max(0, pad) for pad in how.padding))
    sizes = how.sizes_of_result(x.shape[2:])
    if any(size <= 2 * out for size, out in zip(sizes, crop, strict=True)):
        raise Refused("makes an image without pixels in {op}{line}")
    if _is_in_planes(how, sizes):
        weight = weight_of(range(how.channels))
        made = _by_planes(x, weight, sizes, bias, how)
        for dim, (size, out) in enumerate(zip(sizes, crop, strict=True), 2):
            made = made.part(dim, out, size - 2 * out)
        return made
    parts = [(0, x)] if how.groups > 1 else _parts(x)
    images = [
        _padded(part, weight_of(range(first, first + part.shape[1])), how) for first, part in parts
    ]
    made = (
        _by_channels(images[0], sizes, bias, how)
        if how.is_by_channels
        else _by_products(images, sizes, bias, how)
    )
    for dim, (size, out) in enumerate(zip(sizes, crop, strict=True), 1):
        made = made.part(dim, out, size - 2 * out)
    last = made.rank - 1
    return made.permuted([0, last, *range(1, last)]).copied()


def _parts(x: Rows) -> list[tuple[int, Rows]]:
    """Images whose channels were put together, and the first channel of each.

    Where the input and the state are, as in ``cat([x, h], 1)``, one may need no gradient in the loop.
    """
    maker, pixels = x.build.maker(x.value), prod(x.shape[2:])
    whole = x.offset == 0 and x.axes == contiguous_axes(x.axes)
    if not whole or not isinstance(maker, Assemble) or maker.has_gaps:
        return [(0, x)]
    parts = []
    for piece in sorted(maker.pieces, key=lambda piece: piece.offset):
        is_plain = piece.is_range and piece.source.strides == strides_of(piece.shape)
        if not is_plain or piece.offset % pixels or prod(piece.shape) % pixels:
            return [(0, x)]
        axes = ((BATCH,), _axis(prod(piece.shape) // pixels, 1), *x.axes[2:])
        part = Rows(
            piece.source.value, piece.source.offset, contiguous_axes(axes), x.build, x.batch
        )
        parts.append((piece.offset // pixels, part))
    return parts


def _padded(x: Rows, weight: Rows, how: Convolution) -> _Image:
    """Lay an image out with zeros around it, and between its numbers."""
    for dim in range(1, x.rank):
        x, _, _ = x.with_one_factor(dim)
    strides = [axis[0][1] if axis else 0 for axis in x.axes[1:]]
    channels, *sizes = x.shape[1:]
    padded = how.padded(sizes)
    padded[-1] += -padded[-1] % how.stride[-1]  # so that each row begins at a place of the last one
    steps = strides_of(tuple(padded))
    width = prod(padded) * channels
    hold_width((width,))
    piece = Piece(
        (*sizes, channels),
        Ref(x.value, x.offset, (*strides[1:], strides[0])),
        sum(pad * step for pad, step in zip(how.padding, steps, strict=True)) * channels,
        (*(step * spread * channels for step, spread in zip(steps, how.spread, strict=True)), 1),
    )
    value = x.build.assemble(width, [piece])
    axes: list[Axis] = [(BATCH,), *(_axis(n, 0) for n in (*padded, channels))]
    laid_out = Rows(value, 0, contiguous_axes(axes), x.build, x.batch)
    return _Image(laid_out, steps, weight)


def _by_products(
    images: list[_Image], sizes: tuple[int, ...], bias: Rows | None, how: Convolution
) -> Rows:
    """Multiply the numbers under each row of the kernel, one row of it after the other."""
    rows, steps, last = images[0].rows, images[0].steps, how.stride[-1]
    grid = tuple(stride * step // last for stride, step in zip(how.stride, steps, strict=True))
    places = sum((n - 1) * step for n, step in zip(sizes, grid, strict=True)) + 1
    hold_width((places, how.outputs))
    terms = [term for image in images for term in _terms(image, how)]
    _hold_count(len(terms))
    is_vector = bias is not None and bias.value.kind is Kind.STATIC
    biases = [Ref(bias.value, bias.offset, (1,))] if bias is not None and is_vector else []
    value = rows.build.product(places * how.outputs, terms, biases, places)
    axes = [_axis(n, step * how.outputs) for n, step in zip(sizes, grid, strict=True)]
    channels = _axis(how.outputs, 1)
    made = Rows(value, 0, ((BATCH,), *axes, channels), rows.build, rows.batch)
    return made if bias is None or is_vector else made + bias


def _terms(image: _Image, how: Convolution) -> Iterator[Term]:
    """The products with an image, whose result has the channels innermost."""
    channels, weight = image.rows.shape[-1], image.weight
    inner, outer = channels // how.groups, how.outputs // how.groups
    # Of the weight: from one channel of the image to the next, and from one tap of the kernel to the next.
    k_stride, tap = how.outputs, inner * how.outputs
    if how.is_transposed:
        k_stride, tap = outer, channels * outer
    # A row of the kernel is one product where its numbers lie side by side.
    at_once = how.kernel[-1] if how.groups == how.dilation[-1] == 1 else 1
    kernel = (*how.kernel[:-1], how.kernel[-1] // at_once)
    K = at_once * inner
    row_step = how.stride[-1] * channels
    for number, place in enumerate(combinations(*map(range, kernel))):
        moves = zip(place, how.dilation, image.steps, strict=True)
        pixel = sum(i * apart * step for i, apart, step in moves)
        for group in range(how.groups):
            offset = image.rows.offset + pixel * channels + group * inner
            w_offset = weight.offset + number * at_once * tap
            w_offset += group * (inner * outer if how.is_transposed else outer)
            where = weight.value, w_offset, k_stride, 1, outer, group * outer, row_step
            yield Term(image.rows.value, offset, K, *where)


def _by_channels(
    image: _Image, sizes: tuple[int, ...], bias: Rows | None, how: Convolution
) -> Rows:
    """Add up the numbers under the kernel, times those of the kernel, channel by channel."""
    rows, count = image.rows, how.outputs // how.channels
    _hold_count(prod(how.kernel))
    moves = zip(sizes, how.stride, image.steps, strict=True)
    axes = [_axis(n, stride * step * how.channels) for n, stride, step in moves]
    own = _axis(how.channels, count), _axis(count, 1)
    parts = []
    for number, place in enumerate(combinations(*map(range, how.kernel))):
        pixel = sum(i * a * s for i, a, s in zip(place, how.dilation, image.steps, strict=True))
        under = rows.with_axes(((BATCH,), *axes, _axis(how.channels, 1), ()), pixel * how.channels)
        parts.append(under * image.weight.with_axes(own, number * how.outputs))
    total = reduce(add, parts)
    flat = total.with_axes((*total.axes[:-2], (*total.axes[-2], *total.axes[-1])))
    return flat if bias is None else flat + bias


def _is_in_planes(how: Convolution, sizes: tuple[int, ...]) -> bool:
    """Whether a convolution takes less time with its vectors along the pixels."""
    inputs, outputs = how.channels // how.groups, how.outputs // how.groups
    reach = [apart * (size - 1) for size, apart in zip(how.kernel, how.dilation, strict=True)]
    return (
        how.groups > 1
        and max(inputs, outputs) <= MOST_IN_PLANES
        and max(inputs, outputs) * prod(how.kernel[:-1]) <= MOST_TERMS
        and prod(how.kernel) > 1
        and prod(sizes) >= FEWEST_PIXELS
        and {1} == {*how.stride, *how.spread}
        and not any(how.behind)
        and all(pad <= most for pad, most in zip(how.padding, reach, strict=True))
    )


def _by_planes(
    x: Rows, weight: Rows, sizes: tuple[int, ...], bias: Rows | None, how: Convolution
) -> Rows:
    """Add up what lies under the kernel for all pixels at once."""
    inner, outer = how.channels // how.groups, how.outputs // how.groups
    *taps, first, second = strides_of((*how.kernel, inner, how.outputs))
    strides = outer, second, first, *taps
    if how.is_transposed:
        *taps, first, second = strides_of((*how.kernel, how.channels, outer))
        strides = inner * first, second, first, *taps
    ref = Ref(weight.value, weight.offset, strides)
    kernel = Kernel(ref, how.groups, outer, inner, how.kernel, how.dilation)
    is_vector = bias is not None and bias.value.kind is Kind.STATIC
    vector = Ref(bias.value, bias.offset, (1,)) if bias is not None and is_vector else None
    made = convolved_in_planes(x, kernel, vector, how.padding, sizes)
    if bias is None or is_vector:
        return made
    return made + bias.with_axes((*bias.axes, *((),) * len(sizes)))


def _hold_count(products: int) -> None:
    """Refuse a convolution of many products: of many groups, or with a large kernel."""
    if products > MOST_TERMS:
        raise Refused(f"takes {products} products for {{op}}{{line}}, more than {MOST_TERMS}")


def _axis(size: int, stride: int) -> Axis:
    return ((size, stride),) if size > 1 else ()
