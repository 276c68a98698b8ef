"""Files as microscopes write them: by their own library where it writes any, else by the
description of the format.

Each writer takes a folder and counts (time, channel, z, y, x), and returns the path to open.  The
channels are called `561` and `647`; the pixels have 110 nm, the exposure is 30 ms, where the format
states them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import tifffile
import yaml

Counts = npt.NDArray[np.uint16]
CHANNELS = ("561", "647")


def write_ome_tiff(folder: Path, counts: Counts) -> Path:
    path = folder / "movie.ome.tif"
    metadata = {
        "axes": "TCZYX",
        "Channel": {"Name": list(CHANNELS[: counts.shape[1]])},
        "PhysicalSizeX": 0.11,
        "PhysicalSizeY": 0.11,
        "Plane": {"ExposureTime": [0.03] * int(np.prod(counts.shape[:3]))},
    }
    tifffile.imwrite(path, counts, photometric="minisblack", metadata=metadata)
    return path


def write_ndtiff(folder: Path, counts: Counts) -> Path:
    from ndstorage import NDTiffDataset

    summary = {"PixelSize_um": 0.11, "ChNames": list(CHANNELS)}
    data = NDTiffDataset(str(folder), name="movie", summary_metadata=summary, writable=True)
    data.initialize(summary)
    for t, c, z in product(*map(range, counts.shape[:3])):
        place = {"time": t}
        if counts.shape[1] > 1:
            place |= {"channel": CHANNELS[c]}
        if counts.shape[2] > 1:
            place |= {"z": z}
        facts = {"PixelSizeUm": 0.11, "Exposure": 30.0, "Core-Camera": "Andor"}
        data.put_image(place, np.ascontiguousarray(counts[t, c, z]), facts)
    data.finish()
    data.close()
    return Path(data.path)


def write_zarr(folder: Path, counts: Counts, *, version: int = 3) -> Path:
    import zarr

    path = folder / "movie.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    group.create_array("0", data=counts, chunks=(4, 1, 1, *counts.shape[-2:]))
    axes = [
        {"name": "t", "type": "time", "unit": "second"},
        {"name": "c", "type": "channel"},
        *({"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"),
    ]
    scale = {"type": "scale", "scale": [1.0, 1.0, 0.05, 0.11, 0.11]}
    stated = {
        "multiscales": [
            {
                "axes": axes,
                "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
                "version": "0.4",
            }
        ],
        "omero": {"channels": [{"label": name} for name in CHANNELS[: counts.shape[1]]]},
    }
    group.attrs.update(stated if version == 2 else {"ome": stated})
    return path


def write_zarr_2(folder: Path, counts: Counts) -> Path:
    return write_zarr(folder, counts, version=2)


def write_ims(folder: Path, counts: Counts) -> Path:
    path = folder / "movie.ims"
    n_times, n_channels, depth, height, width = counts.shape

    def letters(value: object) -> npt.NDArray[np.bytes_]:
        return np.array([letter.encode() for letter in str(value)], "S1")

    with h5py.File(path, "w") as file:
        image = file.create_group("DataSetInfo/Image")
        for name, size in zip("XYZ", (width, height, depth), strict=True):
            image.attrs[name] = letters(size)
        for i, end in enumerate((0.11 * width, 0.11 * height, 0.05 * depth)):
            image.attrs[f"ExtMin{i}"], image.attrs[f"ExtMax{i}"] = letters(0), letters(end)
        image.attrs["Unit"] = letters("um")
        for c in range(n_channels):
            group = file.create_group(f"DataSetInfo/Channel {c}")
            group.attrs["Name"] = letters(CHANNELS[c])
        for t, c in product(range(n_times), range(n_channels)):
            name = f"DataSet/ResolutionLevel 0/TimePoint {t}/Channel {c}/Data"
            padded = np.pad(counts[t, c], ((0, 0), (0, 3), (0, 2)))
            file.create_dataset(
                name, data=padded, chunks=(1, *padded.shape[1:]), compression="gzip"
            )
    return path


def write_czi(folder: Path, counts: Counts, *, zstd: bool = False) -> Path:
    """Header, planes, metadata and directory, each a segment of 16 bytes of name and two of
    size."""
    path = folder / "movie.czi"

    def segment(name: bytes, content: bytes) -> bytes:
        return struct.pack("<16sqq", name, len(content), len(content)) + content

    def packed(plane: Counts) -> bytes:
        if not zstd:
            return plane.tobytes()
        import imagecodecs

        low_high = plane.reshape(-1).view(np.uint8).reshape(-1, 2).T.tobytes()
        return b"\x03\x01\x01" + bytes(imagecodecs.zstd_encode(low_high))

    def entry(place: tuple[int, ...], position: int) -> bytes:
        height, width = counts.shape[-2:]
        sizes = [("X", 0, width), ("Y", 0, height)]
        # the first time was cropped away
        sizes += [(name, at + 7 * (name == "T"), 1) for name, at in zip("TCZ", place, strict=True)]
        head = struct.pack("<2siqiiB5xi", b"DV", 1, position, 0, 6 * zstd, 0, len(sizes))
        return head + b"".join(
            struct.pack("<4siifi", name.encode(), start, size, 0.0, size)
            for name, start, size in sizes
        )

    content, entries = bytearray(544), []
    for place in product(*map(range, counts.shape[:3])):
        pixels, position = packed(counts[place]), len(content)
        entries.append(entry(place, position))
        begin = struct.pack("<iiq", 4, 0, len(pixels)) + entries[-1]
        content += segment(b"ZISRAWSUBBLOCK", begin.ljust(256, b"\0") + b"<M/>" + pixels)
    xml = (
        "<ImageDocument><Metadata><Information><Image><Dimensions><Channels>"
        + "".join(
            f'<Channel Name="{name}"><ExposureTime>30000000</ExposureTime></Channel>'
            for name in CHANNELS[: counts.shape[1]]
        )
        + "</Channels></Dimensions></Image></Information><Scaling><Items>"
        + "".join(f'<Distance Id="{axis}"><Value>1.1E-07</Value></Distance>' for axis in "XY")
        + "</Items></Scaling></Metadata></ImageDocument>"
    ).encode()
    metadata = len(content)
    content += segment(b"ZISRAWMETADATA", struct.pack("<ii248x", len(xml), 0) + xml)
    directory = len(content)
    content += segment(b"ZISRAWDIRECTORY", struct.pack("<i124x", len(entries)) + b"".join(entries))
    content[:32] = struct.pack("<16sqq", b"ZISRAWFILE", 512, 512)
    content[84:100] = struct.pack("<qq", directory, metadata)
    path.write_bytes(content)
    return path


def write_czi_zstd(folder: Path, counts: Counts) -> Path:
    return write_czi(folder, counts, zstd=True)


def write_lif(folder: Path, counts: Counts) -> Path:
    path = folder / "movie.lif"
    stored = np.ascontiguousarray(counts)
    n_times, n_channels, depth, height, width = stored.shape
    strides = dict(zip("TCZYX", stored.strides, strict=True))
    dimensions = [("X", 1, width), ("Y", 2, height), ("Z", 3, depth), ("T", 4, n_times)]
    xml = (
        '<LMSDataContainerHeader Version="2"><Element Name="experiment"><Children>'
        '<Element Name="Series001"><Data><Image><ImageDescription><Channels>'
        + "".join(
            '<ChannelDescription DataType="0" ChannelTag="0" Resolution="16" '
            'NameOfMeasuredQuantity="" Min="0" Max="65535" Unit="" LUTName="Gray" '
            f'IsLUTInverted="0" BytesInc="{c * strides["C"]}" BitInc="0"/>'
            for c in range(n_channels)
        )
        + "</Channels><Dimensions>"
        + "".join(
            f'<DimensionDescription DimID="{number}" NumberOfElements="{size}" Origin="0" '
            f'Length="{1.1e-7 * (size - 1)}" Unit="m" BytesInc="{strides[name]}" BitInc="0"/>'
            for name, number, size in dimensions
            if size > 1
        )
        + "</Dimensions></ImageDescription></Image></Data>"
        f'<Memory Size="{stored.nbytes}" MemoryBlockID="MemBlock_1"/></Element>'
        "</Children></Element></LMSDataContainerHeader>"
    ).encode("utf-16-le")
    name = "MemBlock_1".encode("utf-16-le")
    head = struct.pack("<IIBI", 0x70, len(xml) + 5, 0x2A, len(xml) // 2) + xml
    block = struct.pack("<IIBQBI", 0x70, len(name) + 14, 0x2A, stored.nbytes, 0x2A, len(name) // 2)
    path.write_bytes(head + block + name + stored.tobytes())
    return path


def write_spe(folder: Path, counts: Counts, *, version: float = 2.0) -> Path:
    path = folder / "movie.spe"
    frames = counts[:, 0, 0]
    n_frames, height, width = frames.shape
    header = bytearray(4100)
    for form, offset, value in (
        ("<f", 10, 0.03),
        ("<H", 42, width),
        ("<h", 108, 3),
        ("<H", 656, height),
        ("<i", 1446, n_frames),
        ("<h", 1510, 1),
        ("<f", 1992, version),
        ("<I", 2996, 0x01234567),
        ("<H", 4098, 0x5555),
    ):
        struct.pack_into(form, header, offset, value)
    if version < 3:
        path.write_bytes(bytes(header) + frames.tobytes())
        return path
    pixels = b"".join(frame.tobytes() + b"\xff" * 16 for frame in frames)  # two time stamps
    struct.pack_into("<Q", header, 678, len(header) + len(pixels))
    size = frames[0].nbytes
    xml = (
        '<SpeFormat version="3.0" xmlns="http://www.princetoninstruments.com/spe/2009">'
        f'<DataFormat><DataBlock type="Frame" count="{n_frames}" size="{size}" '
        f'stride="{size + 16}" pixelFormat="MonochromeUnsigned16"/></DataFormat></SpeFormat>'
    )
    path.write_bytes(bytes(header) + pixels + xml.encode())
    return path


def write_spe_3(folder: Path, counts: Counts) -> Path:
    return write_spe(folder, counts, version=3.0)


def write_sif(folder: Path, counts: Counts) -> Path:
    path = folder / "movie.sif"
    n_frames, height, width = counts[:, 0, 0].shape
    zeros, area = " ".join(["0"] * 16), f"1 {height} {width} 1"
    begin = [
        "Andor Technology Multi-Channel File",
        "65538 1",
        f"65559 0 0 1 1254330082 -70 \0 \0 \0 \x05 \0 0 0.03 0.031 0.031 1 \0 0.031 1e-07 0 1 "
        f"300 0 0 1e-08 {zeros} 5e-07 0",
        "DU897_BV ",
        f" {width} {height} 9",
        "movie.sif ",
        "65538 4",
        "user",
        "65538 \x01 \x02 \x03 \0 0 0",
        *["0"] * 8,
        "5 SR163",
        "65539 \x01 \0 \x01 \0 \x01 \0",
        *["0 1 0 0"] * 3,
        *["0", "16", "16"],
        "12",
    ]
    axes = "Pixel number6\nCounts12\nPixel number"
    end = [f"65541 {area} {n_frames} 1 {width * height * n_frames} {width * height}"]
    end += [f"65538 {area} 1 1 0", *map(str, range(n_frames))]
    text = "\n".join(begin) + "\n" + axes + "\n".join(end) + "\n"
    path.write_bytes(text.encode("latin-1") + counts[:, 0, 0].astype("<f4").tobytes())
    return path


def write_dax(folder: Path, counts: Counts) -> Path:
    path = folder / "movie.dax"
    n_frames, height, width = counts[:, 0, 0].shape
    path.write_bytes(counts[:, 0, 0].astype(">u2").tobytes())
    path.with_suffix(".inf").write_text(
        "binning = 1 x 1\ndata type = 16 bit integers (binary, big endian)\n"
        f"frame dimensions = {width} x {height}\nnumber of frames = {n_frames}\n"
    )
    return path


def write_picasso(folder: Path, counts: Counts) -> Path:
    path = folder / "movie.raw"
    n_frames, height, width = counts[:, 0, 0].shape
    path.write_bytes(counts[:, 0, 0].astype("<u2").tobytes())
    stated = {
        "Byte Order": "<",
        "Data Type": "uint16",
        "Frames": n_frames,
        "Height": height,
        "Width": width,
        "Camera": "Andor",
        "Pixelsize": 110,
        "Camera.Integration Time": 30,
    }
    path.with_suffix(".yaml").write_text(yaml.safe_dump(stated))
    return path


WRITERS: dict[str, Callable[[Path, Counts], Path]] = {
    "ome-tiff": write_ome_tiff,
    "ndtiff": write_ndtiff,
    "zarr": write_zarr,
    "zarr-2": write_zarr_2,
    "ims": write_ims,
    "czi": write_czi,
    "czi-zstd": write_czi_zstd,
    "lif": write_lif,
    "spe": write_spe,
    "spe-3": write_spe_3,
    "sif": write_sif,
    "dax": write_dax,
    "picasso": write_picasso,
}
LIBRARIES = {
    "ndtiff": "ndstorage",
    "zarr": "zarr",
    "zarr-2": "zarr",
    "lif": "liffile",
    "sif": "sif_parser",
    "czi-zstd": "imagecodecs",
}
"""that not all installations have"""
SEVERAL = ("ome-tiff", "ndtiff", "zarr", "zarr-2", "ims", "czi", "czi-zstd", "lif")
"""formats whose files hold several channels and planes"""
