"""Provides the site's pages to MkDocs: the project's Markdown files, and a reference of the package's modules.

A page keeps its path, so links between pages work as in a clone. A link to a module of the package leads to its entry
in the reference; a link to any other file becomes the file's name. Formulas become MathML, which browsers show without
a script. Only the hooks import MkDocs, so that the tests can use `PAGES` and `reference` without it.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Container
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGE = "lit_probsft"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *(
        path
        for folder in (PACKAGE, "configs", "benchmarks", "notebooks")
        for path in sorted((ROOT / folder).rglob("*.md"))
    ),
]
"""The Markdown files that are pages."""
IMAGES = sorted((ROOT / "benchmarks" / "results").glob("*.svg"))
"""The images that pages show."""

_MATH = re.compile(r"(`[^`]*`)|\$([^$]+)\$")
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]+)(?:#[^)\s]*)?\)")


def sections() -> dict[str, list[Path]]:
    """The modules of each top-level folder or file of the package; folders first, and `__init__.py` first in each."""
    found: dict[str, list[Path]] = {}
    folders = sorted(path.parent for path in (ROOT / PACKAGE).glob("*/__init__.py"))
    for folder in folders:
        inner = sorted(path for path in folder.rglob("*.py") if path != folder / "__init__.py")
        found[folder.name] = [folder / "__init__.py", *inner]
    for path in sorted((ROOT / PACKAGE).glob("[!_]*.py")):
        found[path.stem] = [path]
    return found


def module_of(path: Path) -> str:
    """The dotted name of a module's file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def reference() -> dict[str, str]:
    """The Markdown of each page of the reference, by its path on the site: an overview, then one page per folder."""
    package = ROOT / PACKAGE / "__init__.py"
    table = [f"| [{section}]({section}.md) | {summary(modules[0])} |" for section, modules in sections().items()]
    lines = ["# API", "", *_names(package), "", "| module | what it does |", "|---|---|", *table, ""]
    pages = {"api/index.md": "\n".join(lines)}
    for section, (first, *others) in sections().items():
        members = "false" if others else "null"
        lines = [
            f"::: {module_of(first)}",
            f"    options: {{heading_level: 1, members: {members}}}",
        ]
        lines += ["", *_names(first)]
        for path in others:
            lines += ["", f"::: {module_of(path)}", "", *_names(path)]
        lines.append("")
        pages[f"api/{section}.md"] = "\n".join(lines)
    return pages


def _names(path: Path) -> list[str]:
    """The public names of an `__init__.py`, linked to their entries; a name without an entry fails the strict build."""
    if path.name != "__init__.py":
        return []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ", ".join(f"[`{name}`][{module_of(path)}.{name}]" for name in ast.literal_eval(node.value))
            return [f"`from {module_of(path)} import` {names}."]
    return []


def summary(path: Path) -> str:
    """The first paragraph of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def relinked(markdown: str, page: str, pages: Container[str]) -> str:
    """Replace a page's links to files that are not pages.

    Args:
        markdown: the page's text.
        page: the page's path in the project.
        pages: the paths of all pages.
    """

    def target(link: re.Match[str]) -> str:
        text, path = link[1], posixpath.normpath(posixpath.join(posixpath.dirname(page), link[2]))
        if "://" in link[2] or path in pages or not (ROOT / path).exists():
            return link[0]
        if path.startswith(f"{PACKAGE}/") and path.endswith(".py"):
            return f"[{text}][{module_of(ROOT / path)}]"
        return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"

    return _LINK.sub(target, markdown)


def with_math(markdown: str) -> str:
    """Replace each `$...$` outside code by MathML."""
    from latex2mathml.converter import convert

    def mathml(found: re.Match[str]) -> str:
        # At the start of a line Markdown treats <math> as a separate block, but <span> as text.
        return found[1] or f"<span>{convert(found[2])}</span>"

    fenced, lines = False, []
    for line in markdown.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        code = fenced or line.startswith("    ")
        lines.append(line if code else _MATH.sub(mathml, line))
    return "\n".join(lines)


# --- hooks that MkDocs calls


def on_config(config: Any) -> Any:
    """Add the pages of the reference to the navigation."""
    (item,) = [item for item in config.nav if "API" in item]
    item["API"] = ["api/index.md", *({section: f"api/{section}.md"} for section in sections())]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add all pages and images under their paths in the project."""
    from mkdocs.structure.files import File

    for path in PAGES:
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for path in IMAGES:
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for uri, text in reference().items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Convert a page's links and formulas for the site."""
    return with_math(relinked(markdown, page.file.src_uri, files.src_uris))
