"""Draw the pictures of the documentation: `python docs/draw_pictures.py`."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

import cello

HERE = Path(__file__).parent / "pictures"
FORWARD, BACKWARD, INK, QUIET = "#2b6cb0", "#c05621", "#1a202c", "#718096"

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


def draw_idea(path: Path) -> None:
    """Draw one cell as text and, beside it, two layers of it in both directions over time."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.2), width_ratios=[1, 2], layout="constrained"
    )
    for axes in (left, right):
        axes.axis("off")
    left.set_title("You write the cell", color=INK, loc="left", fontsize=13)
    left.text(0, 0.86, CELL, family="monospace", fontsize=10, va="top", color=INK)
    left.set(xlim=(0, 1), ylim=(0, 1))
    left.text(
        0, 0.3, 'cello.Recurrent(make_cell, input_size=28,\n    num_layers=2, bidirectional=True)',
        family="monospace", fontsize=9, color=QUIET,
    )  # fmt: skip

    right.set_title("Cello runs the loop", color=INK, loc="left", fontsize=13)
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


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    draw_idea(HERE / "cello.png")
    draw_activations(HERE / "activations.png")
