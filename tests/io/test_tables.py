"""Tables: what is written reads back to the printed digits, and tables of other programs land in
our conventions."""

from __future__ import annotations

import errno
import json
import math
import zipfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from decode.emitters import EmitterSet
from decode.io.hdf5 import MARGIN
from decode.io.tables import TableWriter, read_table, write_table, written_formats
from decode.io.tables.picasso import CHUNK
from decode.postprocess.filter import keep

FIELD = {"pixel_size_nm": 100.0, "n_frames": 50, "height_px": 64, "width_px": 96}

WRITTEN = [f"table{suffix}" for suffix in written_formats()]
"""a name for each format, those to come included"""


@pytest.fixture
def molecules(rng: torch.Generator) -> EmitterSet:
    """1000 molecules with every column."""
    n = 1000
    return EmitterSet(
        frame=torch.randint(0, 50, (n,), generator=rng).sort().values,
        xyz=(torch.rand(n, 3, generator=rng, dtype=torch.float64) - 0.02)
        * torch.tensor([9600, 6400, 900]),
        photons=torch.rand(n, generator=rng) * 5000,
        background=torch.rand(n, generator=rng) * 50,
        probability=torch.rand(n, generator=rng),
        xyz_sigma=torch.rand(n, 3, generator=rng) * 30 + 1,
        photons_sigma=torch.rand(n, generator=rng) * 99,
        xyz_95=torch.rand(n, 3, generator=rng) * 90 + 2,
        photons_95=torch.rand(n, generator=rng) * 300,
        correlation=2 * torch.rand(n, 6, generator=rng) - 1,
        ess=torch.rand(n, generator=rng),
        goodness=torch.rand(n, generator=rng) * 3,
        polished=torch.rand(n, generator=rng) < 0.5,
        metadata={**FIELD, "psf_sigma_nm": 130.0, "model": "a model", "shape": (1, 2)},
    )


def assert_close(read: EmitterSet, written: EmitterSet, **tolerances: float) -> None:
    assert read.columns().keys() == written.columns().keys()
    assert torch.equal(read.frame, written.frame)
    for name, column in written.columns().items():
        if name != "frame":
            difference = (read.columns()[name].double() - column.double()).abs().nan_to_num(0).max()
            assert difference <= tolerances[name], f"{name} is off by {difference}"
            assert torch.equal(read.columns()[name].isnan(), column.isnan())


# half a unit of the last digit printed, or of a float32
CSV_DIGITS = {"xyz": 5.001e-4, "xyz_sigma": 5.001e-4, "photons": 5.001e-3, "background": 5.001e-3}
CSV_DIGITS |= {
    "photons_sigma": 5.001e-3,
    "xyz_95": 5.001e-4,
    "photons_95": 5.001e-3,
    "probability": 5.001e-5,
    "correlation": 5.001e-5,
    "ess": 5.001e-5,
    "goodness": 5.001e-5,
    "polished": 0,
}
PICASSO_DIGITS = {
    "xyz": 5e-4,
    "xyz_sigma": 2e-6,
    "photons": 0,
    "background": 0,
    "photons_sigma": 0,
    "xyz_95": 0,
    "photons_95": 0,
    "probability": 0,
}
PICASSO_DIGITS |= {"correlation": 0, "ess": 0, "goodness": 0, "polished": 0}


