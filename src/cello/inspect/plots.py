"""Plots of a recording: values over time, saturation of gates, reach of the gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from cello.inspect.pictures import finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET = "#1a202c", "#718096"
EMPTY = "#cbd5e0"
"""Steps without a value, in a map: no colour of a value."""
LINES = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#0987a0", "#975a16", "#4a5568")
FEW = 8
"""Up to this many units have their own lines; for more, the median and the range of most are drawn."""
MARGIN = 0.05
"""A gate within this distance of an end of its range, as a fraction of it, is closed or open."""


class Recorded(Protocol):
    """What pictures ask of a :class:`cello.Recording`, which has them as methods."""

    @property
    def title(self) -> str: ...
    @property
    def mask(self) -> Tensor: ...
    @property
    def gradients(self) -> Any: ...
    @property
    def state_names(self) -> Sequence[str]: ...
    def place(self, layer: int, direction: int) -> str: ...
    def shown(self, layer: int, direction: int) -> Sequence[str]: ...
    def gates(self, layer: int, direction: int) -> Sequence[str]: ...
    def saturation(self, name: str, layer: int, direction: int) -> Tensor: ...
    def reach(self, name: str, layer: int, direction: int) -> Tensor: ...
    def value(self, name: str, layer: int, direction: int) -> Any: ...
    def dense(self, rows: Any) -> Tensor: ...


def plot_values(
    recording: Recorded,
    names: Sequence[str],
    *,
    sequence: int,
    layer: int,
    direction: int,
    kind: str,
    ax: Axes | Iterable[Axes] | None,
    label: str | None,
    path: str | Path | None,
) -> Figure:
    """Draw values over time; see :meth:`cello.Recording.plot`."""
    if kind not in ("map", "lines"):
        raise ValueError(f"kind must be 'map' or 'lines', got {kind!r}")
    batch = recording.mask.shape[1]
    if not -batch <= sequence < batch:
        raise IndexError(f"sequence {sequence}: the recording has {batch} sequences")
    place = recording.place(layer, direction)
    names = names or recording.shown(layer, direction)
    length = int(recording.mask[:, sequence].sum())
    if length == 0:
        raise ValueError(f"sequence {sequence} has no steps, so there is nothing to draw")
    columns = min(2, len(names))
    figure, panels = _panels(names, columns, width=4.6, height=2.3, ax=ax)
    if kind == "map" and any(axes.images for axes in panels):
        raise ValueError(
            "ax: the axes have an image, which a map would hide; kind='lines' shares axes"
        )
    for axes, name in zip(panels, names, strict=True):
        values = _units(recording, name, layer, direction)[:length, sequence]  # (T, H)
        _draw_map(axes, values) if kind == "map" else _draw_lines(axes, values, label)
        title = f"{label}: {name}" if kind == "map" and label is not None else name
        axes.set_title(_both(axes.get_title("left"), title), loc="left", fontsize=10, color=INK)
    for axes in panels[-columns:] if ax is None else panels:
        axes.set_xlabel("step")
    if ax is not None:  # what else is in the figure is its owner's
        for axes in panels if kind == "lines" else ():
            axes.legend(fontsize=8, frameon=False)
        return finish(figure, path, dpi=130)
    if kind == "lines":
        _draw_legends(figure, panels)
    figure.suptitle(f"{recording.title}, {_where(place)}, sequence {sequence}", fontsize=11)
    return finish(figure, path, dpi=130)


def _draw_legends(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend if all panels show the same units, otherwise one in each panel."""
    handles, labels = panels[0].get_legend_handles_labels()
    if all(axes.get_legend_handles_labels()[1] == labels for axes in panels):
        figure.legend(
            handles, labels, loc="outside lower center", ncols=FEW, fontsize=8, frameon=False
        )
        return
    for axes in panels:
        axes.legend(fontsize=7, frameon=False, ncols=2)


