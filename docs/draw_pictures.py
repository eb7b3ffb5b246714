"""Draw the pictures of the documentation: `python docs/draw_pictures.py`.

Those of the guide are what its pages save when they run.
"""

import contextlib
import os
import re
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

import cello

HERE = Path(__file__).resolve().parent / "pictures"
FORWARD, BACKWARD, INK, QUIET = "#2b6cb0", "#c05621", "#1a202c", "#718096"
STATIC, AHEAD, DEFERRED = "#6b46c1", "#2f855a", "#b7791f"

CELL = """class Cell(nn.Module):

    def forward(self, x, state):
        h, c = state
        i, f, g, o = self.gates(x, h)
        c = f * c + i * g
        h = o * hardtanh(c)
        return h, c"""


def box(axes: Axes, x: float, y: float, colour: str) -> None:
    """Draw a cell centred on (x, y)."""
    shape = FancyBboxPatch(
        (x - 0.3, y - 0.16), 0.6, 0.32, boxstyle="round,pad=0.02", fc=colour, ec="none"
    )
    axes.add_patch(shape)
    axes.text(x, y, "cell", color="white", ha="center", va="center", fontsize=9)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    """Draw an arrow between two points."""
    style = {"arrowstyle": "-|>", "color": colour, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style)


def panels(
    size: tuple[float, float], right: float, titles: tuple[str, str]
) -> tuple[Figure, Axes, Axes]:
    """Return a figure with two titled panels, of which the right one is so many times as wide."""
    figure, pair = plt.subplots(1, 2, figsize=size, width_ratios=[1, right], layout="constrained")
    for axes, title in zip(pair, titles, strict=True):
        axes.axis("off")
        axes.set_title(title, color=INK, loc="left", fontsize=13)
    return figure, *pair


def draw_idea(path: Path) -> None:
    """Draw one cell as text and, beside it, two layers of it in both directions over time."""
    titles = "You write the cell", "Cello runs the loop"
    figure, left, right = panels((11, 4.2), 2, titles)
    left.text(0, 0.86, CELL, family="monospace", fontsize=10, va="top", color=INK)
    left.set(xlim=(0, 1), ylim=(0, 1))
    left.text(
        0, 0.3, 'cello.Recurrent(make_cell, input_size=28,\n    num_layers=2, bidirectional=True)',
        family="monospace", fontsize=9, color=QUIET,
    )  # fmt: skip

    steps, rows = 5, {(0, 0): 1.0, (0, 1): 1.5, (1, 0): 2.8, (1, 1): 3.3}
    for (_, direction), y in rows.items():
        colour = BACKWARD if direction else FORWARD
        for t in range(steps):
            box(right, t, y, colour)
            if t + 1 < steps:
                ends = ((t + 0.33, y), (t + 0.67, y))
                arrow(right, *(ends[::-1] if direction else ends), colour)
    for t in range(steps):
        arrow(right, (t, 0.42), (t, 0.8), QUIET)
        right.text(t, 0.25, f"$x_{t}$", ha="center", color=INK)
        arrow(right, (t, 1.7), (t, 2.6), QUIET)
        arrow(right, (t, 3.5), (t, 3.9), QUIET)
        right.text(t, 4.0, f"output[{t}]", ha="center", color=INK, fontsize=9)
    right.text(-1.0, 1.25, "layer 0", ha="center", va="center", color=QUIET)
    right.text(-1.0, 3.05, "layer 1", ha="center", va="center", color=QUIET)
    right.text(2, 2.15, " merge the directions, drop out ", ha="center", va="center",
               color=QUIET, fontsize=9, backgroundcolor="white")  # fmt: skip
    for (layer, direction), y in rows.items():
        x, side = (-0.38, "right") if direction else (steps - 0.62, "left")
        name = f"$h_n[{2 * layer + direction}]$"
        right.text(x, y, name, ha=side, va="center", fontsize=9,
                   color=BACKWARD if direction else FORWARD)  # fmt: skip
    right.set(xlim=(-1.4, steps), ylim=(0.1, 4.3))
    figure.savefig(path, dpi=130)


