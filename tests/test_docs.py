"""The pages hold together: links lead somewhere, and nothing is loaded from a network."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import decode
from decode.models import shipped_models

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.M | re.S)
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)[^>]+src=["']([^"']+)|<link[^>]+href=["']([^"']+)|url\(([^)]+)"""
)


def script(name: str) -> ModuleType:
    """A script of docs/."""
    spec = spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages that are made from the code."""
    site = tmp_path_factory.mktemp("site")
    script("make_reference").write_pages(site)
    return site


def written_pages() -> list[Path]:
    ours = [page for page in DOCS.rglob("*.md") if page.parent.name not in ("reference", "models")]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ours)]


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub and MyST make them."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ +(.+?) *$", text, re.M)
    kept = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.replace(" ", "-") for title in kept}


def broken(page: Path, name: str, made: Path) -> Iterator[str]:
    for target in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"https?:|mailto:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (ROOT / name).parent / file if file else page
        there = there.resolve()
        if there.is_relative_to(DOCS) and not there.exists():
            there = made / there.relative_to(DOCS)
        if not there.exists() or (anchor and anchor not in anchors(there)):
            yield target


def test_links_lead_somewhere(made: Path) -> None:
    pages = {page: str(page.relative_to(ROOT)) for page in written_pages()}
    pages |= {page: f"docs/{page.relative_to(made)}" for page in made.rglob("*.md")}
    lost = {name: found for page, name in pages.items() if (found := [*broken(page, name, made)])}
    assert not lost


def test_a_broken_link_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[a](nowhere.md) [b](#not-here) [c](#here)\n\n# Here\n")
    assert [*broken(page, "docs/page.md", tmp_path)] == ["nowhere.md", "#not-here"]


def test_every_page_is_in_the_navigation(made: Path) -> None:
    """Sphinx, too, refuses others, but later."""
    listed = re.findall(r"^```\{toctree\}\n(.*?)^```", (DOCS / "index.md").read_text(), re.M | re.S)
    named = {line for block in listed for line in block.splitlines()}
    pages = {page.relative_to(made).with_suffix("") for page in made.rglob("*.md")}
    pages |= {page.relative_to(DOCS).with_suffix("") for page in written_pages()[3:]}
    cards = {page for page in pages if page.parent.name == "models" and page.name != "index"}
    assert {page.as_posix() for page in pages - cards} - named == {"index"}


def test_the_readme_is_read_in_two_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 700


def test_every_public_name_and_model_has_its_place(made: Path) -> None:
    interface = (made / "reference" / "api.md").read_text()
    assert [name for name in decode.__all__ if f"decode.{name}\n" not in interface] == []
    for name in shipped_models():
        assert "## When not to use it\n\n- " in (made / "models" / f"{name}.md").read_text()


def test_the_diagram_is_that_of_its_script() -> None:
    drawn = DOCS / "images" / "how_it_works.svg"
    assert drawn.read_text(encoding="utf-8") == script("make_diagram").svg()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The pages of the site, which is built without a warning."""
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("built")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*build, "-d", folder / "doctrees", DOCS, folder / "site"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pages = list((folder / "site").rglob("*.html"))
    assert len(pages) > 30
    return pages


@pytest.mark.slow
def test_no_page_loads_anything_from_a_network(site: list[Path]) -> None:
    for page in site:
        for found in LOADED.findall(page.read_text(encoding="utf-8")):
            assert not re.match(r"['\"]?(https?:)?//", next(filter(None, found), "")), page


@pytest.mark.slow
def test_no_page_is_wider_than_a_phone(site: list[Path], browser: Any) -> None:
    width = "return document.documentElement.scrollWidth"
    pages = [page for page in site if "_modules" not in page.parts]
    wide = {page: needed for page in pages if (needed := browser.run(page, width, width=390)) > 390}
    assert wide == {}
