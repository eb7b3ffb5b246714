"""The blocks of docs/packages.md run, each where its package is installed."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from packages.case import installed

import cello

PAGE = Path(__file__).parents[2] / "docs/packages.md"
BLOCKS = re.findall(
    r"^```py\n# (\S+)\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
)


@pytest.mark.parametrize(("package", "code"), BLOCKS, ids=[package for package, _ in BLOCKS])
def test_block_runs(package: str, code: str) -> None:
    if installed(package) is None:
        pytest.skip(f"{package} is not installed: run `make packages`")
    names = {"torch": torch, "nn": torch.nn, "cello": cello, "x": torch.randn(7, 3, 5)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages
        exec(compile(code, f"packages.md, {package}", "exec"), names)
    output = names["output"]
    assert isinstance(output, torch.Tensor)
    assert output.shape[:2] == (7, 3)


def test_every_block_names_its_package() -> None:
    assert len(BLOCKS) == PAGE.read_text("utf-8").count("```py\n") > 0
