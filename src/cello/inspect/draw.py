"""Draws a layer unrolled over time, layers and directions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cello.inspect.pictures import finish
from cello.inspect.shapes import Place, Shape, Shapes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, PAPER = "#1a202c", "#718096", "#edf2f7"
FORWARD, BACKWARD = "#2b6cb0", "#c05621"
OUTPUT = "#2f855a"
STATES = ("#6b46c1", "#b83280", "#0987a0", "#975a16")
"""Colours of the parts of the state: h, c, ..."""

COLUMN = 1.9
"""The distance between two steps, in inches."""
WIDTH, HEIGHT = 0.78, 0.52
"""The size of a cell."""
TAG = 0.78
"""The width of a tag at the end of a row."""
SHIFT = 0.45
"""The offset of the two directions to the left and the right of a step."""
MOST = 6
"""More steps than this are abbreviated."""


def draw_shapes(title: str, shapes: Shapes, path: str | Path | None = None) -> Figure:
    """Draw a layer unrolled; see :meth:`cello.Explanation.draw`."""
    from matplotlib.figure import Figure

    picture = _Picture(shapes)
    figure = Figure(figsize=(picture.right - picture.left, picture.top - picture.bottom))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(picture.left, picture.right), ylim=(picture.bottom, picture.top))
    axes.axis("off")
    picture.draw(axes, title)
    return finish(figure, path, dpi=150)


class _Picture:
    """The positions of all parts of a picture, in inches."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        steps = shapes.letters.get("T", 1)
        whole = steps <= MOST
        # None marks omitted steps.
        self.steps: list[int | None] = [*range(steps)] if whole else [0, 1, 2, None, steps - 1]
        self.last = steps - 1
        self.two = shapes.letters["D"] == 2
        self.layers = shapes.letters["L"]
        self.story = (3.15 if self.two else 2.0) + 0.05 * max(0, len(shapes.names) - 2)
        notes = [_weights(shapes, place) for place in shapes.places]
        longest = max((len(line) for lines in notes for line in lines), default=0)
        # Tags of both directions are stacked, and do not overlap the lines between the layers.
        outer = (SHIFT if self.two else 0) + WIDTH / 2 + 0.35 + TAG / 2
        self.first_tag, self.last_tag = -outer, (len(self.steps) - 1) * COLUMN + outer
        self.left = self.first_tag - TAG / 2 - 0.5 - max(1.5, 0.0645 * longest)
        self.right = self.last_tag + TAG / 2 + 0.3
        self.bottom = -0.95 - 0.24 * len(self.legend())
        self.top = self.join(self.layers - 1) + 1.45
        needed = 0.082 * max(len(text) for _, text in self.legend()) + 0.8
        self.right = max(self.right, self.left + needed)

    def x(self, column: int, direction: int) -> float:
        """Return the x position of a cell: the directions are left and right of the step."""
        return column * COLUMN + ((SHIFT if direction else -SHIFT) if self.two else 0)

    def y(self, layer: int, direction: int) -> float:
        return 0.9 + layer * self.story + (1.0 if direction else 0)

    def join(self, layer: int) -> float:
        """Return the height at which the outputs of a layer leave it."""
        return self.y(layer, int(self.two)) + 0.85

    def draw(self, axes: Axes, title: str) -> None:
        shapes = self.shapes
        axes.text(self.left + 0.3, self.top - 0.3, title, size=14, weight="bold", color=INK)
        axes.text(self.left + 0.3, self.top - 0.58, shapes.legend, size=9, color=QUIET)
        for column, step in enumerate(self.steps):
            x = column * COLUMN
            if step is None:
                for height in (0.0, self.join(self.layers - 1) + 0.42):
                    axes.text(x, height, "…", size=16, color=QUIET, ha="center", va="center")
                continue
            _tag(axes, x, 0, f"input{self.at(step)}", INK, "white", width=1.25)
            self._column(axes, column, step)
        for number, place in enumerate(shapes.places):
            self._row(axes, place, number % shapes.letters["D"])
        for layer in range(self.layers - 1):
            if shapes.dropout:
                axes.text(self.left + 0.3, self.join(layer), f"dropout {shapes.dropout:g} in training",
                          size=9, color=QUIET, va="center")  # fmt: skip
        for k, (colour, text) in enumerate(self.legend()):
            y = -0.85 - 0.24 * k
            if colour:
                _tag(axes, self.left + 0.42, y, "", colour, colour, width=0.24, height=0.13)
            axes.text(
                self.left + 0.66, y, text, size=9.5, color=INK, va="center", family="monospace"
            )

    def at(self, step: int) -> str:
        """Return the index of a step for the caller: its number, or -1 for the last step."""
        letters = self.shapes.inputs[0].letters
        index = "-1" if step == self.last and step > 0 else str(step)
        if letters[0] == "N":
            return f", step {step}"
        return f"[:, {index}]" if letters[:2] == ("B", "T") else f"[{index}]"

    def legend(self) -> list[tuple[str, str]]:
        """Return the lines below the picture, each with a colour."""
        shapes = self.shapes
        lines = [
            ("", _line(shape)) for shape in shapes.inputs if shape.name in ("input", "lengths")
        ]
        for shape in shapes.outputs:
            part = next(
                (k for k, n in enumerate(shapes.names) if shape.name.partition("[")[0] == f"{n}_n"),
                None,
            )
            if shape.name == "output":
                lines.append((OUTPUT, _line(shape)))
            elif part is not None:
                lines.append((_colour(part), _line(shape)))
        if any("own" in place.after for place in shapes.places):
            lines.append(
                ("", "a sequence ends at its own last step: its final state is taken there")
            )
        first = shapes.names[0]
        for place in shapes.places:
            if place.output:
                lines.append(("", f"{first}_n{place.index} equals {place.output}"))
        return lines

    def _column(self, axes: Axes, column: int, step: int) -> None:
        """Draw the cells of one step and the lines between them, from the input up to the output."""
        x = column * COLUMN
        for layer in range(self.layers):
            start = 0.17 if layer == 0 else self.join(layer - 1) + 0.15 * (1 if self.two else -1)
            end = self.join(layer)
            for direction in range(1 + self.two):
                place = self.shapes.places[layer * (1 + self.two) + direction]
                cx, cy = self.x(column, direction), self.y(layer, direction)
                colour = BACKWARD if place.direction else FORWARD
                low = self.y(layer, 0) - HEIGHT / 2 - 0.22
                if self.two:  # up, to the side of the direction, up again
                    _line_through(
                        axes, [(x, start), (x, low), (cx, low), (cx, cy - HEIGHT / 2)], QUIET
                    )
                else:
                    _line_through(axes, [(x, start), (x, cy - HEIGHT / 2)], QUIET)
                _tag(axes, cx, cy, place.cell, colour, colour, width=WIDTH, height=HEIGHT, size=9)
                top = cy + HEIGHT / 2
                is_last = layer == self.layers - 1
                if self.two and not (is_last and self.shapes.merge == "none"):
                    side = -0.2 if direction == 0 else 0.2
                    _line_through(
                        axes, [(cx, top), (cx, end - 0.32), (x + side, end - 0.32), (x + side, end - 0.15)],
                        OUTPUT if is_last else QUIET,
                    )  # fmt: skip
                elif is_last:
                    _line_through(axes, [(cx, top), (cx, end + 0.25)], OUTPUT)
                else:
                    _line_through(axes, [(cx, top), (cx, end - 0.15)], QUIET, head=False)
            if self.two and not (layer == self.layers - 1 and self.shapes.merge == "none"):
                merge = "concat" if self.shapes.merge == "none" else self.shapes.merge
                _tag(axes, x, end, merge, QUIET, "white", width=0.72, size=8.5)
        end = self.join(self.layers - 1)
        if self.two and self.shapes.merge == "none":
            for direction in range(2):
                _tag(axes, self.x(column, direction), end + 0.42, f"output[{direction}]{self.at(step)}",
                     OUTPUT, OUTPUT, width=0.88, size=6.5)  # fmt: skip
            return
        if self.two:
            _line_through(axes, [(x, end + 0.15), (x, end + 0.25)], OUTPUT)
        _tag(axes, x, end + 0.42, f"output{self.at(step)}", OUTPUT, OUTPUT, width=1.25)

    def _row(self, axes: Axes, place: Place, direction: int) -> None:
        """Draw the states of one direction of one layer, from its first step to its last."""
        y = self.y(place.layer, direction)
        colour = BACKWARD if place.direction else FORWARD
        sign = -1 if place.direction else 1
        columns = list(range(len(self.steps)))[::sign]
        names = self.shapes.names
        # One line for each part of the state, if there is room.
        spread = min(0.3, 0.42 / max(1, len(names) - 1)) if len(names) > 1 else 0.0
        for part, name in enumerate(names):
            dy = spread * ((len(names) - 1) / 2 - part)
            size = 8 if len(names) <= 2 else 6.5
            height = min(0.24, spread * 0.85) if len(names) > 1 else 0.24
            start, end = (self.first_tag, self.last_tag)[::sign]
            _tag(axes, start, y + dy, f"{name}_0{place.index}", _colour(part), "white",
                 width=TAG, height=height, size=size)  # fmt: skip
            _tag(axes, end, y + dy, f"{name}_n{place.index}", _colour(part), _colour(part),
                 width=TAG, height=height, size=size)  # fmt: skip
            stops = [start + sign * TAG / 2]
            for column in columns:
                x = self.x(column, direction)
                half = WIDTH / 2 if self.steps[column] is not None else 0.18
                stops += [x - sign * half, x + sign * half]
            stops.append(end - sign * TAG / 2)
            for a, b in zip(stops[::2], stops[1::2], strict=True):
                _line_through(axes, [(a, y + dy), (b, y + dy)], _colour(part))
        for column in columns:
            if self.steps[column] is None:
                axes.text(self.x(column, direction), y, "…", size=16, color=colour,
                          ha="center", va="center")  # fmt: skip
        lines = _weights(self.shapes, place)
        axes.text(self.left + 0.3, y + 0.1 * len(lines), f"layer {place.layer}, {place.reading}",
                  size=10, weight="bold", color=colour, va="bottom")  # fmt: skip
        for k, line in enumerate(lines):
            axes.text(self.left + 0.3, y + 0.1 * len(lines) - 0.1 - 0.17 * k, line, size=7.5,
                      color=INK, va="center", family="monospace")  # fmt: skip


