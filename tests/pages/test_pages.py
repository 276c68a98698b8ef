"""A page stands alone, escapes what users write, and holds the data behind its plots; in a browser,
nothing overlaps, pointing at a plot tells its values, and tables are sorted."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decode.pages import (
    Axis,
    Bar,
    Bars,
    Block,
    Chapter,
    Chart,
    FieldMap,
    Figures,
    Light,
    Lines,
    Mark,
    Page,
    Section,
    Summary,
    Trace,
    Words,
    save_page,
)
from decode.pages.page import TEMPLATES

HISTOGRAM = Chart(
    title="Photons",
    x=Axis(label="photons"),
    y=Axis(label="number", zero=True),
    traces=(Trace(name="photons", x=(0.0, 10.0, 20.0, 40.0), y=(5.0, 7.0, 1.0), style="steps"),),
    marks=(Mark(label="median 12", x=12.0),),
)
MANY = replace(
    HISTOGRAM,
    traces=(Trace(name="photons", x=(0.0, 1e4, 2e5), y=(1.4e6, 7.0), style="steps"),),
)
LAW = Chart(
    title="Law",
    x=Axis(label="photons", log=True),
    y=Axis(label="precision (nm)", log=True),
    traces=(
        Trace(name="seen", x=(100.0, 1e4), y=(30.0, 3.0), error=(1.0, 0.5), style="points"),
        Trace(name="law", x=(100.0, 1000.0, 1e4), y=(30.0, 30 / 10**0.5, 3.0)),
    ),
)
MAP = FieldMap(
    title="Field", values=np.array([[0.0, 1.0], [2.0, 3.0]]), unit="per µm²", pixel_nm=100.0
)
BARS = Bars(title="Budget", label="nm²", bars=(Bar(name="a", value=4.0), Bar(name="b", value=None)))


def chapter(*blocks: Block, title: str = "", state: str = "good") -> Chapter:
    return Chapter(
        title=title,
        state=state,  # type: ignore[arg-type]
        verdict=("Nothing speaks against these molecules.", "Figures of a kind."),
        lights=tuple(
            Light(name=name, state="good", sentence="as it should be", section="plots")
            for name in ("checks", "precision", "resolution")
        ),
        sections=(Section(name="plots", title="Plots", blocks=blocks),),
    )


def one(*blocks: Block) -> Page:
    return Page(title="Report", chapters=(chapter(*blocks),))


def several() -> Page:
    rows = (("1,200", "9.5", "drift"), ("80", "", ""), ("310", "11.25", "photons"))
    states = ("good", "bad", "look")
    chapters = tuple(
        chapter(HISTOGRAM, title=f"movie {i}", state=state) for i, state in enumerate(states)
    )
    summary = Summary(columns=("localizations", "FRC (nm)", "limited by"), rows=rows)
    return Page(title="Report on 3 movies", chapters=chapters, summary=summary)


def data_of(html: str) -> list[dict[str, Any]]:
    found = re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    return [json.loads(text) for text in found]


class Balance(HTMLParser):
    """Elements that are open, of those that need an end."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("page", [one(HISTOGRAM, LAW, MAP, BARS), several()])
def test_every_element_of_a_page_ends(page: Page) -> None:
    parser = Balance()
    parser.feed(re.sub(r"<(path|circle|image)([^>]*)/>", r"<\1\2></\1>", page.html()))
    assert not parser.open


def test_a_page_names_nothing_of_the_network() -> None:
    sources = "".join(path.read_text() for path in TEMPLATES.iterdir())
    for text in (sources, one(HISTOGRAM, MAP).html()):
        assert not re.search(r"https?:|<link|@import|url\(|src=\"(?!data:|\{)", text)


def test_a_page_without_plots_has_no_script() -> None:
    assert "<script" not in one(Words(("Words.",)), Figures(rows=(("a", "1"),))).html()


def test_what_users_write_is_never_markup() -> None:
    evil = '<img onerror="x">&'
    page = one(
        Words((evil,)),
        Figures(rows=((evil, "1"),), columns=(evil, "n"), caption=evil),
        Lines((evil,)),
        Chart(
            title=evil,
            x=Axis(label=evil),
            y=Axis(label=evil),
            traces=(Trace(name="</script>" + evil, x=(0.0, 1.0), y=(0.0, 1.0)),),
        ),
    ).html()
    assert "<img" not in page
    (data,) = data_of(page)
    assert data["traces"][0]["name"] == "</script>" + evil


def test_commands_in_a_sentence_are_set_as_code() -> None:
    page = one(Words(("run `decode <x>`: 2 +- 1 nm",))).html()
    assert "run <code>decode &lt;x&gt;</code>: 2 ± 1 nm" in page


def test_the_data_behind_a_plot_are_its_numbers() -> None:
    chart, law, field, bars = data_of(one(HISTOGRAM, LAW, MAP, BARS).html())
    assert chart["traces"][0]["x"] == [0, 10, 20, 40]
    assert chart["traces"][0]["y"] == [5, 7, 1]
    assert law["traces"][0]["error"] == [1, 0.5]
    assert field["values"] == [[0, 1], [2, 3]]
    assert bars["bars"] == [["a", 4, None], ["b", None, None]]


