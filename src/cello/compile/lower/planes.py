"""Convolutions in groups of few channels: sums of planes of pixels that are moved against each other.

A product of a few channels would leave most of a vector of the machine empty. Here vectors lie along the
pixels: the image keeps torch's order, with zeros around each plane, and a row of the kernel is a sum over
its numbers for all pixels at once. The gradients are sums of the same kind, written as a rule: that of the
image is a convolution with the kernel turned around, and that of the weight a sum over pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import product as combinations
from math import prod
from typing import NamedTuple

from cello.compile.build import Builder
from cello.compile.instructions import Given, Kind, Piece, Ref, Rule, Value, strides_of
from cello.compile.lower.rows import Rows, hold_width


class Kernel(NamedTuple):
    """The weight of a convolution with a stride of 1.

    Attributes:
        weight: (groups, outputs, inputs, sizes...).
        groups: of channels.
        outputs: channels of the result in a group.
        inputs: channels of the image in a group.
        sizes: of the kernel.
        dilation: how far the numbers of the image under the kernel are apart.
    """

    weight: Ref
    groups: int
    outputs: int
    inputs: int
    sizes: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """How far the last number under the kernel is from the first one, along each axis."""
        sizes = zip(self.sizes, self.dilation, strict=True)
        return tuple(apart * (size - 1) for size, apart in sizes)

    def turned(self) -> Kernel:
        """The kernel with which the gradient of the image is a convolution of that of the result."""
        group, outer, inner, *taps = self.weight.strides
        last = sum((n - 1) * step for n, step in zip(self.sizes, taps, strict=True))
        strides = group, inner, outer, *(-step for step in taps)
        weight = Ref(self.weight.value, self.weight.offset + last, strides)
        return self._replace(weight=weight, outputs=self.inputs, inputs=self.outputs)


def convolved_in_planes(
    x: Rows, kernel: Kernel, bias: Ref | None, padding: Sequence[int], sizes: Sequence[int]
) -> Rows:
    """Convolve images.

    Args:
        x: axes (B, channels, sizes...).
        kernel: the weight.
        bias: a static vector, or none.
        padding: zeros in front and behind, not more than the kernel reaches.
        sizes: those of the result.

    Returns:
        Axes (B, channels of the result, sizes...).
    """
    for dim in range(1, x.rank):
        x, _, _ = x.with_one_factor(dim)
    build, made = x.build, (kernel.groups * kernel.outputs, *sizes)
    image = x.shape[1:]
    ref = Ref(x.value, x.offset, tuple(axis[0][1] if axis else 0 for axis in x.axes[1:]))
    behind = [reach - pad for reach, pad in zip(kernel.reach, padding, strict=True)]
    # Both the image and the gradient of the result have room for their zeros.
    around = zip(image[1:], padding, kernel.reach, strict=True)
    room = tuple(n + max(2 * pad, reach) for n, pad, reach in around)
    hold_width((max(image[0], made[0]), *room))

    planes = _laid_out(build, ref, image, padding, room)
    result = _summed(build, planes, kernel, room, sizes, bias)
    rule = Rule(Value(Kind.COMPUTED, prod(made)))
    asked = Ref(rule.asked, 0, strides_of(made))
    body, build.body = build.body, rule.body
    gradient = _laid_out(build, asked, made, behind, room)
    of_image = _summed(build, gradient, kernel.turned(), room, image[1:], None)
    of_weight = _over_pixels(build, gradient, planes, kernel, behind, room, sizes)
    build.body = body
    rule.given.append(Given(image, ref, of_image))
    rule.given.append(Given(of_weight[0], kernel.weight, of_weight[1]))
    if bias is not None:
        spread = bias._replace(strides=(1, *(0 for _ in sizes)))
        rule.given.append(Given(made, spread, asked))
    ref = build.ruled(made, result, rule)
    axes = [
        ((size, step),) if size > 1 else () for size, step in zip(made, ref.strides, strict=True)
    ]
    return Rows(ref.value, ref.offset, (x.axes[0], *axes), build, x.batch)


def _laid_out(
    build: Builder, ref: Ref, shape: Sequence[int], padding: Sequence[int], room: Sequence[int]
) -> Value:
    """Put planes into larger ones, with zeros around them."""
    strides = strides_of((shape[0], *room))
    offset = sum(pad * step for pad, step in zip(padding, strides[1:], strict=True))
    return build.assemble(shape[0] * prod(room), [Piece(tuple(shape), ref, offset, strides)])


def _run(room: Sequence[int], sizes: Sequence[int]) -> int:
    """How far the pixels of a plane reach in a larger one."""
    steps = strides_of(tuple(room))
    return sum((n - 1) * step for n, step in zip(sizes, steps, strict=True)) + 1


def _summed(
    build: Builder,
    planes: Value,
    kernel: Kernel,
    room: Sequence[int],
    sizes: Sequence[int],
    bias: Ref | None,
) -> Ref:
    """The sums under the kernel, (channels, sizes...).

    What lies between the end of one row of pixels and the start of the next is summed up as well, and left
    out.
    """
    steps, plane, run = strides_of(tuple(room)), prod(room), _run(room, sizes)
    (*outer, last), (*apart, last_apart) = kernel.sizes, kernel.dilation
    group, out, inner, *taps, tap = kernel.weight.strides
    shape = kernel.groups, kernel.outputs, run, last
    parts = []
    for channel, *place in combinations(range(kernel.inputs), *map(range, outer)):
        moves = zip(place, apart, steps[:-1], strict=True)
        moved = channel * plane + sum(i * space * step for i, space, step in moves)
        offset = channel * inner + sum(i * step for i, step in zip(place, taps, strict=True))
        under = Ref(planes, moved, (kernel.inputs * plane, 0, 1, last_apart))
        weight = kernel.weight._replace(
            offset=kernel.weight.offset + offset, strides=(group, out, 0, tap)
        )
        parts.append(build.reduce("dot", shape, under, weight))
    made = kernel.groups * kernel.outputs, *sizes
    seen = run, *steps  # as the pixels of a result are seen in its run

    def add(a: Ref, b: Ref) -> Ref:
        return build.pointwise("add", shape[:-1], a, b)

    if bias is not None:
        total = reduce(add, parts)._replace(strides=seen)
        return build.pointwise("add", made, total, bias._replace(strides=(1, *(0 for _ in sizes))))
    *first, final = parts
    final = final._replace(strides=seen)
    if not first:
        return final
    return build.pointwise("add", made, reduce(add, first)._replace(strides=seen), final)


def _over_pixels(
    build: Builder,
    gradient: Value,
    planes: Value,
    kernel: Kernel,
    behind: Sequence[int],
    room: Sequence[int],
    sizes: Sequence[int],
) -> tuple[tuple[int, ...], Ref]:
    """The gradient of the weight, and its shape: sums over all pixels of a row."""
    steps, plane = strides_of(tuple(room)), prod(room)
    shape = kernel.groups, kernel.outputs, kernel.inputs, *kernel.sizes
    still = (0,) * len(kernel.sizes)
    first = sum(pad * step for pad, step in zip(behind, steps, strict=True))
    result = Ref(gradient, first, (kernel.outputs * plane, plane, 0, *still, 1))
    moves = [space * step for space, step in zip(kernel.dilation, steps, strict=True)]
    image = Ref(planes, 0, (kernel.inputs * plane, 0, plane, *moves, 1))
    return shape, build.reduce("dot", (*shape, _run(room, sizes)), result, image)
