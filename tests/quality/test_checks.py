"""Checks after a localization: movies that fit their model, PSF and camera pass, others do not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from decode.emitters import EmitterSet, Facts
from decode.io.movies import open_array
from decode.io.tables import read_table, write_table
from decode.optics.camera import Camera
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import PSF, render
from decode.optics.pupil import PupilPSF
from decode.quality.checks import checks_of
from decode.quality.evidence import Evidence
from decode.quality.sample import Sample

CAMERA = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5, qe=0.8)
GAUSSIAN = GaussianPSF(130.0, pixel_size_nm=100.0)
FRAMES, SIDE = 40, 48
WHOLE = (slice(0, SIDE), slice(0, SIDE))


def molecules(*, depth_nm: float, seed: int = 1) -> EmitterSet:
    """One in each cell of 16 x 16 pixels, in every frame elsewhere."""
    rng = torch.Generator().manual_seed(seed)
    cells = torch.cartesian_prod(torch.arange(FRAMES), *[torch.arange(0, SIDE, 16)] * 2)
    place = (cells[:, 1:] + 6 + 4 * torch.rand(len(cells), 2, generator=rng)) * 100.0
    z = depth_nm * (2 * torch.rand(len(cells), 1, generator=rng) - 1)
    photons = 2000 + 2000 * torch.rand(len(cells), generator=rng)
    return EmitterSet(frame=cells[:, 0], xyz=torch.cat([place, z], 1), photons=photons)


def filmed(found: EmitterSet, psf: PSF, camera: Camera = CAMERA) -> torch.Tensor:
    light = render(
        psf,
        frame=found.frame,
        xyz=found.xyz,
        photons=found.photons,
        n_frames=FRAMES,
        shape=(SIDE, SIDE),
    )
    return camera.sample(light.detach() + 15, torch.Generator().manual_seed(2))


def evidence_of(
    adu: torch.Tensor,
    found: EmitterSet,
    psf: PSF,
    camera: Camera = CAMERA,
    *,
    axial: bool = False,
    chunk: int = FRAMES,
) -> Evidence:
    sample = Sample(open_array(adu.numpy()), psf, camera, region=WHOLE, axial=axial)
    for start in range(0, FRAMES, chunk):
        own = (found.frame >= start) & (found.frame < start + chunk)
        sample.see(found[own], min(FRAMES, start + chunk))
    return sample.evidence()


def first_failed(evidence: Evidence) -> str:
    check = checks_of(evidence)[0]
    return check.name if check.failed else ""


def test_a_movie_that_fits_passes_all_checks_chunk_by_chunk() -> None:
    found = molecules(depth_nm=0.0)
    adu = filmed(found, GAUSSIAN)
    evidence = evidence_of(adu, found, GAUSSIAN)
    assert first_failed(evidence) == ""
    assert evidence.n_lone > 100
    assert evidence.misfit < 0.02
    assert abs(evidence.width - 1) < 0.01
    assert abs(evidence.noise - 1) < 0.03
    in_parts = evidence_of(adu, found, GAUSSIAN, chunk=8)
    assert abs(in_parts.noise - evidence.noise) < 1e-3


@pytest.mark.parametrize("factor", [0.8, 0.95, 1.05, 1.2])
@pytest.mark.parametrize("sigma_nm", [130.0, 165.0])
def test_the_width_that_is_found_is_that_of_the_images(sigma_nm: float, factor: float) -> None:
    found = molecules(depth_nm=0.0)
    true = GaussianPSF(sigma_nm, pixel_size_nm=100.0)
    stated = GaussianPSF(sigma_nm * factor, pixel_size_nm=100.0)
    evidence = evidence_of(filmed(found, true), found, stated)
    assert abs(evidence.width * factor - 1) < 0.025
    assert first_failed(evidence) == ("PSF width" if abs(factor - 1) > 0.1 else "")


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_a_wrong_gain_shows_in_the_noise_by_as_much(factor: float) -> None:
    found = molecules(depth_nm=0.0)
    stated = replace(CAMERA, e_per_adu=0.5 * factor)
    brighter = replace(found, photons=found.photons * factor)
    evidence = evidence_of(filmed(found, GAUSSIAN), brighter, GAUSSIAN, stated)
    assert first_failed(evidence) == "camera noise"
    assert abs(evidence.noise / factor - 1) < 0.1


def test_rings_of_molecules_are_no_noise() -> None:
    found = molecules(depth_nm=0.0)
    bright = replace(found, photons=found.photons * 8)
    ring = GaussianPSF(450.0, pixel_size_nm=100.0, patch_px=35)
    emccd = replace(CAMERA, em_gain=100.0, e_per_adu=30.0, read_noise_e=60.0)
    light = [
        render(
            psf,
            frame=bright.frame,
            xyz=bright.xyz,
            photons=bright.photons * share,
            n_frames=FRAMES,
            shape=(SIDE, SIDE),
        ).detach()
        for psf, share in ((GAUSSIAN, 1.0), (ring, 0.1))
    ]
    adu = emccd.sample(torch.stack(light).sum(0) + 5, torch.Generator().manual_seed(2))
    assert abs(evidence_of(adu, bright, GAUSSIAN, emccd).noise - 1) < 0.05


@pytest.mark.parametrize(("share", "low", "high"), [(0.1, 0.0, 0.02), (0.5, 0.4, 0.5)])
def test_spots_of_little_light_are_not_missed_molecules(
    share: float, low: float, high: float
) -> None:
    found = molecules(depth_nm=0.0)
    beside = found.xyz + torch.tensor([800.0, 0.0, 0.0])
    others = replace(found, xyz=beside, photons=found.photons * share)
    adu = filmed(EmitterSet.cat([found, others]).sorted_by_frame(), GAUSSIAN)
    assert low <= evidence_of(adu, found, GAUSSIAN).missed <= high


@pytest.mark.parametrize(("factor", "expected"), [(1.2, 0.0), (1.6, 1.0)])
def test_molecules_that_lack_little_light_are_not_empty(factor: float, expected: float) -> None:
    found = molecules(depth_nm=0.0)
    stated = replace(found, photons=found.photons * factor)
    assert abs(evidence_of(filmed(found, GAUSSIAN), stated, GAUSSIAN).empty - expected) < 0.02


def test_a_dim_background_is_steady_though_its_median_jumps_by_whole_photons() -> None:
    camera = Camera(baseline=100.0, e_per_adu=1.0, read_noise_e=0.3, qe=1.0)
    found = molecules(depth_nm=0.0)[:0]
    rng = torch.Generator().manual_seed(5)
    adu = camera.sample(torch.full((FRAMES, SIDE, SIDE), 1.68), rng)
    assert evidence_of(adu, found, GAUSSIAN, camera).flicker < 0.1


def test_dim_molecules_tell_no_width_and_no_elongation() -> None:
    found = molecules(depth_nm=0.0)
    dim = replace(found, photons=found.photons / 50)
    evidence = evidence_of(filmed(dim, GAUSSIAN), dim, GAUSSIAN)
    assert evidence.n_lone > 100
    assert math.isnan(evidence.width)
    assert math.isnan(evidence.elongation)


def test_a_table_without_molecules_misses_all_of_them() -> None:
    found = molecules(depth_nm=0.0)
    evidence = evidence_of(filmed(found, GAUSSIAN), found[:0], GAUSSIAN)
    assert evidence.missed == 1.0


def test_offsets_of_pixels_that_no_map_states_are_found() -> None:
    found = molecules(depth_nm=0.0)
    offsets = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(3)) * 3
    adu = filmed(found, GAUSSIAN, replace(CAMERA, baseline=100 + offsets))
    assert first_failed(evidence_of(adu, found, GAUSSIAN)) == "camera maps"


def test_a_focus_that_drifts_and_a_cylindrical_lens_are_found() -> None:
    found = molecules(depth_nm=0.0)
    deep = GaussianPSF(130.0, pixel_size_nm=100.0, depth_nm=400.0)
    drifting = found.xyz + torch.tensor([0.0, 0.0, 600.0]) * found.frame[:, None] / FRAMES
    adu = filmed(replace(found, xyz=drifting), deep)
    assert first_failed(evidence_of(adu, found, GAUSSIAN)) == "focus drift"
    lens = GaussianPSF(130.0, pixel_size_nm=100.0, depth_nm=400.0, gap_nm=200.0)
    adu = filmed(molecules(depth_nm=300.0), lens)
    assert first_failed(evidence_of(adu, found, GAUSSIAN)) == "elongation"


def test_a_cylindrical_lens_is_found_where_two_molecules_are_made_of_each_image() -> None:
    lens = GaussianPSF(130.0, pixel_size_nm=100.0, depth_nm=400.0, gap_nm=200.0)
    true = molecules(depth_nm=300.0)
    adu = filmed(true, lens)
    near, alone = true[true.xyz[:, 2].abs() < 50], true[true.xyz[:, 2].abs() >= 50]
    along_x = (alone.xyz[:, 2] > 0).float()[:, None] * torch.tensor([120.0, -120.0, 0.0])
    along_y = torch.tensor([0.0, 120.0, 0.0]) - along_x[:, [1, 0, 2]].abs()
    apart = along_x.abs() * torch.tensor([1.0, 0.0, 0.0]) + along_y.clamp_min(0)
    halves = [replace(alone, xyz=alone.xyz + sign * apart) for sign in (-1, 1)]
    halves = [replace(half, photons=half.photons / 2) for half in halves]
    table = EmitterSet.cat([near, *halves]).sorted_by_frame()
    evidence = evidence_of(adu, table, GAUSSIAN)
    assert evidence.n_lone < 0.4 * len(true)
    assert first_failed(evidence) == "elongation"
    every = EmitterSet.cat([true[:9], *halves]).sorted_by_frame()
    evidence = evidence_of(adu, every[every.frame > 0], GAUSSIAN)
    assert evidence.n_lone == 0
    assert first_failed(evidence) == "elongation"


def test_a_drift_of_the_depth_is_found_where_no_molecule_is_lone() -> None:
    psf = GaussianPSF(130.0, pixel_size_nm=100.0, depth_nm=400.0, gap_nm=200.0)
    found = molecules(depth_nm=200.0)
    xyz = found.xyz + torch.tensor([0.0, 0.0, 400.0]) * (found.frame[:, None] / FRAMES - 0.5)
    crowd = [replace(found, xyz=xyz + torch.tensor([shift, 0.0, 0.0])) for shift in (-150.0, 150.0)]
    table = EmitterSet.cat(crowd).sorted_by_frame()
    evidence = evidence_of(filmed(table, psf), table, psf, axial=True)
    assert evidence.n_lone == 0
    assert 300 < evidence.drift < 500


def test_a_cylindrical_lens_is_found_at_any_angle() -> None:
    turned = PupilPSF(
        numerical_aperture=1.4,
        wavelength_nm=670.0,
        pixel_size_nm=100.0,
        zernike_nm={(2, -2): 60.0},
    )
    found = molecules(depth_nm=300.0)
    adu = filmed(found, turned.tabulated((-350.0, 350.0)))
    checks = {check.name: check for check in checks_of(evidence_of(adu, found, GAUSSIAN))}
    assert checks["elongation"].failed
    assert "cylindrical lens" in checks["elongation"].sentence


def test_a_wrong_psf_and_a_movie_that_is_transposed_are_told_apart() -> None:
    def pupil(spherical_nm: float) -> PSF:
        aberrations = {(2, 2): 60.0, (3, 1): 40.0, (3, -1): 20.0, (4, 0): spherical_nm}
        psf = PupilPSF(
            numerical_aperture=1.4, wavelength_nm=670.0, pixel_size_nm=100.0, zernike_nm=aberrations
        )
        return psf.tabulated((-600.0, 600.0))

    psf, found = pupil(10.0), molecules(depth_nm=400.0)
    adu = filmed(found, psf)
    assert first_failed(evidence_of(adu, found, psf, axial=True)) == ""
    wrong = evidence_of(adu, found, pupil(-60.0), axial=True)
    assert first_failed(wrong) == "PSF misfit"
    # transposed it explains a fifth of what it leaves, and is as wrong as before
    assert wrong.turned == 0
    swapped = replace(found, xyz=found.xyz[:, [1, 0, 2]])
    transposed = evidence_of(adu.mT.contiguous(), swapped, psf, axial=True)
    assert first_failed(transposed) == "orientation"
    assert transposed.turn == "transposed"


@pytest.mark.parametrize("waves", [-0.04, 0.03])
def test_spherical_aberration_that_the_psf_lacks_is_measured_and_named(waves: float) -> None:
    depths = (-600.0, 600.0)
    aberrations = {(2, 2): 60.0, (3, 1): 40.0, (4, 0): 10.0}
    pupil = PupilPSF(
        numerical_aperture=1.4, wavelength_nm=670.0, pixel_size_nm=100.0, zernike_nm=aberrations
    )

    def aberrated(more: float) -> PSF:
        other = pupil.with_spherical(more)
        assert other is not None
        return other.tabulated(depths)

    found = molecules(depth_nm=400.0)
    sample = Sample(
        open_array(filmed(found, aberrated(waves)).numpy()),
        aberrated(0.0),
        CAMERA,
        region=WHOLE,
        axial=True,
        pupil=aberrated,
    )
    sample.see(found, FRAMES)
    evidence = sample.evidence()
    assert first_failed(evidence) == "spherical aberration"
    assert 0.85 < evidence.spherical / waves < 1.02  # two standard errors nearer to 0


def test_a_lens_is_said_before_the_crowd_that_a_model_makes_of_it() -> None:
    crowd = Evidence(kind="gaussian", density=4.0, elongation=0.1, width=1.2)
    assert first_failed(crowd) == "density"
    assert first_failed(replace(crowd, elongation=0.5)) == "elongation"


def test_what_was_not_seen_is_neither_passed_nor_failed() -> None:
    nothing = EmitterSet.empty()
    few = evidence_of(filmed(molecules(depth_nm=0.0), GAUSSIAN), nothing, GAUSSIAN)
    checks = {check.name: check for check in checks_of(few)}
    assert checks["PSF misfit"].passed is None
    assert checks["PSF misfit"].sentence == "too few lone molecules to tell"
    tiny = Sample(
        open_array(torch.full((1, 5, 5), 120.0).numpy()),
        GAUSSIAN,
        CAMERA,
        region=(slice(0, 5), slice(0, 5)),
        axial=False,
    )
    tiny.see(nothing, 1)
    assert all(check.passed is None for check in checks_of(tiny.evidence()))


@pytest.mark.parametrize("suffix", [".hdf5", ".parquet", ".smlm"])
def test_tables_keep_the_checks(tmp_path: Path, suffix: str) -> None:
    checks = checks_of(Evidence(kind="gaussian", noise=1.4, width=math.nan))
    assert checks[0].failed
    facts = Facts(pixel_size_nm=100.0, checks=checks).metadata()
    table = tmp_path / f"table{suffix}"
    write_table(replace(molecules(depth_nm=0.0), metadata=facts), table)
    assert read_table(table).facts.checks == checks
