"""Fixtures shared by all tests."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pytest
import torch
from hypothesis import settings

# a law holds however busy the machine is
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

LAYOUT = """
  const boxes = [...document.querySelectorAll(
    "h1, h2, h3, p, li, figure, table, pre, button, label, svg text")]
    .filter(element => element.checkVisibility());
  const overlaps = [];
  const box = new Map(boxes.map(element => [element, element.getBoundingClientRect()]));
  for (const [i, a] of boxes.entries()) for (const b of boxes.slice(i + 1)) {
    if (a.contains(b) || b.contains(a)) continue;
    const [p, q] = [box.get(a), box.get(b)];
    const across = Math.min(p.right, q.right) - Math.max(p.left, q.left);
    const down = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
    if (across > 1 && down > 1) overlaps.push([a.outerHTML.slice(0, 80), b.outerHTML.slice(0, 80)]);
  }
  return {width: innerWidth, needed: document.documentElement.scrollWidth, overlaps};
"""


@pytest.fixture
def rng() -> torch.Generator:
    """A seeded source of randomness."""
    return torch.Generator().manual_seed(20161123)


@pytest.fixture
def no_pupil(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrations do not look for the pupil with the same images, which takes seconds."""
    monkeypatch.setattr("decode.verbs.calibrate_psf.with_pupil", lambda file: file)


@pytest.fixture
def limited_files() -> Callable[[int], AbstractContextManager[None]]:
    """Blocks in which no file can grow beyond so many bytes, as after `ulimit -f`."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limited(n_bytes: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of third-party movies, tables and truths; they are no part of the project."""
    if not SHARED.is_dir():
        pytest.skip("the third-party test data are not beside the project")
    return SHARED


@final
@dataclass(frozen=True)
class Browser:
    """Chromium at a path."""

    program: str

    @staticmethod
    def found() -> Browser | None:
        """The first that is installed."""
        paths = (shutil.which(name) for name in BROWSERS)
        return next((Browser(path) for path in paths if path), None)

    def run(self, page: Path, script: str, *, width: int = 1280) -> Any:
        """What a script says that runs in the page after its own."""
        asked = (
            f"<script>(async () => {{ {script} }})().then("
            "said => parent.postMessage(JSON.stringify(said), '*'))</script></body>"
        )
        asking = page.with_name(f"asking-{page.name}")
        asking.write_text(page.read_text(encoding="utf-8").replace("</body>", asked))
        listening = "addEventListener('message', event => document.body.textContent = event.data)"
        outer = self._framed(asking, width, f"<script>{listening}</script>")
        done = self._opened(outer, "--virtual-time-budget=5000", "--dump-dom")
        said = re.search(r"<body[^>]*>(.*)</body>", done, re.DOTALL)
        assert said is not None, done[-500:]
        return json.loads(html.unescape(said[1]))

    def picture(self, page: Path, out: Path, *, size: tuple[int, int], dark: bool = False) -> None:
        """A screenshot, for the eye."""
        width, height = size
        outer = self._framed(page, width)
        theme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        self._opened(outer, theme, f"--window-size={width},{height}", f"--screenshot={out}")

    def _framed(self, page: Path, width: int, script: str = "") -> Path:
        """A page with another one in it: windows are never narrower than 500 pixels."""
        outer = page.with_name(f"framed-{page.name}")
        style = f"border: 0; width: {width}px; height: 9000px"
        frame = f'<iframe style="{style}" src="{page.absolute().as_uri()}"></iframe>'
        outer.write_text(f'<html><body style="margin: 0">{script}{frame}</body></html>')
        return outer

    def _opened(self, page: Path, *options: str) -> str:
        quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
        done = subprocess.run(
            [self.program, *quiet, "--window-size=1280,900", *options, page.absolute().as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout

    def layout(self, page: Path, *, width: int) -> Any:
        """Width of the window, width that the page needs, and elements that overlap."""
        return self.run(page, LAYOUT, width=width)


@pytest.fixture(scope="session")
def browser() -> Browser:
    """Chromium, where it is installed."""
    found = Browser.found()
    if found is None:
        pytest.skip("no Chromium: apt-get install --no-install-recommends chromium")
    return found
