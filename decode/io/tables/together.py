"""Tables that grow together: the molecules of one movie in several formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, final

from decode.emitters import EmitterSet
from decode.errors import in_plain_words
from decode.io.tables import TableWriter

__all__ = ["TableWriters"]


@final
class TableWriters:
    """Tables that grow together; a context manager.

    They are written in a thread of their own, while the caller goes on.  A table that cannot be
    written is dropped, and the others continue.  As with `TableWriter`, files appear when the block
    ends well.

    Args:
        paths: files to write; suffixes determine the formats.
        metadata: as for `TableWriter`.
    """

    def __init__(self, paths: Sequence[Path], metadata: Mapping[str, object]) -> None:
        self.written: tuple[Path, ...] = ()
        """the complete tables, at the end"""
        self.failures: list[str] = []
        """a sentence on each table that was given up"""
        self._open = {path: TableWriter(path, metadata) for path in paths}
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            for table in self._open.values():
                opened.enter_context(table)
            opened.pop_all()
        return self

    def write(self, molecules: EmitterSet) -> None:
        """Append molecules to every table, once those before are written.

        Raises:
            OSError: if the last table was given up.
        """
        self._wait()
        self._writing = self._thread.submit(self._write, molecules)

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, molecules: EmitterSet) -> None:
        for path, table in [*self._open.items()]:
            try:
                table.write(molecules)
            except OSError as error:
                self._close(path, error)
        if self.failures and not self._open:
            raise OSError("; ".join(self.failures))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        late: BaseException | None = None
        try:
            self._wait()
        except Exception as of_last_write:
            late = of_last_write
        self._thread.shutdown()
        for path in [*self._open]:
            self._close(path, error or late)
        if late is not None and error is None:
            raise late

    def _close(self, path: Path, error: BaseException | None) -> None:
        """Keep the file, or delete it after an error."""
        try:
            self._open.pop(path).__exit__(type(error) if error else None, error, None)
        except OSError as named:
            error = named
        if isinstance(error, OSError):
            self.failures.append(in_plain_words(error))
        elif error is None:
            self.written += (path,)