def test_places_on_the_paper_are_in_proportion_to_the_values() -> None:
    across, up = HISTOGRAM.across, HISTOGRAM.up
    assert (across(0.0), across(40.0)) == (across.start, across.stop)
    assert across(20.0) == pytest.approx((across.start + across.stop) / 2, abs=0.01)
    assert up(0.0) == up.start  # an axis that begins at 0 has no margin below
    # decades are equally long
    assert LAW.across(1000.0) == pytest.approx((LAW.across.start + LAW.across.stop) / 2, abs=0.01)


def test_what_is_no_number_and_what_is_one_value_are_drawn_all_the_same() -> None:
    nan = float("nan")
    flat = Trace(name="flat", x=(1.0, 1.0), y=(2.0, 2.0))
    broken = Trace(name="broken", x=(1.0, 2.0, 3.0), y=(1.0, nan, 3.0))
    for trace in (flat, broken):
        chart = Chart(title="t", x=Axis(label="x"), y=Axis(label="y"), traces=(trace,))
        html = one(chart).html()
        assert "nan" not in html
        assert data_of(html)[0]["traces"][0]["y"][0] == trace.y[0]


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overlaps_or_sticks_out(width: int, browser: Any, tmp_path: Path) -> None:
    wide = Figures(rows=tuple((f"a name of some length {i}", "1.25", "x" * 40) for i in range(3)))
    for page in (one(HISTOGRAM, MANY, wide, LAW, MAP, BARS), several()):
        save_page(page, tmp_path / "page.html")
        seen = browser.layout(tmp_path / "page.html", width=width)
        assert seen["width"] == width
        assert seen["needed"] <= width
        assert seen["overlaps"] == []


def test_pointing_at_a_plot_tells_its_values(browser: Any, tmp_path: Path) -> None:
    save_page(one(HISTOGRAM, LAW, MAP), tmp_path / "page.html")
    told = browser.run(
        tmp_path / "page.html",
        """
        const told = [...document.querySelectorAll("figure.plot")].map((figure, i) => {
          const svg = figure.querySelector("svg"), box = svg.getBoundingClientRect();
          const [x, y] = [[0.5, 0.5], [0.96, 0.5], [0.75, 0.25]][i];
          svg.dispatchEvent(new PointerEvent("pointermove", {
            clientX: box.left + x * box.width, clientY: box.top + y * box.height}));
          return figure.querySelector("output").textContent;
        });
        return told;
        """,
    )
    across = HISTOGRAM.across
    x = 40 * (HISTOGRAM.width / 2 - across.start) / (across.stop - across.start)
    assert told[0] == f"photons: {x:.4g}\nnumber: 7"
    assert told[1] == "photons: 10,000\nseen: 3 ± 0.5\nlaw: 3"
    assert told[2] == "x: 150 nm, y: 50 nm\n1 per µm²"


def test_the_button_saves_the_numbers_as_csv(browser: Any, tmp_path: Path) -> None:
    save_page(one(HISTOGRAM, BARS), tmp_path / "page.html")
    texts = browser.run(
        tmp_path / "page.html",
        """
        const blobs = [];
        URL.createObjectURL = blob => { blobs.push(blob); return "#"; };
        for (const button of document.querySelectorAll(".csv")) button.click();
        return Promise.all(blobs.map(blob => blob.text()));
        """,
    )
    histogram, bars = (text.splitlines() for text in texts)
    assert histogram[0] == "trace,photons,end of bin,number,standard deviation"
    assert histogram[1:] == ["photons,0,10,5,", "photons,10,20,7,", "photons,20,40,1,"]
    assert bars[1:] == ["a,4,", "b,,"]


def test_several_movies_are_sorted_hidden_and_opened(browser: Any, tmp_path: Path) -> None:
    save_page(several(), tmp_path / "page.html")
    seen = browser.run(
        tmp_path / "page.html",
        """
        const table = document.querySelector(".sortable"), heads = table.tHead.rows[0].cells;
        const names = () => [...table.tBodies[0].rows].filter(row => !row.hidden)
          .map(row => row.cells[1].textContent);
        const orders = [];
        for (const i of [2, 2, 3, 3, 0]) { heads[i].click(); orders.push(names()); }
        const box = document.querySelector(".columns input[value='3']");
        box.click();
        const search = document.querySelector("input[type=search]");
        search.value = "movie 1"; search.dispatchEvent(new Event("input"));
        location.hash = "#plots-3";
        await new Promise(done => setTimeout(done, 50));
        return {orders, left: names(), column: table.rows[1].cells[3].hidden,
          open: [...document.querySelectorAll(".chapter")].map(chapter => chapter.open),
          hidden: [...document.querySelectorAll(".chapter")].map(chapter => chapter.hidden)};
        """,
    )
    first, second, third = "movie 0", "movie 1", "movie 2"
    assert seen["orders"] == [
        [second, third, first],
        [first, third, second],
        [first, third, second],  # an empty cell is last, whichever way is up
        [third, first, second],
        [second, third, first],
    ]
    assert seen["left"] == [second]
    assert seen["column"] is True
    assert seen["open"] == [False, False, True]
    assert seen["hidden"] == [True, False, True]