@pytest.mark.parametrize(
    ("name", "digits"), [("table.csv", CSV_DIGITS), ("table.hdf5", PICASSO_DIGITS)]
)
@pytest.mark.parametrize("sigma", ["3d", "2d", "none"])
def test_tables_read_back(
    tmp_path: Path, molecules: EmitterSet, name: str, digits: dict[str, float], sigma: str
) -> None:
    if sigma == "2d":
        xyz_sigma = torch.cat([molecules.xyz_sigma[:, :2], torch.full((1000, 1), torch.nan)], 1)
        correlation = molecules.correlation.clone()
        correlation[:, [1, 2, 5]] = torch.nan
        molecules = replace(
            molecules,
            xyz=molecules.xyz * torch.tensor([1, 1, 0]),
            xyz_sigma=xyz_sigma,
            correlation=correlation,
        )
    if sigma == "none":
        molecules = replace(molecules, xyz_sigma=None, probability=None)
    write_table(molecules, tmp_path / name)
    assert_close(read_table(tmp_path / name), molecules, **digits)


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3),
    st.floats(0, 1e6),
    st.floats(0, 1),
)
@settings(max_examples=50)
def test_writing_what_was_read_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, xyz: list[float], photons: float, probability: float
) -> None:
    once, twice = (tmp_path_factory.mktemp("tables") / name for name in ("once.csv", "twice.csv"))
    molecule = EmitterSet(
        frame=torch.tensor([3]),
        xyz=torch.tensor([xyz], dtype=torch.float64),
        photons=torch.tensor([photons], dtype=torch.float64),
        probability=torch.tensor([probability], dtype=torch.float64),
    )
    write_table(molecule, once)
    write_table(read_table(once), twice)
    assert once.read_bytes() == twice.read_bytes()
    assert read_table(once).xyz[0].tolist() == [round(float(c), 3) for c in np.round(xyz, 3)]