STEP = [
    ("def forward(self, x, h):", INK),
    ("    e = self.table(x[:, 0])", AHEAD),
    ("    w = self.h.weight  # weight norm", STATIC),
    ("    a = self.x(e) + F.linear(h, w)", FORWARD),
    ("    gate, new = a.chunk(2, dim=-1)", FORWARD),
    ("    gate = torch.sigmoid(gate)", FORWARD),
    ("    new = torch.tanh(new)", FORWARD),
    ("    return torch.lerp(new, h, gate)", FORWARD),
]
"""One step, each line in the colour of its class."""


def bar(axes: Axes, x: float, y: float, width: float, text: str, colour: str) -> None:
    """Draw a bar from (x, y) on, with a text in it."""
    shape = FancyBboxPatch(
        (x, y - 0.2), width, 0.4, boxstyle="round,pad=0.02", fc=colour, ec="none"
    )
    axes.add_patch(shape)
    axes.text(x + width / 2, y, text, color="white", ha="center", va="center", fontsize=9)


def draw_classes(path: Path) -> None:
    """Draw what is done once, for all steps, at each step, and behind the loop."""
    titles = "One step", "One call, with its backward pass"
    figure, left, right = panels((12, 4.4), 2.1, titles)
    for number, (line, colour) in enumerate(STEP):
        left.text(0, 0.9 - 0.085 * number, line, family="monospace", fontsize=9.5, color=colour)
    left.set(xlim=(0, 1), ylim=(0, 1))

    steps, first = 5, 1.6
    end = first + steps - 0.2
    bar(right, 0, 3.3, 1.0, "loop-invariant", STATIC)
    bar(right, first, 4.2, end - first, "from the input, for all steps at once", AHEAD)
    for row, y in (("forward", 3.3), ("backward", 1.9)):
        colour = FORWARD if row == "forward" else BACKWARD
        for t in range(steps):
            bar(right, first + t, y, 0.8, f"step {t}", colour)
            if t:
                ends = ((first + t - 0.17, y), (first + t - 0.03, y))
                arrow(right, *(ends if row == "forward" else ends[::-1]), colour)
    for t in range(steps):
        x = first + t + 0.4
        arrow(right, (x, 3.95), (x, 3.55), AHEAD)
        arrow(right, (x, 3.05), (x, 2.15), QUIET)
        arrow(right, (x, 1.65), (x, 1.25), BACKWARD)
    right.text(first + 2.4, 2.6, " values saved for the gradient ", ha="center", va="center",
               color=QUIET, fontsize=9, backgroundcolor="white")  # fmt: skip
    bar(right, first, 1.0, end - first, "weight gradients, for many steps at once", DEFERRED)
    arrow(right, (1.05, 3.3), (first - 0.05, 3.3), STATIC)
    labels = {4.2: "hoisted", 3.3: "the loop", 1.9: "the loop,\nbackward", 1.0: "deferred"}
    for y, text in labels.items():
        right.text(end + 0.25, y, text, va="center", color=INK, fontsize=10)
    right.text(0.5, 2.9, "once per call,\nin torch", ha="center", va="top", color=INK, fontsize=9)
    right.set(xlim=(-0.1, end + 1.3), ylim=(0.6, 4.6))
    figure.savefig(path, dpi=130)


UNIT = """class MinimalGatedUnit(nn.Module):

    def forward(self, x, h):
        xh = torch.cat([x, h], -1)
        f = torch.sigmoid(self.gate(xh))
        xfh = torch.cat([x, f * h], -1)
        n = torch.tanh(self.new(xfh))
        return (1 - f) * h + f * n"""


