"""Runs of several cells, brought together: mean, deviation, paired test; as Markdown and as LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rich.table
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape

from cello.tasks.errors import say, show_table

SIGN = "\N{PLUS-MINUS SIGN}"
NONE = "\N{EN DASH}"

_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", SIGN: r"$\pm$", NONE: "--",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}  # fmt: skip


def summarize(runs: pd.DataFrame | str | Path) -> pd.DataFrame:
    """Bring the runs of each cell together.

    Args:
        runs: what :func:`cello.tasks.compare` returned, or the path of its ``results.csv``.

    Returns:
        A row for each cell that has a finished run, in their order: `runs`, `hidden`, `parameters`;
        mean and standard deviation of the scores (`valid_mean`, `valid_std`, `test_mean`, `test_std`;
        the deviation is that of a sample, with n - 1); `difference`, the mean difference of the test
        score from the first cell's with the same seed; `p`, of the two-sided paired t test of these
        differences, NaN where they are fewer than two or all the same; the medians `train_seconds` and
        `predict_seconds`; and `engine`. Nothing corrects `p` for the number of cells.

    Example:
        >>> runs = pd.DataFrame({"cell": ["a"] * 3 + ["b"] * 3, "seed": [0, 1, 2] * 2, "error": ""})
        >>> runs = runs.assign(
        ...     test=[0.5, 0.6, 0.7, 0.7, 0.7, 0.9], valid=0.5, hidden=8, engine="native"
        ... )
        >>> runs = runs.assign(parameters=100, train_seconds=1.0, predict_seconds=0.1)
        >>> summarize(runs)[["test_mean", "difference", "p"]].round(4)
              test_mean  difference       p
        cell
        a        0.6000         NaN     NaN
        b        0.7667      0.1667  0.0377
    """
    if isinstance(runs, str | Path):
        # A cell may be called null, or 1.
        runs = pd.read_csv(runs, dtype={"cell": str}, keep_default_na=False, na_values=[""])
    done = runs[runs["error"].isna() | (runs["error"] == "")]  # empty, in a file or not
    scores = done.pivot(index="seed", columns="cell", values="test")
    rows = []
    names = list(dict.fromkeys(done["cell"]))
    for name in names:
        own = done[done["cell"] == name]
        row: dict[str, Any] = {"cell": name, "runs": len(own)}
        row |= {column: own[column].iloc[0] for column in ("hidden", "parameters")}
        for column in ("valid", "test"):
            row |= {f"{column}_mean": own[column].mean(), f"{column}_std": own[column].std()}
        row["difference"], row["p"] = math.nan, math.nan
        if name != names[0]:
            pairs = scores[[names[0], name]].dropna()
            row["difference"] = (pairs[name] - pairs[names[0]]).mean()
            row["p"] = _paired(pairs[name].to_numpy(), pairs[names[0]].to_numpy())
        row |= {column: own[column].median() for column in ("train_seconds", "predict_seconds")}
        row["engine"] = ", ".join(dict.fromkeys(own["engine"]))
        rows.append(row)
    columns = [
        "cell", "runs", "hidden", "parameters", "valid_mean", "valid_std", "test_mean", "test_std",
        "difference", "p", "train_seconds", "predict_seconds", "engine",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns).set_index("cell")


def _paired(a: Any, b: Any) -> float:
    """Return p of the paired t test; NaN where the differences do not vary."""
    from scipy.stats import ttest_rel

    differences = a - b
    # Equal up to rounding: then t is a division by nothing.
    if len(a) < 2 or np.ptp(differences) <= 1e-12 * max(np.abs(a).max(), np.abs(b).max()):
        return math.nan
    return float(ttest_rel(a, b).pvalue)


@dataclass(frozen=True)
class Table:
    """A summary as text.

    Attributes:
        headings: of the columns.
        rows: the first column is a name, the last one words, those between are numbers.
        note: what a reader of the table has to know.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str

    def markdown(self) -> str:
        """Return the table in Markdown."""
        last = len(self.headings) - 1
        rules = ["---" if i in (0, last) else "---:" for i in range(last + 1)]
        rows = [[text.replace("|", "\\|") for text in row] for row in (self.headings, *self.rows)]
        lines = [f"| {' | '.join(row)} |" for row in (rows[0], rules, *rows[1:])]
        return "\n".join([*lines, "", self.note, ""])

    def show(self, console: Console) -> None:
        """Print the table."""
        shown = rich.table.Table(box=SIMPLE_HEAD, pad_edge=False)
        for i, heading in enumerate(self.headings):
            justify: Any = "right" if 0 < i < len(self.headings) - 1 else "left"
            shown.add_column(escape(heading), justify=justify)
        for row in self.rows:
            shown.add_row(*map(escape, row))
        show_table(console, shown)
        say(console, self.note)

    def latex(self) -> str:
        """Return the table in LaTeX, for the package booktabs."""

        def line(row: Sequence[str]) -> str:
            return " & ".join(map(latex, row)) + r" \\"

        return "\n".join(
            [
                "% \\usepackage{booktabs}",
                f"% {self.note}",
                f"\\begin{{tabular}}{{l{'r' * (len(self.headings) - 2)}l}}",
                "\\toprule",
                line(self.headings),
                "\\midrule",
                *map(line, self.rows),
                "\\bottomrule",
                "\\end{tabular}",
                "",
            ]
        )


