"""What the documentation's site needs beyond mkdocs.yml: pages from files above docs/, and equations.

The README, DESIGN.md and their like become pages of the site, and the examples one page. Equations (a
fence called `math`, as on GitHub, and Sphinx's directive and role in docstrings) become MathML, which
browsers show without a script.
"""

import ast
import re
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, fromstring

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor
from markdown.util import ETX, STX
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {
    "index.md": "README.md",
    "index.zh.md": "README.zh-CN.md",
    "design.md": "DESIGN.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "examples.md": "examples",
}
"""Pages of the site that are files of the repository's root."""


@event_priority(100)  # before the languages are sorted out
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages whose text lies above docs/."""
    for page in PAGES:
        files.append(File(page, config.docs_dir, config.site_dir, config.use_directory_urls))
    return files


def on_page_read_source(page: Page, config: MkDocsConfig) -> str | None:
    """Return the text of a page that lies above docs/, with its links as they are on the site."""
    name = PAGES.get(page.file.src_uri)
    if name is None:
        return None
    if name == "examples":
        return _examples(sorted((ROOT / name).glob("*.py")))
    return (ROOT / name).read_text("utf-8")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files of the root lead to their pages."""
    above = page.file.src_uri in PAGES
    if above:
        markdown = markdown.replace("](docs/", "](")
    to_root = "" if above else r"(?:\.\./)+"
    for target, name in PAGES.items():
        back = "" if above else "../" * page.file.src_uri.count("/")
        pattern = rf"\]\({to_root}{re.escape(name)}(/[\w.]+)?(#[\w-]+)?\)"
        markdown = re.sub(pattern, rf"]({back}{target}\2)", markdown)
    # Sources are not on the site; what stays of a link to one is its text.
    markdown = re.sub(
        r"\[([^]]*)\]\((?:\.\./)*(?:src|csrc|tests|benchmarks)/[^)]*\)", r"\1", markdown
    )
    # The switch at the top of the site leads from one language to the other.
    markdown = re.sub(r"(^| · )\[(简体中文|English)\]\([^)]*\)", "", markdown, flags=re.MULTILINE)
    # A line's end is a space, which Chinese does not have between words.
    cjk = "\u3000-\u303f\u4e00-\u9fff\uff00-\uffef"
    markdown = re.sub(rf"(?<=[{cjk}])\n(?=[{cjk}])", "", markdown)
    return markdown


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put pages of docs/ that are not listed into the menu, and teach Markdown about equations."""
    in_full = next(section["In full"] for section in config.nav or [] if "In full" in section)
    there = {path.name for path in Path(config.docs_dir).glob("*.md")}
    in_full += sorted(there - set(in_full))
    if not any(isinstance(extension, Sphinx) for extension in config.markdown_extensions):
        config.markdown_extensions.append(Sphinx())
        fence = {"name": "math", "class": "math", "format": _display}
        config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def _examples(paths: list[Path]) -> str:
    parts = ["# Examples\n\nEach is a program of its own: `python examples/NAME.py`."]
    for path in paths:
        text = path.read_text("utf-8")
        title = (ast.get_docstring(ast.parse(text)) or path.stem).splitlines()[0]
        parts.append(f"## {path.name}\n\n{title}\n\n```python\n{text}```")
    return "\n\n".join(parts) + "\n"


def _display(source: str, *args: Any, **kwargs: Any) -> str:
    if r"\\" in source and r"\begin" not in source:
        source = rf"\begin{{aligned}}{source}\end{{aligned}}"
    source = source.replace("{aligned}", "{split}")  # the same, by the name that the converter has
    return f'<div class="math">{convert(source, display="block")}</div>'


class Sphinx(Extension):
    """Sphinx's notation in docstrings: the directive and role for equations, roles for names."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(_Blocks(md), "sphinx-blocks", 40)  # before fences are read
        md.inlinePatterns.register(_Equation(r":math:`([^`]+)`", md), "sphinx-math", 200)
        names = r":(?:class|func|meth|mod|data|attr):(?=`)"
        md.inlinePatterns.register(_Nothing(names, md), "sphinx-names", 200)
        md.inlinePatterns.register(_Times(r"(?<=[A-Za-z0-9])\*(?=[A-Za-z0-9])", md), "times", 170)


class _Blocks(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        text = "\n".join(lines)
        text = re.sub(
            r"^( *)\.\. math::(.*(?:\n(?:\1 +.*|(?=\n\1 ))?)*)",
            lambda m: f"{m[1]}```math\n{m[2].strip()}\n{m[1]}```\n",
            text,
            flags=re.MULTILINE,
        )
        text = re.sub(
            r"(?:^>>> .*\n?(?:^(?! *$).*\n?)*)+",
            lambda m: f"```pycon\n{m[0].rstrip()}\n```\n",
            text,
            flags=re.MULTILINE,
        )
        return text.split("\n")


class _Equation(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Element, int, int]:
        return fromstring(convert(m[1]).replace(" xmlns=", " data-xmlns=")), m.start(0), m.end(0)


class _Nothing(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:
        return "", m.start(0), m.end(0)


class _Times(InlineProcessor):
    """G*H is no emphasis."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:
        return f"{STX}{ord('*')}{ETX}", m.start(0), m.end(0)
