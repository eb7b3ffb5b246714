"""How good a classifier is: figures, table, picture, file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, ClassVar

from cello.inspect.pictures import finish
from cello.tasks.errors import say, show_table
from cello.tasks.report import Report

if TYPE_CHECKING:
    from rich.console import Console

WIDEST_TABLE = 12
"""With more classes the confusion matrix is in the picture and the file only."""


@dataclass(kw_only=True)
class ClassReport(Report):
    """What a classifier got right on some data.

    `confusion` has a row for each true class and a column for each predicted one; `majority` is the
    accuracy of always naming the most frequent class; `notes` are sentences on the data.
    """

    picture: ClassVar[str] = "confusion.png"
    measure: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "rows"
    """What is classified, for the eye."""

    rows: int
    labels: list[str]
    accuracy: float
    macro_f1: float
    majority: float
    classes: dict[str, dict[str, float]]
    confusion: list[list[int]]
    notes: list[str] = field(default_factory=list)

    @property
    def rivals(self) -> dict[str, float]:
        """Simple answers by name, with their accuracy; none where there is one class to find."""
        if sum(map(any, self.confusion)) < 2:
            return {}
        return {"always the most frequent class": self.majority}

    @property
    def score(self) -> float:
        return self.accuracy

    def show(self, console: Console) -> None:
        """Print the figures and, for few classes, the confusion matrix."""
        from rich.markup import escape
        from rich.table import Table

        title = f"{self.data}: {self.rows:,} {self.unit}"  # longer than the table is wide, perhaps
        say(console, title)
        table = Table()
        for column in ("class", "precision", "recall", "F1", self.unit):
            table.add_column(column, justify="left" if column == "class" else "right")
        for label, figures in self.classes.items():
            shown = [f"{figures[k]:.4f}" for k in ("precision", "recall", "f1")]
            table.add_row(escape(label), *shown, f"{figures['rows']:,}")
        show_table(console, table)
        if len(self.labels) <= WIDEST_TABLE:
            table = Table(title="true \\ predicted", title_justify="left")
            table.add_column("")
            for label in self.labels:
                table.add_column(escape(label), justify="right")
            for i, row in enumerate(self.confusion):
                cells = [f"[bold]{n}[/]" if i == j else str(n) for j, n in enumerate(row)]
                table.add_row(escape(self.labels[i]), *cells)
            show_table(console, table)
        console.print(
            f"accuracy {self.accuracy:.4f}  macro F1 {self.macro_f1:.4f}"
            f"  (always the most frequent class: {self.majority:.4f})  {self.seconds:.1f} s",
            highlight=False,
            soft_wrap=True,
        )
        better = [name for name, accuracy in self.rivals.items() if accuracy >= self.accuracy]
        if better:
            console.print(f"no better than: {', '.join(better)}", highlight=False, soft_wrap=True)
        for note in dict.fromkeys([*self.training.get("notes", ()), *self.notes]):
            say(console, note)

    def draw(self, stream: IO[bytes]) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        count = len(self.labels)
        size = min(3.0 + 0.45 * count, 30.0)
        figure = Figure(figsize=(size + 1, size), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        shares = [[n / max(sum(row), 1) for n in row] for row in self.confusion]
        image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
        figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
        short = [label if len(label) <= 24 else label[:23] + "…" for label in self.labels]
        short = [label.replace("$", r"\$") for label in short]
        axes.set_xticks(range(count), short, rotation=90 if max(map(len, short)) > 3 else 0)
        axes.set_yticks(range(count), short)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.set_title(f"accuracy {self.accuracy:.4f} on {self.rows:,} {self.unit}")
        if count <= 30:
            for i, row in enumerate(self.confusion):
                for j, n in enumerate(row):
                    if n:
                        color = "white" if shares[i][j] > 0.5 else "black"
                        axes.text(j, i, str(n), ha="center", va="center", color=color, fontsize=9)
        finish(figure, stream, format="png", dpi=120)


def report(
    data: str, labels: Sequence[str], true: Sequence[int], predicted: Sequence[int], seconds: float
) -> ClassReport:
    """Compare predictions with the truth.

    Args:
        data: what the rows are, for the eye.
        labels: the names of the classes.
        true: the number of the right class of each row.
        predicted: the number of the predicted class of each row.
        seconds: how long the predictions took.

    Returns:
        The report.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    numbers = range(len(labels))
    per_class = precision_recall_fscore_support(true, predicted, labels=numbers, zero_division=0.0)
    classes = {
        label: {"precision": float(p), "recall": float(r), "f1": float(f), "rows": int(n)}
        for label, p, r, f, n in zip(labels, *per_class, strict=True)
    }
    rows = len(true)
    return ClassReport(
        data=data,
        rows=rows,
        labels=list(labels),
        accuracy=sum(t == p for t, p in zip(true, predicted, strict=True)) / rows,
        macro_f1=float(per_class[2].mean()),
        majority=max(Counter(true).values()) / rows,
        classes=classes,
        confusion=confusion_matrix(true, predicted, labels=numbers).tolist(),
        seconds=seconds,
    )