def draw_export(path: Path) -> None:
    """Draw a cell and, beside it, what a model with it is in an ONNX file."""
    figure, left, right = panels((12, 4.2), 2.1, ("Your cell", "The file: operators of ONNX"))
    left.text(0, 0.86, UNIT, family="monospace", fontsize=9.5, va="top", color=INK)
    left.set(xlim=(0, 1), ylim=(0, 1))

    bar(right, 0, 4.2, 1.3, "Gather", QUIET)
    bar(right, 1.7, 4.2, 2.4, "MatMul: x, all steps at once", AHEAD)
    loop = FancyBboxPatch(
        (0, 1.35), 7.6, 2.1, boxstyle="round,pad=0.05", fc="none", ec=FORWARD, lw=1.5
    )
    right.add_patch(loop)
    right.text(0.1, 3.18, "Scan", color=FORWARD, fontsize=11, weight="bold", va="center")
    names = ["MatMul", "Add", "Sigmoid", "Mul", "MatMul", "Tanh", "Mul, Add"]
    for place, name in enumerate(names):
        x = 0.15 + 0.92 * place
        bar(right, x, 2.4, 0.78, name, STATIC if name == "MatMul" else FORWARD)
        if place:
            arrow(right, (x - 0.11, 2.4), (x - 0.03, 2.4), FORWARD)
    bar(right, 6.6, 2.4, 0.9, "Where", DEFERRED)
    arrow(right, (6.5, 2.4), (6.57, 2.4), FORWARD)
    right.plot([7.05, 7.05, 0.5, 0.5], [2.17, 1.65, 1.65, 2.0], color=FORWARD, lw=1.2)
    arrow(right, (0.5, 2.0), (0.5, 2.17), FORWARD)
    right.text(3.8, 1.65, " h, for the next step ", ha="center", va="center", color=FORWARD,
               fontsize=9, backgroundcolor="white")  # fmt: skip
    bar(right, 0, 0.6, 2.4, "MatMul, Add: the linear layer", QUIET)
    arrow(right, (1.33, 4.2), (1.67, 4.2), QUIET)
    arrow(right, (2.9, 3.97), (2.9, 3.53), AHEAD)
    arrow(right, (1.2, 1.27), (1.2, 0.83), QUIET)
    right.text(-0.1, 4.2, "tokens ", ha="right", va="center", color=INK, fontsize=10)
    right.text(2.55, 0.6, "logits", va="center", color=INK, fontsize=10)
    right.text(6.0, 3.85, "lengths: does the step count?", ha="center", color=DEFERRED, fontsize=9)
    arrow(right, (7.05, 3.78), (7.05, 2.65), DEFERRED)
    right.set(xlim=(-1.0, 7.8), ylim=(0.2, 4.6))
    figure.savefig(path, dpi=130)


def draw_activations(path: Path) -> None:
    """Draw the smooth gates and their piecewise-linear places."""
    x = torch.linspace(-5, 5, 501)
    figure, panels = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    pairs = {
        "gates": (torch.sigmoid, cello.PiecewiseLinear.hard_sigmoid(), "sigmoid"),
        "candidate and output": (torch.tanh, cello.PiecewiseLinear.hard_tanh(), "tanh"),
    }
    for axes, (title, (smooth, hard, name)) in zip(panels, pairs.items(), strict=True):
        axes.plot(x, smooth(x), color=QUIET, label=name)
        axes.plot(x, hard(x), color=FORWARD, label=f"hard{name}")
        axes.plot(hard.xs, hard.ys, "o", color=FORWARD, markersize=4)
        axes.set_title(title, fontsize=10)
        axes.legend(frameon=False, fontsize=9)
        axes.grid(alpha=0.2)
    figure.savefig(path, dpi=130)


def draw_guide(folder: Path) -> None:
    """Run the pages of the guide, and keep the pictures that they save."""
    for page in sorted((HERE.parent / "guide").glob("*.md")):
        code = "".join(re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.S | re.M))
        if page.name.endswith(".zh.md") or ".png" not in code:
            continue
        with tempfile.TemporaryDirectory() as there:
            os.chdir(there)
            with contextlib.redirect_stdout(None):
                exec(compile(code, page.name, "exec"), {"__name__": page.stem})
            for picture in Path(there).glob("*.png"):
                colours = Image.open(picture).convert("RGB").quantize(128)
                colours.save(folder / picture.name, optimize=True)
            os.chdir(HERE)


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    draw_idea(HERE / "cello.png")
    draw_classes(HERE / "compiled.png")
    draw_activations(HERE / "activations.png")
    draw_export(HERE / "export.png")
    (HERE / "guide").mkdir(exist_ok=True)
    draw_guide(HERE / "guide")