def latex(text: str) -> str:
    r"""Return text as LaTeX shows it, with the signs that mean something to LaTeX written out.

    Example:
        >>> print(latex("50%_of {x}"))
        50\%\_of \{x\}
    """
    return "".join(_LATEX.get(letter, letter) for letter in text)


def table(runs: pd.DataFrame) -> Table:
    """Return the summary of some runs as text.

    Args:
        runs: what :func:`cello.tasks.compare` returned; at least one run is finished.
    """
    found, valid, test = summarize(runs), runs.attrs["valid"], runs.attrs["test"]
    first = str(found.index[0])
    digits = {
        name: _digits(found[columns].abs().to_numpy().max())
        for name, columns in {
            "valid": ["valid_mean"], "test": ["test_mean"],
            "train": ["train_seconds"], "predict": ["predict_seconds"],
        }.items()
    }  # fmt: skip
    rows = [
        [
            str(name),
            f"{row['hidden']:,}",
            f"{row['parameters']:,}",
            _spread(row["valid_mean"], row["valid_std"], digits["valid"]),
            _spread(row["test_mean"], row["test_std"], digits["test"]),
            _probability(row["p"]),
            f"{row['train_seconds']:.{max(digits['train'] - 1, 0)}f}",
            f"{row['predict_seconds']:.{max(digits['predict'] - 1, 0)}f}",
            f"{row['runs']}",
            str(row["engine"]),
        ]
        for name, row in found.iterrows()
    ]
    headings = [
        "cell", "hidden", "parameters", f"validation {valid}", f"test {test}", "p",
        "training (s)", "prediction (s)", "runs", "engine",
    ]  # fmt: skip
    note = (
        f"Mean {SIGN} standard deviation over the runs. p: two-sided paired t test of the test {test} "
        f"against {first}, paired by seed. Times are medians over the runs."
    )
    unfinished = [name for name in dict.fromkeys(runs["cell"]) if name not in found.index]
    if unfinished:
        note += f" Without a finished run: {', '.join(unfinished)}."
    return Table(headings, rows, note)


def _digits(largest: float) -> int:
    """Return the decimals that give four digits of the largest number, or four of one below 1."""
    if not math.isfinite(largest) or largest <= 0:
        return 4
    return min(max(3 - math.floor(math.log10(largest)), 0), 8)


def _spread(mean: float, deviation: float, digits: int) -> str:
    if math.isnan(deviation):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} {SIGN} {deviation:.{digits}f}"


def _probability(p: float) -> str:
    if math.isnan(p):
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"
