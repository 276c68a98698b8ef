"""The report of a localization: verdict, figure and topics of each movie, as a page and as JSON.

`subject` is what a report is about: a table, its figures and the files beside it.  Each topic
(`topic`) shows one side of it, or nothing where the data lack it; `movie` puts them together.
"""

from __future__ import annotations

from decode.reporting.movie import MovieReport, Report, report_on, unreadable
from decode.reporting.subject import Subject, read_subject, tables_in

__all__ = [
    "MovieReport",
    "Report",
    "Subject",
    "read_subject",
    "report_on",
    "tables_in",
    "unreadable",
]