def test_thunderstorm_text(tmp_path: Path) -> None:
    molecules = EmitterSet(
        frame=torch.tensor([0, 7]),
        xyz=torch.tensor([[50.0, 150.1254, -0.0001], [1e6, 2.0, 3.0]], dtype=torch.float64),
        photons=torch.tensor([1234.567, 1e6]),
        background=torch.tensor([10.0, 11.0]),
        probability=torch.tensor([0.98767, 1.0]),
        xyz_sigma=torch.tensor([[3.0, 4.0, torch.nan], [6.0, 8.0, torch.nan]]),
        metadata={"psf_sigma_nm": 130},
    )
    write_table(molecules, tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text().splitlines() == [
        '"id","frame","x [nm]","y [nm]","z [nm]","sigma [nm]","intensity [photon]",'
        '"offset [photon]","uncertainty_xy [nm]","uncertainty_x [nm]","uncertainty_y [nm]",'
        '"probability"',
        "1,1,50,150.125,0,130,1234.57,10,3.536,3,4,0.9877",
        "2,8,1000000,2,3,130,1000000,11,7.071,6,8,1",
    ]


def test_challenge_text(tmp_path: Path, molecules: EmitterSet) -> None:
    write_table(molecules[:1], tmp_path / "truth.csv", dialect="challenge")
    header, row = (tmp_path / "truth.csv").read_text().splitlines()
    assert header == "Ground-truth,frame,xnano,ynano,znano,intensity"
    assert row.startswith("1,1,")
    plain = EmitterSet(frame=molecules.frame, xyz=molecules.xyz, photons=molecules.photons)
    assert_close(read_table(tmp_path / "truth.csv"), plain[:1], **CSV_DIGITS)


def test_picasso_layout(tmp_path: Path) -> None:
    molecules = EmitterSet(
        frame=torch.tensor([4]),
        xyz=torch.tensor([[50.0, 250.0, -70.0]]),
        photons=torch.tensor([900.0]),
        xyz_sigma=torch.tensor([[10.0, 20.0, 30.0]]),
        metadata={**FIELD, "model": "a model", "shape": (1, 2)},
    )
    write_table(molecules, tmp_path / "table.hdf5")
    with h5py.File(tmp_path / "table.hdf5") as file:
        locs = file["locs"][...]
    # the centre of the first pixel is Picasso's origin
    assert {name: locs[name][0] for name in locs.dtype.names} == pytest.approx(
        {"frame": 4, "x": 0, "y": 2, "z": -70, "photons": 900, "lpx": 0.1, "lpy": 0.2, "lpz": 30}
    )
    assert locs.dtype["frame"] == np.uint32
    movie, facts = yaml.safe_load_all((tmp_path / "table.yaml").read_text())
    assert movie == {"Frames": 50, "Height": 64, "Width": 96}
    stated = {"model": "a model", "shape": [1, 2]}
    assert facts == {"Generated by": "decode", "Pixelsize": 100.0, **stated}
    assert read_table(tmp_path / "table.hdf5").metadata == {**FIELD, **stated}
    with (tmp_path / "table.yaml").open("a") as file:
        file.write("---\nGenerated by: Picasso Render\nDrift: 3\n")
    assert read_table(tmp_path / "table.hdf5").metadata == {**FIELD, **stated}


def test_picasso_needs_a_pixel_size_and_finds_the_extent(
    tmp_path: Path, molecules: EmitterSet
) -> None:
    with pytest.raises(ValueError, match="put pixel_size_nm into"):
        write_table(replace(molecules, metadata={}), tmp_path / "table.hdf5")
    assert list(tmp_path.iterdir()) == []
    inside = replace(molecules, xyz=molecules.xyz.clamp_min(0), metadata={"pixel_size_nm": 100})
    write_table(inside, tmp_path / "table.hdf5")
    metadata = read_table(tmp_path / "table.hdf5").metadata
    width, height, _ = torch.floor(inside.xyz / 100).amax(0).int() + 1
    assert metadata == {
        "pixel_size_nm": 100.0,
        "n_frames": 50,
        "height_px": int(height),
        "width_px": int(width),
    }


@pytest.mark.parametrize("name", WRITTEN)
def test_chunks_make_the_same_table_as_one_piece(
    tmp_path: Path, molecules: EmitterSet, name: str
) -> None:
    write_table(molecules, tmp_path / f"whole-{name}")
    with TableWriter(tmp_path / name, molecules.metadata) as table:
        for start, stop in ((0, 0), (0, 1), (1, 700), (700, 700), (700, 1000)):
            table.write(molecules[start:stop])
        assert not (tmp_path / name).exists()
    whole, chunks = read_table(tmp_path / f"whole-{name}"), read_table(tmp_path / name)
    assert all(
        torch.equal(whole.columns()[column], chunks.columns()[column]) for column in whole.columns()
    )
    if name == "table.csv":
        assert (tmp_path / name).read_bytes() == (tmp_path / f"whole-{name}").read_bytes()


@pytest.mark.parametrize("name", WRITTEN)
def test_an_error_leaves_no_file(tmp_path: Path, molecules: EmitterSet, name: str) -> None:
    def write(*chunks: EmitterSet, then: BaseException | None = None) -> None:
        with TableWriter(tmp_path / name, FIELD) as table:
            for chunk in chunks:
                table.write(chunk)
            if then is not None:
                raise then

    with pytest.raises(KeyboardInterrupt):
        write(molecules, then=KeyboardInterrupt())
    with pytest.raises(OSError, match="the disk is full"):
        write(molecules, then=OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(ValueError, match="but the table began with"):
        write(molecules, replace(molecules, background=None))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write_table(molecules, tmp_path / "absent" / name)
    with pytest.raises(ValueError, match=r"written as .csv or .hdf5 or"):
        write_table(molecules, tmp_path / "table.xls")


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("limit", [1, 1000, 2**20])
def test_a_limit_on_the_size_of_files_is_said(
    tmp_path: Path,
    molecules: EmitterSet,
    name: str,
    limit: int,
    limited_files: Callable[[int], AbstractContextManager[None]],
) -> None:
    """Without a crash of the process, as HDF5 would have it where it cannot write."""

    def write() -> None:
        with TableWriter(tmp_path / name, FIELD) as table:
            for i in range(200):  # all different, as Parquet stores equal chunks once
                table.write(replace(molecules, xyz=molecules.xyz + i))

    with limited_files(limit), pytest.raises(OSError, match=f"cannot write .*{name}: the limit"):
        write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pixel", [1e-320, 0.0, -100.0, math.nan, math.inf])
def test_a_pixel_that_cannot_be_is_said(
    tmp_path: Path, molecules: EmitterSet, pixel: float
) -> None:
    path = tmp_path / "table.hdf5"
    with pytest.raises(ValueError, match=r"table\.hdf5: pixel_size_nm is .*; state the side"):
        write_table(replace(molecules, metadata=FIELD | {"pixel_size_nm": pixel}), path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n_chunks", [0, 1, 40])
def test_a_picasso_table_is_no_longer_than_its_rows(
    tmp_path: Path, molecules: EmitterSet, n_chunks: int
) -> None:
    """What was reserved for it is given back, and is enough."""
    with TableWriter(tmp_path / "table.hdf5", FIELD) as table:
        for _ in range(n_chunks):
            table.write(EmitterSet.cat([molecules] * 20))
    with h5py.File(tmp_path / "table.hdf5") as file:
        rows = file["locs"]
        assert len(rows) == n_chunks * 20 * len(molecules)
        blocks = max(1, -(-len(rows) // CHUNK)) * bool(n_chunks)
        content = blocks * CHUNK * rows.dtype.itemsize
    size = (tmp_path / "table.hdf5").stat().st_size
    assert content <= size <= content + MARGIN


def test_an_old_table_survives_a_failed_one(tmp_path: Path, molecules: EmitterSet) -> None:
    write_table(molecules, tmp_path / "table.csv")
    before = (tmp_path / "table.csv").read_bytes()
    table = TableWriter(tmp_path / "table.csv")
    with pytest.raises(ZeroDivisionError), table:
        raise ZeroDivisionError
    assert (tmp_path / "table.csv").read_bytes() == before


@pytest.mark.parametrize("name", WRITTEN)
def test_an_empty_table_is_a_table(tmp_path: Path, name: str) -> None:
    write_table(EmitterSet.empty(FIELD), tmp_path / name)
    assert len(read_table(tmp_path / name)) == 0


@pytest.mark.parametrize(
    "header",
    [
        '"id","frame","x [nm]","y [nm]","z [nm]","intensity [photon]",'
        '"uncertainty_xy [nm]","uncertainty_z [nm]"',
        '"id","frame","x [um]","y [µm]","z [um]","intensity [photon]",'
        '"uncertainty [um]","uncertainty_z [um]"',
        'id,frame,x [px],y [px],z [nm],intensity [photon],"uncertainty [px]",uncertainty_z [nm]',
        '"id,""frame"",""x [nm]"",""y [nm]"",""z [nm]"",""intensity"",'
        '""uncertainty [nm]"",""uncertainty_z [nm]"""',
        "Ground-truth,frame,xnano,ynano,znano,intensity,uncertainty,uncertainty_z ",
        "\ufeffid,frame,x_nm,y_nm,z_nm,photons,uncertainty_nm,uncertainty_z_nm",
    ],
)
def test_dialects_of_csv_mean_the_same(tmp_path: Path, header: str) -> None:
    (unit,) = [unit for unit in ("[um]", "[px]") if unit in header] or ["[nm]"]
    lateral, axial = {"[um]": (1e-3, 1e-3), "[px]": (0.01, 1.0), "[nm]": (1.0, 1.0)}[unit]
    rows = [(150.0, 2500.0, -30.0, 800.0, 12.0, 25.0), (1.5, 0.5, 300.0, 700.0, 13.0, 26.0)]
    scales = (lateral, lateral, axial, 1, lateral, axial)
    lines = [
        f"{i},{i + 3}," + ",".join(repr(v * s) for v, s in zip(row, scales, strict=True))
        for i, row in enumerate(rows)
    ]
    (tmp_path / "table.csv").write_text("\n".join([header, *lines]), encoding="utf-8")
    table = read_table(tmp_path / "table.csv", pixel_size_nm=100)
    assert table.frame.tolist() == [2, 3]
    assert table.xyz.tolist() == [pytest.approx(row[:3]) for row in rows]
    assert table.photons.tolist() == [800, 700]
    assert table.xyz_sigma is not None
    assert table.xyz_sigma.tolist() == [pytest.approx([row[4], row[4], row[5]]) for row in rows]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("frame,x [px],y [px]\n1,2,3\n", "state the side of one"),
        ("frame,x [inch],y [inch]\n1,2,3\n", "lengths in 'inch'"),
        (
            "frame,x [nm],y [nm],intensity [e-]\n1,2,3,4\n",
            "intensities in 'e-'; export them in photons",
        ),
        ("frame,x [nm]\n1,2\n", "has no column y"),
        ("hello\nworld\n", "has no column frame and no column x and no column y"),
        ("frame,x [nm],y [nm]\n1,2\n", "Expected 3 columns, got 2"),
        ("frame,x [nm],y [nm]\n1,2,there\n", "invalid value 'there'"),
        ("frame,x [nm],y [nm]\n1,2,\n", "rows without a position"),
        ("frame,x [nm],y [nm]\n,2,3\n", "rows without a frame"),
        ("frame,x [nm],y [nm]\n0,2,3\n", "has frame 0, but its frames count from 1"),
        ("", "is empty"),
    ],
)
def test_what_is_no_csv_table_is_refused_in_a_line(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ValueError, match=match) as refused:
        read_table(tmp_path / "table.csv")
    assert "\n" not in str(refused.value)


HEADER = ["frame", "x [nm]", "y [nm]", "z [nm]", "chi2", "intensity [photon]", "uncertainty [nm]"]
ROWS = [(1, 1234.5, 2345.6, -120.0, 0.5, 1500.0, 9.5), (7, 100.25, 50.5, 0.0, 1.25, 800.0, 14.0)]


def text(
    header: list[str], rows: Sequence[Sequence[object]], *, delimiter: str = ",", decimal: str = "."
) -> str:
    lines = [delimiter.join(str(cell).replace(".", decimal) for cell in row) for row in rows]
    return "\n".join([delimiter.join(header), *lines, ""])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tabs.csv", text(HEADER, ROWS, delimiter="\t").encode()),
        ("tabs.xls", text(HEADER, ROWS, delimiter="\t").encode()),
        ("tabs.txt", text(HEADER, ROWS, delimiter="\t").encode("utf-16")),
        ("semicolons.csv", text(HEADER, ROWS, delimiter=";").encode()),
        ("decimal commas.csv", text(HEADER, ROWS, delimiter=";", decimal=",").encode()),
        (
            "quoted decimal commas.csv",
            text(HEADER, [[f'"{v}"' for v in r] for r in ROWS], decimal=",").encode(),
        ),
        ("last comma.csv", text(HEADER, [(*row, "") for row in ROWS]).encode()),
        ("last commas.csv", text([*HEADER, ""], [(*row, "") for row in ROWS]).encode()),
        (
            "rows are numbered.csv",
            text(["", *HEADER], [(i, *row) for i, row in enumerate(ROWS)]).encode(),
        ),
        ("comment.csv", b"# exported 2020\n\n" + text(HEADER, ROWS).encode()),
        (
            "round brackets.csv",
            text([h.replace("[", "(").replace("]", ")") for h in HEADER], ROWS).encode(),
        ),
        (
            "smap.csv",
            text(["frame", "xnm", "ynm", "znm", "chi2", "phot", "locprecnm"], ROWS).encode(),
        ),
        (
            "both units.csv",
            text([*HEADER, "x_px", "y_px"], [(*row, 3.0, 4.0) for row in ROWS]).encode(),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_texts_of_other_programs_and_spreadsheets_hold_the_same_table(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    table = read_table(tmp_path / name)
    assert table.frame.tolist() == [0, 6]
    assert table.xyz.tolist() == [[1234.5, 2345.6, -120.0], [100.25, 50.5, 0.0]]
    assert table.photons.tolist() == [1500.0, 800.0]
    assert table.xyz_sigma is not None
    assert table.xyz_sigma[:, :2].tolist() == [[9.5, 9.5], [14.0, 14.0]]
    assert table.others["chi2"].tolist() == [0.5, 1.25]


@pytest.mark.parametrize("index", [False, True])
def test_the_columns_of_picasso_are_in_its_pixels_whatever_the_file(
    tmp_path: Path, index: bool
) -> None:
    header = ["frame", "x", "y", "photons", "sx", "sy", "bg", "lpx", "lpy"]
    rows: list[tuple[object, ...]] = [(4, 0.0, 12.5, 900.0, 1.3, 1.4, 20.0, 0.1, 0.2)]
    if index:
        header, rows = ["", *header], [(0, *row) for row in rows]
    (tmp_path / "locs.csv").write_text(text(header, rows))
    with pytest.raises(ValueError, match="state the side of one"):
        read_table(tmp_path / "locs.csv")
    table = read_table(tmp_path / "locs.csv", pixel_size_nm=100)
    assert table.frame.tolist() == [4]
    assert table.xyz.tolist() == [[50.0, 1300.0, 0.0]]
    assert table.xyz_sigma is not None
    assert table.xyz_sigma[0, :2].tolist() == [10.0, 20.0]
    assert {name: values.tolist() for name, values in table.others.items()} == {
        "sx": [1.3],
        "sy": [1.4],
    }


def test_a_stated_pixel_size_stands_in_for_a_missing_one_and_contradicts_no_other(
    tmp_path: Path, molecules: EmitterSet
) -> None:
    write_table(molecules, tmp_path / "table.hdf5")
    written = read_table(tmp_path / "table.hdf5")
    assert torch.equal(read_table(tmp_path / "table.hdf5", pixel_size_nm=100).xyz, written.xyz)
    with pytest.raises(ValueError, match="pixels of 100 nm, not 130") as refused:
        read_table(tmp_path / "table.hdf5", pixel_size_nm=130)
    assert str(refused.value).startswith(str(tmp_path / "table.yaml"))
    (tmp_path / "table.yaml").unlink()
    assert torch.equal(read_table(tmp_path / "table.hdf5", pixel_size_nm=100).xyz, written.xyz)


@pytest.mark.parametrize("name", WRITTEN)
def test_columns_that_mean_nothing_here_stay_with_their_rows(
    tmp_path: Path, molecules: EmitterSet, name: str
) -> None:
    others = {
        "group": np.arange(1000) // 7,
        "chi2": np.linspace(0, 1, 1000),
        "sigma1 [nm]": np.full(1000, 1.5),
        "cell": np.array(["nucleus", "membrane"] * 500, dtype=object),
    }
    if name in ("table.smlm", "table.mat"):  # no texts in their columns
        del others["cell"]
    write_table(replace(molecules, others=others), tmp_path / name)
    read = read_table(tmp_path / name)
    for label, values in others.items():
        assert read.others[label].tolist() == values.tolist()
    write_table(keep(read, {"photons": (1000.0, None)}), tmp_path / f"kept-{name}")
    kept = read_table(tmp_path / f"kept-{name}")
    rows = np.flatnonzero(read.photons.numpy() >= 1000)
    assert 0 < len(rows) < 1000
    for label, values in others.items():
        assert kept.others[label].tolist() == values[rows].tolist()
    if name == "table.csv":  # rows keep the number by which another program knows them
        assert kept.others["id"].tolist() == (rows + 1).tolist()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("frame,x [nm],y [nm]\n1,1e14,3\n", "outside any field of view; correct its unit"),
        ("frame,x [nm],y [nm]\n1e30,1,3\n", "too large for any movie"),
        ("frame,x [nm],x [nm],y [nm]\n1,2,2,3\n", "has two columns 'x \\[nm\\]'"),
        ("frame,x [nm],x_nm,y [nm]\n1,2,2,3\n", "has two columns x: 'x \\[nm\\]', 'x_nm'"),
        ("frame_ix,x,y,z,phot\n0,2,2,3,9\n", "CSV table of DECODE"),
    ],
)
def test_what_a_text_cannot_mean_is_refused(tmp_path: Path, content: str, match: str) -> None:
    (tmp_path / "table.csv").write_text(content)
    with pytest.raises(ValueError, match=match):
        read_table(tmp_path / "table.csv")


def test_what_is_no_other_table_is_refused(tmp_path: Path, molecules: EmitterSet) -> None:
    write_table(molecules, tmp_path / "table.hdf5")
    (tmp_path / "table.yaml").write_text("Width: 3\n")
    with pytest.raises(ValueError, match="does not state Pixelsize"):
        read_table(tmp_path / "table.hdf5")
    (tmp_path / "table.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"put table.yaml"):
        read_table(tmp_path / "table.hdf5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["other"] = 1
    for name, match in (
        ("other.h5", "holds neither"),
        ("noise.h5", "not an HDF5"),
        ("noise.smlm", "not a table of molecules"),
    ):
        if name.startswith("noise"):
            (tmp_path / name).write_bytes(bytes(100))
        with pytest.raises(ValueError, match=match):
            read_table(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_table(tmp_path / "absent.csv")
    (tmp_path / "table.doc").touch()
    with pytest.raises(ValueError, match="tables are read from"):
        read_table(tmp_path / "table.doc")
    (tmp_path / "table.xls").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(100))
    with pytest.raises(ValueError, match="spreadsheet"):
        read_table(tmp_path / "table.xls")


@pytest.mark.parametrize("unit", ["px", "nm"])
def test_decode_files_have_x_along_rows_and_pixel_centres_at_integers(
    tmp_path: Path, unit: str
) -> None:
    with h5py.File(tmp_path / "table.h5", "w") as file:
        file.create_group("meta").attrs.update(
            {"xy_unit": unit, "px_size": np.array([100.0, 120.0])}
        )
        scale = np.array([1, 1, 1]) if unit == "px" else np.array([100, 120, 1])
        data = file.create_group("data")
        data["xyz"] = np.array([[2.0, 5.0, 33.0]]) * scale
        data["xyz_sig"] = np.array([[0.1, 0.2, 40.0]]) * scale
        data.update(
            {
                "phot": [700.0],
                "bg": [12.0],
                "frame_ix": [8],
                "prob": [0.9],
                "phot_sig": h5py.Empty("f"),
            }
        )
    table = read_table(tmp_path / "table.h5")
    assert table.frame.tolist() == [8]
    assert table.xyz[0].tolist() == pytest.approx([5.5 * 120, 2.5 * 100, 33])
    assert table.xyz_sigma is not None
    assert table.xyz_sigma[0].tolist() == pytest.approx([24, 10, 40])
    assert table.photons_sigma is None


def test_smlm_offsets_and_units_are_applied(tmp_path: Path) -> None:
    layout = {
        "headers": ["frame", "x", "y", "patch", "intensity", "x_precision", "y_precision"],
        "dtype": ["uint16", "uint16", "float32", "uint8", "float64", "float32", "float32"],
        "shape": [1, 1, 1, [2, 3], 1, 1, 1],
        "units": ["frame", "nm", "um", "", "photon", "nm", "nm"],
    }
    entry = {"name": "a.bin", "type": "table", "format": "f", "rows": 2, "offset": {"x": -40}}
    kinds = np.dtype(
        [
            ("f", "<u2"),
            ("x", "<u2"),
            ("y", "<f4"),
            ("p", "u1", (2, 3)),
            ("i", "<f8"),
            ("s", "<f4", 2),
        ]
    )
    records = np.array([(3, 100, 1.5, 0, 900, (8, 9)), (4, 200, 2.5, 0, 800, (7, 6))], kinds)
    with zipfile.ZipFile(tmp_path / "table.smlm", "w") as archive:
        archive.writestr("manifest.json", json.dumps({"formats": {"f": layout}, "files": [entry]}))
        archive.writestr("a.bin", records.tobytes())
    table = read_table(tmp_path / "table.smlm")
    assert table.frame.tolist() == [3, 4]
    assert table.xyz.tolist() == [[60, 1500, 0], [160, 2500, 0]]
    assert table.photons.tolist() == [900, 800]
    assert table.xyz_sigma is not None
    assert table.xyz_sigma[:, :2].tolist() == [[8, 9], [7, 6]]


def check_thunderstorm(table: EmitterSet) -> None:
    assert table.frame[0] == 2000
    assert table.xyz[0].tolist() == pytest.approx([1320.109670647555, 26344.7124618434, 0])
    assert table.xyz_sigma is not None
    assert table.xyz_sigma[0, :2].tolist() == pytest.approx([22.93255, 22.93255])


def check_decode(table: EmitterSet) -> None:
    assert table.frame[0] == 294
    assert table.xyz[0].tolist() == pytest.approx([139.39474 * 117, 0.35079171 * 127, 111.926346])
    assert table.probability is not None
    assert table.probability[0] == pytest.approx(0.6471875)


def check_picasso(table: EmitterSet) -> None:
    assert table.frame[0] == 2
    assert table.xyz[0].tolist() == pytest.approx([26.077694 * 130, 23.890852 * 130, 0])
    assert table.metadata == {
        "pixel_size_nm": 130.0,
        "n_frames": 5000,
        "height_px": 32,
        "width_px": 32,
    }


def check_smlm(table: EmitterSet) -> None:
    assert table.xyz[0].tolist() == pytest.approx([1653.34, 8879.34, 0], rel=1e-6)


@pytest.mark.parametrize(
    ("name", "n_rows", "check"),
    [
        ("tables/Thunderstorm_dstorm_data.csv", 19, check_thunderstorm),
        ("tables/decode_dstorm_data.h5", 96, check_decode),
        ("tables/raw_movie_locs.hdf5", 2399, check_picasso),
        ("tables/SMLM_dstorm_data.smlm", 10, check_smlm),
    ],
)
def test_tables_of_other_programs(
    shared_data: Path, name: str, n_rows: int, check: Callable[[EmitterSet], None]
) -> None:
    table = read_table(shared_data / name)
    assert len(table) == n_rows
    check(table)


def test_picasso_positions_lie_on_the_spots_of_their_movie(shared_data: Path) -> None:
    """The brightest pixel of a frame with one localization is the one that holds it: no half
    pixel, no swapped axes."""
    frames = np.fromfile(shared_data / "tables" / "testdata.raw", "<u2")
    table = read_table(shared_data / "tables" / "testdata_locs.hdf5")
    frames = frames.reshape(-1, 32, 32)
    single, count = np.unique(table.frame.numpy(), return_counts=True)
    hits, total = 0, 0
    for frame in single[(count == 1) & (single < len(frames))]:
        x, y, _ = (table.xyz[table.frame == frame][0] / 130).tolist()
        weights = frames[frame, int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3].astype(float)
        weights -= weights.min()
        offsets = np.arange(-2, 3) + 0.5
        centroid = (
            weights.sum(0) @ offsets / weights.sum() + int(x),
            weights.sum(1) @ offsets / weights.sum() + int(y),
        )
        hits += np.hypot(centroid[0] - x, centroid[1] - y) < 0.35
        total += 1
    assert total > 20
    assert hits > 0.9 * total


@pytest.mark.parametrize(("folder", "n_rows"), [("sim_2d", 25714), ("challenge2016_as", 67)])
def test_challenge_truths(shared_data: Path, folder: str, n_rows: int) -> None:
    truth = read_table(shared_data / folder / "activations.csv")
    assert len(truth) == n_rows
    assert truth.frame.min() == 0
    assert truth.columns().keys() == {"frame", "xyz", "photons"}
