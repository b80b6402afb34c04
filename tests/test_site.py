"""The site has every page, and its reference has every public name; the build checks links and docstrings."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PACKAGES = [
    ".".join(path.relative_to(ROOT).parent.parts)
    for path in sorted((ROOT / "lit_probsft").rglob("__init__.py"))
    if "\n__all__ = " in path.read_text()
]
"""The packages with public names."""


@pytest.fixture(scope="module")
def site() -> Any:
    spec = importlib.util.spec_from_file_location("site_hook", ROOT / ".ci" / "site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def modules(site: Any) -> list[str]:
    """The modules in the reference, in order."""
    return re.findall(r"^::: (\S+)$", "\n".join(site.reference().values()), re.M)


def test_every_page_is_in_the_navigation(site: Any) -> None:
    text = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1].split("\ntheme:")[0]
    named = re.findall(r": (\S+\.md)$", text, re.M)
    assert sorted(named) == sorted(path.relative_to(ROOT).as_posix() for path in site.PAGES)


def test_every_module_has_one_place_in_the_reference(modules: list[str]) -> None:
    files = [path for path in (ROOT / "lit_probsft").rglob("*.py") if path.parent.name != "configs"]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files}
    assert sorted(modules) == sorted(names - {"lit_probsft", "lit_probsft.__main__"})


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(package: str, site: Any, modules: list[str]) -> None:
    public = importlib.import_module(package)
    pages = "\n".join(site.reference().values())
    for name in public.__all__:
        home = getattr(public, name)
        assert home.__module__ in modules, name
        assert not name.startswith("_")
        assert home.__doc__, name  # a name without a docstring is not shown
        assert f"[`{name}`][{package}.{name}]" in pages


def test_a_link_to_a_file_that_is_not_a_page_becomes_a_reference_or_a_name(site: Any) -> None:
    text = "[a](../head/loss.py) [b](../../configs/quickstart.yaml) [c](README.md#x) [configs/](nowhere) [d](https://x.org)"
    assert site.relinked(text, "lit_probsft/data/README.md", ["lit_probsft/data/README.md"]) == (
        "[a][lit_probsft.head.loss] b (`configs/quickstart.yaml`) [c](README.md#x) [configs/](nowhere) [d](https://x.org)"
    )


def test_the_site_needs_no_network() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    assert "\n  font: false\n" in text
    assert "http" not in text
    names = yaml.safe_load(text.split("\nplugins:\n")[1].split("\nmarkdown_extensions")[0])
    assert [name if isinstance(name, str) else next(iter(name)) for name in names] == ["search", "mkdocstrings"]


def test_formulas_outside_code_become_mathml(site: Any) -> None:
    pytest.importorskip("latex2mathml")
    text = "a $-p^{10}$ `$x$`\n\n    echo $HOME $PATH\n\n```bash\necho $A $B\n```"
    first, *rest = site.with_math(text).split("\n")
    assert first.startswith("a <span><math")
    assert first.endswith("</math></span> `$x$`")
    assert "\n".join(rest) == text.partition("\n")[2]