def _colour(part: int) -> str:
    return STATES[part % len(STATES)]


def _line(shape: Shape) -> str:
    return f"{shape.name} {shape.text}" + (f": {shape.meaning}" if shape.meaning else "")


def _weights(shapes: Shapes, place: Place) -> list[str]:
    """Return the weights of one direction of a layer, as many as there is room for."""
    own = [
        shape
        for shape in shapes.weights
        if shape.name.startswith(f"cells.{place.suffix}.")
        or (shape.name.endswith(f"_{place.suffix}") and not shape.name.startswith("cells."))
    ]
    lines = [f"{s.name.removeprefix(f'cells.{place.suffix}.')} {s.text}" for s in own]
    return lines if len(lines) <= 5 else [*lines[:4], f"... {len(lines) - 4} more"]


def _tag(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    edge: str,
    face: str,
    *,
    width: float,
    height: float = 0.3,
    size: float = 9,
) -> None:
    """Draw a box with a text, centred on (x, y)."""
    from matplotlib.patches import FancyBboxPatch

    radius = min(0.08, height / 3)
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle=f"round,pad=0,rounding_size={radius}",
            fc=face,
            ec=edge,
            lw=1,
            zorder=3,
        )
    )
    room = width / max(1, len(text)) * 72 / 0.62  # the width of a letter is about 0.6 of its size
    ink = edge if face == "white" else "white"
    axes.text(x, y, text, size=min(size, room), color=ink, ha="center", va="center", zorder=4)


def _line_through(
    axes: Axes, points: list[tuple[float, float]], colour: str, head: bool = True
) -> None:
    """Draw a line through points, with an arrow at its end."""
    xs, ys = zip(*points, strict=True)
    axes.plot(xs[:-1] if head else xs, ys[:-1] if head else ys, color=colour, lw=1.1, zorder=1,
              solid_joinstyle="round")  # fmt: skip
    if head:
        style = {"arrowstyle": "-|>", "color": colour, "lw": 1.1, "shrinkA": 0, "shrinkB": 0,
                 "mutation_scale": 9}  # fmt: skip
        axes.annotate("", points[-1], points[-2], arrowprops=style, zorder=2)
