"""Filters and density at the pace of a slider."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from napari.layers import Layer

from decode import EmitterSet
from decode_napari.density import Density, Volume
from decode_napari.layers import image_layer
from decode_napari.molecules import Filter
from decode_napari.steps.inspect import ellipses


def table(n: int) -> EmitterSet:
    rng = torch.Generator().manual_seed(1)
    return EmitterSet(
        frame=torch.randint(0, 1000, (n,), generator=rng),
        xyz=torch.rand(n, 3, generator=rng) * torch.tensor([25600.0, 25600.0, 1000.0]),
        photons=torch.rand(n, generator=rng) * 5000,
        probability=torch.rand(n, generator=rng),
        xyz_sigma=torch.rand(n, 3, generator=rng) * 40,
        metadata={"pixel_size_nm": 100.0, "width_px": 256, "height_px": 256},
    )


def test_a_filter_keeps_what_lies_within_all_ranges() -> None:
    molecules = table(2000)
    chosen = Filter(molecules)
    chosen.restrict("photons", 1000, 3000)
    chosen.restrict("z", 200, 900)
    photons, z = molecules.photons, molecules.xyz[:, 2]
    expected = (photons >= 1000) & (photons <= 3000) & (z >= 200) & (z <= 900)
    assert torch.equal(torch.from_numpy(chosen.mask), expected)
    assert chosen.n_passing == int(expected.sum()) == len(chosen.passing())
    for quantity in ("photons", "z"):
        chosen.restrict(quantity, *chosen.bounds(quantity))
    assert chosen.passing() is molecules


def test_molecules_of_a_frame_are_found_whatever_their_order() -> None:
    molecules = table(3000)
    for some in (molecules, molecules.sorted_by_frame()):
        chosen = Filter(some)
        chosen.restrict("photons", 2000, 1e9)
        for frame in (0, 17, 999, 5000):
            expected = np.flatnonzero(((some.frame == frame) & (some.photons >= 2000)).numpy())
            np.testing.assert_array_equal(np.sort(chosen.rows_in_frame(frame)), expected)


def test_what_is_not_known_passes_and_an_empty_table_has_ranges() -> None:
    one = EmitterSet(
        frame=torch.tensor([0]), xyz=torch.zeros(1, 3), photons=torch.tensor([torch.nan])
    )
    chosen = Filter(one)
    chosen.restrict("photons", 5, 6)
    assert chosen.n_passing == 1
    assert Filter(EmitterSet.empty()).bounds("photons") == (0.0, 1.0)


def test_the_density_counts_every_molecule_once_at_its_place_in_every_scale() -> None:
    molecules = table(5000)
    density = Density(size_nm=(25600.0, 25600.0))
    density.put(molecules)
    n_levels = len(density.levels)
    assert n_levels > 2
    for halved, level in enumerate(density.levels):
        pixel_nm = density.pixel_nm * 2**halved
        whole = np.asarray(level)
        assert whole.sum() * pixel_nm**2 / 1e6 == pytest.approx(5000)
        assert level.shape == tuple(side >> halved for side in density.levels[0].shape)
        np.testing.assert_array_equal(level[3:50, 20:90], whole[3:50, 20:90])
    first = np.zeros(5000, np.bool_)
    first[0] = True
    density.show(first)
    x, y = molecules.xyz[0, :2].tolist()
    for halved in (0, n_levels - 1):
        (place,) = np.argwhere(np.asarray(density.levels[halved]))
        pixel_nm = density.pixel_nm * 2**halved
        assert place.tolist() == [y // pixel_nm, x // pixel_nm]


def test_what_napari_shows_of_a_density_follows_it_at_every_zoom() -> None:
    """napari keeps copies of some scales."""
    molecules = table(5000)
    density = Density(size_nm=(25600.0, 25600.0))
    layer = Layer.create(
        *image_layer(density.levels, pixel_size_nm=density.pixel_nm, name="density")
    )
    for halved in range(len(density.levels)):
        layer.data_level = halved
        layer.corner_pixels = np.array([[0, 0], np.array(density.levels[halved].shape) - 1])
        area_um2 = (density.pixel_nm * 2**halved) ** 2 / 1e6
        density.put(molecules)
        layer.refresh()
        for n in (5000, 700):
            density.show(np.arange(5000) < n)
            layer.refresh()
            assert layer._slice.image.raw.sum() * area_um2 == pytest.approx(n), halved


def test_molecules_outside_the_field_are_in_no_picture() -> None:
    outside = EmitterSet(
        frame=torch.zeros(3, dtype=torch.int64),
        xyz=torch.tensor([[-1.0, 5.0, 0.0], [5.0, 1e9, 0.0], [500.0, 700.0, 0.0]]),
        photons=torch.ones(3),
    )
    density = Density(size_nm=(1000.0, 1000.0))
    density.put(outside)
    assert np.count_nonzero(density.levels[0]) == 1
    assert Volume(outside, size_nm=(1000.0, 1000.0)).image(np.ones(3, np.bool_)).sum() == 1


def test_the_volume_counts_every_molecule_in_the_voxel_that_holds_it() -> None:
    molecules = table(5000)
    volume = Volume(molecules, size_nm=(25600.0, 25600.0))
    image = volume.image(np.ones(5000, np.bool_))
    assert 4980 <= image.sum() <= 5000  # the deepest and the highest in a thousand are left out
    one = np.zeros(5000, np.bool_)
    one[17] = True
    (voxel,) = np.argwhere(volume.image(one))
    corner = voxel * volume.voxel_nm + volume.origin_nm
    place = molecules.xyz[17].numpy()[::-1]
    assert ((corner <= place) & (place < corner + volume.voxel_nm)).all()


def test_a_million_molecules_are_filtered_and_counted_ten_times_a_second() -> None:
    molecules = table(1_000_000).sorted_by_frame()
    chosen, density = Filter(molecules), Density(size_nm=(25600.0, 25600.0))
    density.put(molecules)
    took = []
    for i in range(20):
        start = time.process_time()
        chosen.restrict("photons", 100.0 * i + 1, 4000)
        density.show(chosen.mask)
        np.asarray(density.levels[-2])
        took.append(time.process_time() - start)
    print(
        f"filter and density of 1,000,000 molecules: {1000 * np.median(took):.1f} ms of processor "
        "time"
    )
    assert np.median(took) < 0.2  # 0.1 on a machine that does nothing else


def test_ellipses_have_the_stated_half_axes_around_their_molecule() -> None:
    molecules = table(3)
    chords = ellipses(molecules, np.array([1]))
    assert molecules.xyz_sigma is not None
    outline = chords[:, 0]
    half = (outline.max(0) - outline.min(0)) / 2
    np.testing.assert_allclose(half, molecules.xyz_sigma[1, (1, 0)].numpy(), rtol=1e-5)
    np.testing.assert_allclose(outline.mean(0), molecules.xyz[1, (1, 0)].numpy(), rtol=1e-5)
    np.testing.assert_allclose(chords[:, 1].sum(0), 0, atol=1e-8)
