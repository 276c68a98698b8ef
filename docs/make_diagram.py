"""Make docs/images/how_it_works.svg: the chain from the scene to counts, and the way back.

python docs/make_diagram.py
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, final

from decode.atomic import atomic

OUT = Path(__file__).parent / "images" / "how_it_works.svg"
WIDTH, HEIGHT = 942, 344
BOX = (176, 84)
STYLE = """
text { font: 15px system-ui, sans-serif; fill: #1c2733; text-anchor: middle; }
.name { font-weight: 600; } .small { font-size: 13px; fill: #44515e; }
rect { fill: #ffffff; stroke: #6b7a89; stroke-width: 1.4; rx: 9; }
.page { fill: #f6f8fa; stroke: none; } .real { stroke: #0a7d5a; } .net { stroke: #b3541e; }
path { fill: none; stroke: #44515e; stroke-width: 1.8; marker-end: url(#tip); }
.back { stroke: #b3541e; } .true { stroke: #0a7d5a; } .tip { fill: #44515e; }
"""


@final
class Box(NamedTuple):
    x: int
    y: int
    name: str
    below: tuple[str, str]
    kind: str = ""

    def svg(self) -> str:
        width, height = BOX
        middle = self.x + width // 2
        rows = [
            f'<rect class="{self.kind}" x="{self.x}" y="{self.y}" '
            f'width="{width}" height="{height}"/>'
        ]
        rows.append(f'<text class="name" x="{middle}" y="{self.y + 28}">{self.name}</text>')
        for i, line in enumerate(self.below):
            rows.append(
                f'<text class="small" x="{middle}" y="{self.y + 51 + 19 * i}">{line}</text>'
            )
        return "\n".join(rows)


TOP, BOTTOM = 44, 204
BOXES = (
    Box(20, TOP, "scene", ("molecules, blinking,", "background")),
    Box(262, TOP, "PSF", ("from beads, a pupil,", "or a Gaussian")),
    Box(504, TOP, "camera", ("Poisson, gain,", "read noise, counts")),
    Box(746, TOP, "simulated frames", ("with their truth,", "without end")),
    Box(746, BOTTOM, "network", ("a U-Net over", "three frames"), "net"),
    Box(504, BOTTOM, "set posterior", ("p(set of molecules |", "frames), exact"), "net"),
    Box(262, BOTTOM, "likelihood", ("decides and refines,", "where the PSF is known"), "net"),
    Box(20, BOTTOM, "table of molecules", ("with uncertainties,", "checked on the movie"), "real"),
)
ARROWS = (
    ("M196,86 H256", ""),
    ("M438,86 H498", ""),
    ("M680,86 H740", ""),
    ("M834,128 V198", "back"),
    ("M834,318 V294", "true"),
    ("M746,246 H686", "back"),
    ("M504,246 H444", "back"),
    ("M262,246 H202", "true"),
)
WORDS = (
    (471, 26, "the forward model draws what the microscope would record"),
    (471, 320, "the inverse, learnt from it, is applied to real movies"),
    (800, 168, "train"),
    (834, 336, "a real movie"),
)


def svg() -> str:
    tip = (
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" '
        'markerHeight="8" orient="auto-start-reverse"><path class="tip" '
        'd="M0,0 L10,5 L0,10 z" style="stroke:none"/></marker></defs>'
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>From scene, PSF and camera to simulated frames; from frames to molecules</title>",
        f"<style>{STYLE}</style>",
        tip,
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>',
        *(f'<path class="{kind}" d="{way}"/>' for way, kind in ARROWS),
        *(box.svg() for box in BOXES),
        *(f'<text x="{x}" y="{y}">{words}</text>' for x, y, words in WORDS),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    with atomic(OUT) as unfinished:
        unfinished.write_text(svg(), encoding="utf-8")
