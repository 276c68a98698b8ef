"""What holds for every format, those to come included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from decode import EmitterSet, read_table, write_table
from decode.io.formats import Format, format_of, recognized
from decode.io.tables import TableWriter, table_formats, written_formats
from decode.io.tables.format import TableFormat

WRITABLE = [each for each in table_formats() if each.write is not None]


def phantom() -> EmitterSet:
    """Unlike in every axis, quantity and frame; the places are exact in all formats' digits."""
    return EmitterSet(
        frame=torch.tensor([0, 2, 7]),
        xyz=torch.tensor(
            [[125.0, 1150.0, -250.0], [1500.5, 50.25, 0.0], [6399.0, 3100.0, 480.0]],
            dtype=torch.float64,
        ),
        photons=torch.tensor([512.5, 1000.0, 2048.0], dtype=torch.float64),
        metadata={"pixel_size_nm": 100.0, "n_frames": 8, "width_px": 64, "height_px": 32},
    )


@pytest.mark.parametrize("kind", WRITABLE, ids=lambda kind: kind.name)
def test_a_table_comes_back_with_its_axes_origin_units_and_frames(
    kind: TableFormat, tmp_path: Path
) -> None:
    path = tmp_path / f"table{(*kind.suffixes, '.bin')[0]}"
    write_table(phantom(), path, dialect=kind.name)
    again = read_table(path)
    assert again.frame.tolist() == phantom().frame.tolist()
    torch.testing.assert_close(again.xyz, phantom().xyz, atol=1e-3, rtol=0)
    torch.testing.assert_close(again.photons, phantom().photons, atol=0, rtol=1e-6)


@pytest.mark.parametrize("kind", WRITABLE, ids=lambda kind: kind.name)
def test_a_table_is_known_by_its_content_whatever_its_name(
    kind: TableFormat, tmp_path: Path
) -> None:
    path = tmp_path / "table.bin"
    write_table(phantom(), path, dialect=kind.name)
    found = recognized(path, table_formats())
    assert found is not None
    assert found.name == kind.name
    able = [each.name for each in table_formats() if each.recognizes(path) and not each.general]
    assert able in ([kind.name], [])


@pytest.mark.parametrize("kind", WRITABLE, ids=lambda kind: kind.name)
def test_a_table_may_grow_and_may_be_empty(kind: TableFormat, tmp_path: Path) -> None:
    whole = phantom()
    with TableWriter(tmp_path / "grown", whole.metadata, dialect=kind.name) as table:
        for i in range(len(whole)):
            table.write(whole[i : i + 1])
    assert read_table(tmp_path / "grown").frame.tolist() == whole.frame.tolist()
    write_table(EmitterSet.empty(whole.metadata), tmp_path / "none", dialect=kind.name)
    assert len(read_table(tmp_path / "none")) == 0


@pytest.mark.parametrize("kind", WRITABLE, ids=lambda kind: kind.name)
def test_a_table_that_fails_leaves_no_file(kind: TableFormat, tmp_path: Path) -> None:
    def fail() -> None:
        with TableWriter(tmp_path / "table", phantom().metadata, dialect=kind.name) as table:
            table.write(phantom())
            raise RuntimeError("the camera stopped")

    with pytest.raises(RuntimeError, match="the camera stopped"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_names_and_suffixes_to_write_are_one_format_each() -> None:
    names = [each.name for each in table_formats()]
    assert len({*names}) == len(names)
    named = [each for each in WRITABLE if each.suffixes]
    assert len(written_formats()) == len(named)


def test_a_format_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no format 'excel' to write; choose from"):
        write_table(phantom(), tmp_path / "table.csv", dialect="excel")


def kind(
    name: str, mark: bytes, *, suffixes: tuple[str, ...] = (), general: bool = False
) -> TableFormat:
    def read(path: Path, pixel_size_nm: float | None) -> EmitterSet:
        raise NotImplementedError

    return Format(
        name=name,
        title=name,
        content=f"{name}'s mark",
        suffixes=suffixes,
        recognizes=lambda path: path.read_bytes().startswith(mark),
        read=read,
        general=general,
    )


def test_the_content_decides_then_the_suffix_and_general_formats_are_asked_last(
    tmp_path: Path,
) -> None:
    general = kind("any", b"a", suffixes=(".a", ".x"), general=True)
    special, other = kind("ab", b"ab", suffixes=(".a", ".b")), kind("cd", b"cd", suffixes=(".b",))
    formats = (general, special, other)

    def chosen(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return format_of(tmp_path / name, formats, what="files").name

    assert chosen("file.x", b"abc") == "ab"
    assert chosen("file.b", b"acb") == "any"
    assert chosen("FILE.A", b"none") == "any"
    with pytest.raises(ValueError, match="holds neither ab's mark nor cd's mark"):
        chosen("file.b", b"none")
    with pytest.raises(ValueError, match=r"files are read from .a, .x, .b files"):
        chosen("file.c", b"none")
