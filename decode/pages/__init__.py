"""HTML pages that stand alone: one skeleton, one style, plots with the data behind them.

A page has a verdict and sections; a section has blocks (`blocks`, `plots`).  Style and script are
inside the page: it needs no network.
"""

from __future__ import annotations

from decode.pages.blocks import Block, Figures, Lines, Links, Picture, Words, rounded
from decode.pages.page import Chapter, Light, Page, Section, State, Summary, live_page, save_page
from decode.pages.plots import Axis, Bar, Bars, Chart, FieldMap, Mark, Trace

__all__ = [
    "Axis",
    "Bar",
    "Bars",
    "Block",
    "Chapter",
    "Chart",
    "FieldMap",
    "Figures",
    "Light",
    "Lines",
    "Links",
    "Mark",
    "Page",
    "Picture",
    "Section",
    "State",
    "Summary",
    "Trace",
    "Words",
    "live_page",
    "rounded",
    "save_page",
]
