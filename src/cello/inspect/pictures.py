"""Finishes every picture of Cello: sets fonts for all its characters, and writes the file."""

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
"""Fonts with Chinese, Japanese and Korean characters, on Linux, macOS and Windows."""


def finish(figure: Figure, target: str | Path | IO[bytes] | None = None, **options: Any) -> Figure:
    """Set fonts for all characters of a figure, and write it.

    If a font lacks a character, it is taken from the first installed font of :data:`FALLBACKS`. If no font
    has it, it is drawn as a box, and Cello warns once.

    Args:
        figure: a figure of matplotlib.
        target: the file to write, or ``None``.
        **options: options of ``savefig``.
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
        with warnings.catch_warnings():  # Cello has warned already
            warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
            figure.savefig(target, **options)
    return figure


def _lack(families: Sequence[str], letters: set[str]) -> bool:
    """Return whether all fonts together lack a character."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    for family in families:
        if not letters:
            return False
        try:
            path = findfont(FontProperties(family=[family]), fallback_to_default=False)
        except ValueError:  # a font of the user that is not installed
            continue
        font = get_font(path)
        letters = {letter for letter in letters if not font.get_char_index(ord(letter))}
    return bool(letters)


@cache
def _say_lacking() -> None:
    """Warn about missing characters, once."""
    logging.getLogger("cello").warning(
        "pictures: no installed font has all characters of the labels; missing characters are drawn as "
        "boxes. Install a font that has them, such as Noto Sans CJK or WenQuanYi Micro Hei"
    )
