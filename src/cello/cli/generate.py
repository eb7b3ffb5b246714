"""``cello generate``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cello.cli.options import OwnCell, Threads, check_texts, telling, using


def generate(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="The model folder of a language model.")
    ],
    prompt: Annotated[
        str, typer.Option(help="The beginning of the text.", show_default="a new document")
    ] = "",
    length: Annotated[
        int, typer.Option(min=0, help="Largest number of tokens that follow the prompt.")
    ] = 500,
    temperature: Annotated[
        float,
        typer.Option(
            help="Below 1 probable tokens are chosen more often, above 1 less often; 0: always the "
            "most probable one."
        ),
    ] = 1.0,
    top_k: Annotated[
        int | None,
        typer.Option(
            help="Choose among that many of the most probable tokens.", show_default="all"
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Choose among the most probable tokens whose probabilities reach this together.",
            show_default="all",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the choice.", show_default="another one each time"),
    ] = None,
    cell: OwnCell = None,
    device: Annotated[str, typer.Option(help="Device to compute on.")] = "auto",
    threads: Threads = 0,
) -> int:
    """Continue a text with a language model; each token is printed as soon as it is chosen."""
    from cello.tasks.language import load  # here: help is shown without torch

    check_texts([prompt])
    with telling():
        loaded = load(model, device=device, cells=cell)
    pieces = loaded.generate(
        prompt, length=length, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )
    unknown = loaded.unknown(prompt)
    if unknown:
        print(
            f"cello: the prompt: {unknown:.0%} of the tokens are unknown to the model",
            file=sys.stderr,
        )
    try:
        with using(threads):
            print(prompt, end="", flush=True)
            for piece in pieces:
                print(piece, end="", flush=True)
            print(flush=True)
    except BrokenPipeError:  # whoever read our output has gone, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
