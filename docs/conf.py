"""How Sphinx makes the site of these pages: `make docs`, then build/docs/index.html.

Nothing is loaded from a network when a page is read: the theme uses the fonts of the system, and
there is no mathematics that a browser would have to typeset.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from make_reference import write_pages  # noqa: E402

from decode import __version__  # noqa: E402

project = "decode"
author = copyright = "the authors of decode"
release = version = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
smartquotes = False
default_role = "code"

autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# notebooks run once and their output is kept; `make docs NOTEBOOKS=off` shows their code alone
nb_execution_mode = os.environ.get("NOTEBOOKS", "cache")
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_execution_cache_path = str(HERE.parent / "build" / "notebooks")
nb_merge_streams = True

html_theme = "furo"
html_title = "decode"
html_static_path = ["_static"]
html_css_files = ["decode.css"]
html_copy_source = False
html_show_sphinx = False
templates_path: list[str] = []


def setup(app: Sphinx) -> None:
    write_pages(HERE)
