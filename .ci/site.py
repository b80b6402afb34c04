"""The site's pages for MkDocs: the project's own Markdown files, and a reference made from the package's modules.

A page keeps its path, so that links between pages are the ones that work in a clone. A link to a module of the package
points to its place in the reference; a link to any other file becomes the file's name. Formulas become MathML, which
browsers show without a script. MkDocs is imported only in the hooks: the tests read `PAGES` and `reference` without it.
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
    *(path for room in (PACKAGE, "configs", "benchmarks", "notebooks") for path in sorted((ROOT / room).rglob("*.md"))),
]
"""Every Markdown file that is a page."""
IMAGES = sorted((ROOT / "benchmarks" / "results").glob("*.svg"))
"""The pictures that pages show."""

_MATH = re.compile(r"(`[^`]*`)|\$([^$]+)\$")
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]+)(?:#[^)\s]*)?\)")


def rooms() -> dict[str, list[Path]]:
    """The package's rooms, a folder or a file each, folders first; of each its modules, the folder's own first."""
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
    """Path on the site and Markdown of each page of the reference: the rooms, then one page per room."""
    package = ROOT / PACKAGE / "__init__.py"
    table = [f"| [{room}]({room}.md) | {summary(modules[0])} |" for room, modules in rooms().items()]
    lines = ["# API", "", *_names(package), "", "| room | what it is |", "|---|---|", *table, ""]
    pages = {"api/index.md": "\n".join(lines)}
    for room, (first, *others) in rooms().items():
        members = "false" if others else "null"
        lines = [
            f"::: {module_of(first)}",
            f"    options: {{heading_level: 1, members: {members}}}",
        ]
        lines += ["", *_names(first), *(f"\n::: {module_of(path)}" for path in others), ""]
        pages[f"api/{room}.md"] = "\n".join(lines)
    return pages


def _names(path: Path) -> list[str]:
    """The names that `__init__.py` promises, each leading to its place; a name without one fails the strict build."""
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
    """A page's Markdown with its links to files that are no pages led elsewhere.

    Args:
        markdown: of the page.
        page: its path in the project.
        pages: paths of all pages.
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
    """A page's Markdown with each `$...$` outside of code as MathML."""
    from latex2mathml.converter import convert

    def mathml(found: re.Match[str]) -> str:
        # Markdown takes <math> at the start of a line for a block of its own, and <span> for text.
        return found[1] or f"<span>{convert(found[2])}</span>"

    fenced, lines = False, []
    for line in markdown.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        code = fenced or line.startswith("    ")
        lines.append(line if code else _MATH.sub(mathml, line))
    return "\n".join(lines)


# --- hooks that MkDocs calls


def on_config(config: Any) -> Any:
    """The reference's pages in the navigation."""
    (item,) = [item for item in config.nav if "API" in item]
    item["API"] = ["api/index.md", *({room: f"api/{room}.md"} for room in rooms())]
    return config


def on_files(files: Any, config: Any) -> Any:
    """All pages and images, as if they were in one folder."""
    from mkdocs.structure.files import File

    for path in PAGES:
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for path in IMAGES:
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for uri, text in reference().items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """A page's links and formulas as the site needs them."""
    return with_math(relinked(markdown, page.file.src_uri, files.src_uris))
