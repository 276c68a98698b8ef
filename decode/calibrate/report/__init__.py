"""The report of a calibration of the PSF: a verdict, pictures, and a page with all figures.

`evidence` holds what the beads show, `verdict` states it in sentences, `pictures` draws it,
`tables` lists its figures, and `page` puts all of them on one HTML page.
"""

from __future__ import annotations

from decode.calibrate.report.page import save_report
from decode.calibrate.report.pictures import Drawn, draw_pictures, save_figure
from decode.calibrate.report.verdict import verdict

__all__ = ["Drawn", "draw_pictures", "save_figure", "save_report", "verdict"]