def _draw_map(axes: Axes, values: Tensor) -> None:
    """Units x time, in colour: one hue from 0 to 1, two for values of both signs."""
    from matplotlib.ticker import MaxNLocator

    known = values[values.isfinite()]  # steps that do not assign the name have NaN
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    is_gate = low >= 0 and high <= 1
    most = max(abs(low), abs(high), 1e-12)
    image = axes.imshow(
        values.T.numpy(),
        aspect="auto",
        interpolation="nearest",
        cmap="viridis" if is_gate else "RdBu_r",
        vmin=0 if is_gate else -most,
        vmax=1 if is_gate else most,
    )
    axes.set_facecolor(EMPTY)
    axes.set_ylabel("unit")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)


def _draw_lines(axes: Axes, values: Tensor, label: str | None) -> None:
    from matplotlib.ticker import MaxNLocator

    steps, units = values.shape
    start = "" if label is None else f"{label}: "
    taken = len(axes.lines)  # of other recordings
    if units <= FEW:
        for k in range(units):
            colour = LINES[(taken + k) % len(LINES)]
            axes.plot(range(steps), values[:, k], color=colour, lw=1.2, label=f"{start}unit {k}")
    else:
        colour = LINES[taken % len(LINES)]
        low, middle, high = values.quantile(values.new_tensor([0.1, 0.5, 0.9]), dim=1)
        axes.fill_between(range(steps), low, high, color=colour, alpha=0.2, lw=0,
                          label=f"{start}8 of 10 units")  # fmt: skip
        axes.plot(range(steps), middle, color=colour, lw=1.5, label=f"{start}median")
    axes.grid(alpha=0.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def plot_saturation(
    recording: Recorded,
    names: Sequence[str],
    *,
    layer: int,
    direction: int,
    ax: Axes | Iterable[Axes] | None,
    label: str | None,
    path: str | Path | None,
) -> Figure:
    """Draw how often gates are closed or open; see :meth:`cello.Recording.plot_saturation`."""
    shown = names or recording.gates(layer, direction)
    if not shown:
        raise ValueError(
            "names: this cell has no gate, that is a value always between 0 and 1; name the values to draw"
        )
    figure, panels = _panels([*shown, *shown], len(shown), width=2.9, height=2.6, ax=ax)
    for k, name in enumerate(shown):
        shares = recording.saturation(name, layer, direction).cpu()  # (H, 2)
        values = _units(recording, name, layer, direction)[recording.mask.cpu()].flatten()
        values = values[~values.isnan()]  # of steps that have assigned it
        if not len(values):
            raise ValueError(f"{name!r}: no step has assigned a value, so there is nothing to draw")
        low = 0 if float(values.min()) >= 0 else -1
        upper, lower = panels[k], panels[k + len(shown)]
        taken = len(lower.collections)  # of other recordings
        colour = LINES[(k + taken) % len(LINES)]
        below, above = (100 * shares.mean(0)).tolist()
        found = f"{below:.0f} % near {low}, {above:.0f} % near 1"
        upper.hist(values, bins=40, range=(low, 1), color=colour,
                   alpha=1.0 if label is None else 0.5, label=f"{label}: {found}",
                   weights=torch.full((values.numel(),), 100 / values.numel()))  # fmt: skip
        edge = MARGIN * (1 - low)
        for start, end in ((low, low + edge), (1 - edge, 1)) if not taken else ():
            upper.axvspan(start, end, color=QUIET, alpha=0.15, lw=0)
        title = f"{name}: {found}" if label is None else _both(upper.get_title(), name)
        upper.set_title(title, fontsize=9)
        upper.set_xlabel("value")
        lower.plot([0, 100], [100, 0], color=QUIET, lw=0.8)
        x, y = 100 * shares.T
        lower.scatter(x, y, s=14, color=colour, alpha=0.6, lw=0)
        if label is not None:
            upper.legend(fontsize=7, frameon=False)
        lower.set(xlim=(-3, 103), ylim=(-3, 103), xlabel=f"% of steps near {low}",
                  ylabel="% near 1" if k == 0 else "")  # fmt: skip
        lower.set_title("each unit", fontsize=9, color=QUIET)
    panels[0].set_ylabel("% of values")
    place = _where(recording.place(layer, direction))
    if ax is None:
        figure.suptitle(f"{recording.title}, {place}", fontsize=11)
    return finish(figure, path, dpi=130)


def plot_reach(
    recording: Recorded,
    names: Sequence[str],
    *,
    layer: int,
    direction: int,
    ax: Axes | None,
    label: str | None,
    path: str | Path | None,
) -> Figure:
    """Draw the norm of the gradient by distance; see :meth:`cello.Recording.plot_reach`."""
    from matplotlib.ticker import MaxNLocator

    if not names:  # a part of the state that depends on nothing trainable has no gradient
        found = {} if recording.gradients is None else recording.gradients.at(layer, direction)
        parts = recording.state_names
        names = [name for name in parts if name in found] or parts
    if not recording.mask.shape[1]:
        raise ValueError("the recording has no sequences, so there is nothing to draw")
    figure, (axes,) = _panels(["reach"], 1, width=6.4, height=3.2, ax=ax)
    start, taken = "" if label is None else f"{label}: ", len(axes.lines)
    for k, name in enumerate(names, taken):
        norms = recording.reach(name, layer, direction).double().cpu()  # (T, B)
        # Norms of different sequences differ by orders of magnitude, so we average their logarithms.
        logs = norms.where(norms > 0, float("nan")).log()
        colour = LINES[k % len(LINES)]
        steps = range(len(norms))
        axes.plot(
            steps,
            logs.nanmean(1).exp(),
            color=colour,
            label=f"{start}{name}",
            lw=1.6,
            marker="o",
            ms=2.5,
        )
        if norms.shape[1] > 1:
            low, high = logs.nanquantile(logs.new_tensor([0.1, 0.9]), dim=1).exp()
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("steps before the last one")
    axes.set_ylabel("norm of d loss / d value")
    axes.grid(alpha=0.2)
    several = "mean, and 8 of 10 sequences" if norms.shape[1] > 1 else None
    axes.legend(frameon=False, title=several, fontsize=8, title_fontsize=8)
    place = _where(recording.place(layer, direction))
    if ax is None:
        axes.set_title(f"{recording.title}, {place}", fontsize=10)
    return finish(figure, path, dpi=130)


def _units(recording: Recorded, name: str, layer: int, direction: int) -> Tensor:
    """Return a value as (T, B, H) of real numbers on the CPU."""
    rows = recording.dense(recording.value(name, layer, direction)).detach().cpu()
    rows = rows.abs() if rows.is_complex() else rows
    return rows.float().reshape(*rows.shape[:2], math.prod(rows.shape[2:]))


def _both(earlier: str, title: str) -> str:
    """Return a title that names what other recordings show in the same axes too."""
    return title if not earlier or title in earlier.split(", ") else f"{earlier}, {title}"


def _panels(
    names: Sequence[str],
    columns: int,
    width: float,
    height: float,
    ax: Axes | Iterable[Axes] | None,
) -> tuple[Figure, list[Axes]]:
    """Return axes for each name and their figure: a new one, or that of the axes `ax`."""
    from matplotlib.axes import Axes as OneAxes
    from matplotlib.figure import Figure

    if ax is not None:
        # An array of axes, as from plt.subplots, may have rows.
        given = [ax] if isinstance(ax, OneAxes) else list(getattr(ax, "flat", ax))
        if len(given) != len(names):
            known = ", ".join(names)
            raise ValueError(f"ax: {len(given)} axes, where {len(names)} are needed, for {known}")
        figure: Figure = given[0].figure.figure  # past subfigures
        return figure, given
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(width * columns, height * lines + 0.4), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in panels[len(names) :]:
        axes.remove()
    return figure, panels[: len(names)]


def _where(place: str) -> str:
    layer, _, reverse = place.removeprefix("l").partition("_")
    return f"layer {layer}{', reverse' if reverse else ''}"
