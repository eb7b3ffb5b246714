"""``cello export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cello.cli.options import OwnCell, load


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The model folder.")],
    out: Annotated[Path, typer.Option(help="Write the model to this file.")] = Path("model.onnx"),
    cell: OwnCell = None,
) -> int:
    """Write a model as an ONNX file, for programs without Python and PyTorch.

    The file holds the network for any number of sequences and steps, and what a program has to know of it
    in its metadata. It does not hold the tokenizer, which stays in the model folder (tokenizer.json).
    """
    written, size = load(model, cell).export(out)
    print(f"{out}: {size / 1e6:.1f} MB")
    for what, names in (("inputs", written.inputs), ("outputs", written.outputs)):
        print(f"{what}: {', '.join(names)}")
    return 0
