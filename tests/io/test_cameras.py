"""Camera files: what is written reads back, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from decode.io.cameras import PRESETS, CameraFile, camera_presets, read_camera, write_camera
from decode.optics.camera import Camera

EMCCD = {
    "pixel_size_nm": 100,
    "baseline": 100,
    "e_per_adu": 45,
    "qe": 0.9,
    "read_noise_e": 74.4,
    "em_gain": 300,
    "spurious_e": 0.002,
}


def save(folder: Path, content: dict[str, object]) -> Path:
    path = folder / "camera.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def save_maps(folder: Path, **maps: np.ndarray) -> Path:
    for name, pixels in maps.items():
        tifffile.imwrite(folder / f"{name}.tif", pixels)
    return save(folder, {"pixel_size_nm": 160, "qe": 0.8} | {name: f"{name}.tif" for name in maps})


def test_an_emccd_reads_as_stated(tmp_path: Path) -> None:
    file = read_camera(save(tmp_path, EMCCD))
    assert file.pixel_size_nm == 100
    assert file.camera == Camera(
        baseline=100.0, e_per_adu=45.0, read_noise_e=74.4, qe=0.9, em_gain=300.0, spurious_e=0.002
    )


def test_maps_are_turned_into_electrons(tmp_path: Path) -> None:
    shape = (3, 5)
    offset = np.linspace(98, 103, 15, dtype=np.float32).reshape(shape)
    gain = np.linspace(1.8, 2.4, 15, dtype=np.float32).reshape(shape)
    variance = np.linspace(4, 900, 15, dtype=np.float32).reshape(shape)
    camera = read_camera(
        save_maps(tmp_path, offset_map=offset, gain_map=gain, read_variance_map=variance)
    ).camera
    torch.testing.assert_close(camera.baseline, torch.from_numpy(offset))
    # ADU per electron: 100 electrons stand for 100 * gain counts above the offset
    counts = torch.from_numpy(offset + 100 * gain)
    torch.testing.assert_close(
        camera.to_photons(counts), torch.full(shape, 100 / 0.8), rtol=1e-4, atol=0
    )
    # the spread of the counts in the dark is what the map says, in ADU^2
    read_noise_adu = torch.as_tensor(camera.read_noise_e) / torch.as_tensor(camera.e_per_adu)
    torch.testing.assert_close(read_noise_adu**2, torch.from_numpy(variance))


@given(
    st.floats(0, 500),
    st.floats(0.01, 100),
    st.floats(0, 100),
    st.floats(0.05, 1),
    st.one_of(st.none(), st.floats(1, 1000)),
    st.floats(10, 1000),
)
def test_numbers_written_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    baseline: float,
    e_per_adu: float,
    noise: float,
    qe: float,
    em_gain: float | None,
    pixel_size_nm: float,
) -> None:
    camera = Camera(
        baseline=baseline, e_per_adu=e_per_adu, read_noise_e=noise, qe=qe, em_gain=em_gain
    )
    path = tmp_path_factory.mktemp("camera") / "camera.yaml"
    write_camera(path, CameraFile(camera=camera, pixel_size_nm=pixel_size_nm))
    assert read_camera(path) == CameraFile(camera=camera, pixel_size_nm=pixel_size_nm)


@pytest.mark.parametrize(
    "e_per_adu", [0.5, torch.linspace(0.3, 0.7, 12).view(3, 4)], ids=["number", "map"]
)
def test_maps_written_read_back(
    tmp_path: Path, rng: torch.Generator, e_per_adu: float | torch.Tensor
) -> None:
    camera = Camera(
        baseline=100 + torch.rand(3, 4, generator=rng),
        e_per_adu=e_per_adu,
        read_noise_e=torch.rand(3, 4, generator=rng),
        qe=0.75,
    )
    write_camera(tmp_path / "camera.yaml", CameraFile(camera=camera, pixel_size_nm=100.0))
    again = read_camera(tmp_path / "camera.yaml").camera
    for name in ("baseline", "e_per_adu", "read_noise_e", "qe"):
        torch.testing.assert_close(getattr(again, name), getattr(camera, name))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"readnoise_e": 2}, "unknown key 'readnoise_e'; is it read_noise_e?"),
        ({"colour": "red"}, "unknown key 'colour'; the keys are pixel_size_nm"),
        ({"baseline": None}, "baseline is missing; state it, or offset_map in its place"),
        ({"pixel_size_nm": None}, "pixel_size_nm is missing"),
        ({"pixel_size_nm": 0}, "pixel_size_nm is 0, must be positive"),
        (
            {"pixel_size_nm": 0.1},
            "a pixel size of 0.1 nm is no microscope's (10 to 1000); state it in nm: 100, if",
        ),
        (
            {"pixel_size_nm": 16000},
            "a pixel size of 16000 nm is no microscope's (10 to 1000); state it in nm",
        ),
        ({"e_per_adu": 0}, "e_per_adu must be positive"),
        ({"em_gain": 0}, "em_gain must be positive"),
        ({"qe": 90}, "qe is a fraction"),
        ({"spurious_e": -1}, "spurious_e is -1, must not be negative"),
        ({"qe": "high"}, "qe is 'high', not a number"),
        ({"qe": True}, "qe is True, not a number"),
        ({"baseline": float("nan")}, "baseline is nan, not a number"),
        ({"offset_map": "offset.tif"}, "offset_map is 'offset.tif', and there is no such file"),
    ],
)
def test_a_wrong_key_or_value_is_named(
    tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    path = save(tmp_path, EMCCD | change)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read_camera(path)
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)


ONES = np.ones((4, 6), np.float32)


@pytest.mark.parametrize(
    ("maps", "sentence"),
    [
        ({"gain_map": 0 * ONES}, "gain_map .* holds 0, but must be positive everywhere"),
        ({"read_variance_map": -ONES}, "read_variance_map .* holds -1, but must be 0 or more"),
        ({"offset_map": np.nan * ONES}, "offset_map .* holds NaN"),
        ({"gain_map": ONES.T}, "maps differ in height x width .*gain_map 6 x 4"),
        ({"gain_map": np.ones((2, 4, 6), np.float32)}, "gain_map: .* must be one grey image"),
    ],
)
def test_a_wrong_map_is_named(tmp_path: Path, maps: dict[str, np.ndarray], sentence: str) -> None:
    good = {"offset_map": ONES, "gain_map": ONES, "read_variance_map": ONES}
    with pytest.raises(ValueError, match=sentence):
        read_camera(save_maps(tmp_path, **good | maps))


def test_a_number_and_a_map_of_the_same_are_refused(tmp_path: Path) -> None:
    path = save_maps(tmp_path, offset_map=ONES, gain_map=ONES, read_variance_map=ONES)
    path.write_text(path.read_text() + "baseline: 100\n")
    with pytest.raises(ValueError, match="baseline and offset_map state the same quantity"):
        read_camera(path)


@pytest.mark.parametrize("text", ["a: [", "just words", ""])
def test_a_file_that_is_no_camera_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="is not a"):
        read_camera(path)


def test_a_map_that_is_no_image_is_refused(tmp_path: Path) -> None:
    path = save_maps(tmp_path, offset_map=ONES, gain_map=ONES, read_variance_map=ONES)
    (tmp_path / "gain_map.tif").write_text("no image")
    with pytest.raises(ValueError, match=r"gain_map: .* is not a TIFF file"):
        read_camera(path)


def test_a_map_of_the_quantum_efficiency_has_no_place_in_the_file(tmp_path: Path) -> None:
    camera = Camera(baseline=0.0, e_per_adu=1.0, read_noise_e=1.0, qe=torch.full((3, 4), 0.5))
    with pytest.raises(ValueError, match="one number for qe"):
        write_camera(tmp_path / "camera.yaml", CameraFile(camera=camera, pixel_size_nm=100.0))
    assert list(tmp_path.iterdir()) == []


def test_the_maps_of_a_real_camera(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "storm_scmos_real"
    content = {
        "pixel_size_nm": 160,
        "offset_map": str(folder / "camera_offset_adu.tif"),
        "gain_map": str(folder / "camera_gain_adu_per_electron.tif"),
        "read_variance_map": str(folder / "camera_variance_adu2.tif"),
    }
    camera = read_camera(save(tmp_path, content)).camera
    read_noise_e = torch.as_tensor(camera.read_noise_e)
    assert read_noise_e.shape == (256, 256)
    # median read variance 5.7 ADU^2 at 2.1 ADU per electron
    assert float(read_noise_e.median()) == pytest.approx(5.7**0.5 / 2.1, rel=0.02)


def test_an_em_gain_for_a_file_without_one_is_refused(tmp_path: Path) -> None:
    """It would be taken for an EMCCD, whose light is reckoned in another way."""
    path = tmp_path / "scmos.yaml"
    path.write_text("pixel_size_nm: 100\nbaseline: 100\ne_per_adu: 0.5\nread_noise_e: 1.5\n")
    with pytest.raises(
        ValueError, match=r"scmos\.yaml is of a camera with no EM gain; leave --em-gain out"
    ):
        read_camera(path, em_gain=300)
    path.write_text(path.read_text() + "em_gain: 200\n")
    assert read_camera(path, em_gain=300).camera.em_gain == 300


@pytest.mark.parametrize("name", camera_presets())
def test_presets_are_cameras(name: str) -> None:
    """Each is said to be typical, and noise and light of what it writes are within reason."""
    text = (PRESETS / f"{name}.yaml").read_text()
    assert "Typical values" in text
    register = "EMCCD" in camera_presets()[name]
    with pytest.raises(
        ValueError,
        match=r"^the camera [\w.-]+ " + ("has an EM gain" if register else "states no pixel size"),
    ):
        read_camera(name)
    file = read_camera(name, pixel_size_nm=108, em_gain=200 if register else None)
    assert file.pixel_size_nm == 108
    if not register:
        with pytest.raises(ValueError, match="no EM gain"):
            read_camera(name, pixel_size_nm=108, em_gain=200)
    assert (file.camera.em_gain is None) != register
    assert 0.1 < float(1 / file.camera.photons_per_adu) < 100
    assert float(file.camera.noise_floor) ** 0.5 < 3


def test_a_file_goes_before_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path, EMCCD).rename("pco-edge-4.2")
    assert read_camera("pco-edge-4.2").camera.em_gain == 300


def test_a_misspelt_preset_is_recognised() -> None:
    with pytest.raises(FileNotFoundError, match=r"is it hamamatsu-orca-quest\?"):
        read_camera("hamamatsu-orca-qest")


def test_stated_numbers_replace_those_of_the_file(tmp_path: Path) -> None:
    file = read_camera(save(tmp_path, EMCCD), pixel_size_nm=160, em_gain=100)
    assert (file.pixel_size_nm, file.camera.em_gain) == (160, 100)
