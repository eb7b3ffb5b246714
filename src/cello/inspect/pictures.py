"""The last hand on every picture of Cello: fonts for all letters in it, and the file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FALLBACKS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK TC", "Noto Sans CJK KR", "Noto Sans SC",
    "Source Han Sans SC", "Source Han Sans CN", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "PingFang SC", "PingFang HK", "Hiragino Sans GB", "Hiragino Sans", "Heiti SC", "STHeiti",
    "Apple SD Gothic Neo", "Microsoft YaHei", "SimHei", "SimSun", "Microsoft JhengHei", "Yu Gothic",
    "Meiryo", "MS Gothic", "Malgun Gothic", "NanumGothic", "Droid Sans Fallback", "Unifont",
    "Arial Unicode MS",
)  # fmt: skip
"""Fonts with Chinese, Japanese and Korean letters: Linux's, macOS's, Windows's."""


def finish(figure: Figure, target: str | Path | IO[bytes] | None = None, **options: Any) -> Figure:
    """Give a figure fonts for all its letters, and write it.

    A letter that its own font lacks is taken from the first of :data:`FALLBACKS` that is installed. What
    none has is a box; that is said once.

    Args:
        figure: of matplotlib.
        target: a file to write; none unless given.
        **options: of ``savefig``.
    """
    from matplotlib.font_manager import fontManager
    from matplotlib.text import Text

    there = {font.name for font in fontManager.ttflist}
    installed = [name for name in FALLBACKS if name in there]
    lacking = False
    for text in figure.findobj(Text):
        letters = {c for c in text.get_text() if not c.isascii() and not c.isspace()}
        families = text.get_fontfamily()
        if _lack(families, letters):
            families = [*families, *installed]
            text.set_fontfamily(families)
            lacking |= _lack(families, letters)
    if lacking:
        _say_lacking()
    if target is not None:
        with warnings.catch_warnings():  # it has been said, and once
            warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
            figure.savefig(target, **options)
    return figure


def _lack(families: Sequence[str], letters: set[str]) -> bool:
    """Return whether fonts together lack a letter."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    for family in families:
        if not letters:
            return False
        try:
            path = findfont(FontProperties(family=[family]), fallback_to_default=False)
        except ValueError:  # the user's, and not there
            continue
        font = get_font(path)
        letters = {letter for letter in letters if not font.get_char_index(ord(letter))}
    return bool(letters)


@cache
def _say_lacking() -> None:
    """Say it, the first time."""
    logging.getLogger("cello").warning(
        "pictures: no font here has all letters of the labels; those that are missing are boxes. A "
        "font that has them, as Noto Sans CJK or WenQuanYi Micro Hei, is used where it is installed"
    )
