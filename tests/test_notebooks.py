"""The notebooks of the documentation run to their end; what they assert holds."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "docs" / "notebooks").glob("*.md"))


def test_there_are_notebooks_and_the_front_page_names_each() -> None:
    front = (NOTEBOOKS[0].parents[1] / "index.md").read_text(encoding="utf-8")
    assert [path for path in NOTEBOOKS if f"(notebooks/{path.name})" not in front] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path) -> None:
    read = pytest.importorskip("myst_nb.core.read")
    config = pytest.importorskip("myst_parser.config.main").MdParserConfig()
    client = pytest.importorskip("nbclient").NotebookClient
    notebook = read.read_myst_markdown_notebook(path.read_text(encoding="utf-8"), config)
    client(notebook, timeout=250, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert sum(cell.cell_type == "code" for cell in notebook.cells) >= 5
