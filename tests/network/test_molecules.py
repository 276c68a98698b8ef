"""Laws of the posterior of molecules: one coin each, and no probability is lost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from decode.network.gaussians import TruncatedGaussians
from decode.network.molecules import MoleculePosterior
from decode.network.posterior import LEAST, SetPosterior

PIXEL = 100.0


def posterior_of(
    p: Tensor, place_px: Tensor, sigma_px: float, *, axial: bool = False
) -> SetPosterior:
    """Pixels of probability p (n, y, x), which see a Gaussian at (2, n, y, x) places."""
    n, height, width = p.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centre = torch.stack([columns, rows])[:, None] + 0.5
    offset = (place_px - centre).movedim(0, 1).double()
    light = torch.full((n, height, width), 1000.0, dtype=torch.float64)
    return SetPosterior(
        logit=torch.logit(p.double()),
        offset_px=offset,
        offset_sigma_px=torch.full_like(offset, sigma_px),
        photons=light,
        photons_sigma=light / 10,
        background=light / 100,
        z_nm=light / 10 if axial else None,
        z_sigma_nm=light / 20 if axial else None,
        pixel_size_nm=PIXEL,
    )


def seen(places: Tensor, sigma_px: float, exists: Tensor, shape: tuple[int, int]) -> Tensor:
    """(frames, y, x) how many of some molecules (k, 2) lie in each pixel, drawn in many frames."""
    rng = torch.Generator().manual_seed(7)
    n = 40000
    drawn = places + sigma_px * torch.randn(n, len(places), 2, generator=rng)
    there = torch.rand(n, len(places), generator=rng) < exists
    pixel = drawn.floor().long().clamp(min=0)
    counted = torch.zeros(n, *shape)
    frame = torch.arange(n)[:, None].expand(-1, len(places))
    return counted.index_put((frame, pixel[..., 1], pixel[..., 0]), there.float(), accumulate=True)


def nearest(places: Tensor, shape: tuple[int, int]) -> Tensor:
    """(2, 1, y, x) which of some places (k, 2) each pixel sees."""
    rows, columns = torch.meshgrid(*(torch.arange(side) + 0.5 for side in shape), indexing="ij")
    pixels = torch.stack([columns, rows], -1)
    chosen = torch.cdist(pixels.reshape(-1, 2), places).argmin(1)
    return places[chosen].T.reshape(2, 1, *shape)


def crowd(seed: int, n: int = 3) -> SetPosterior:
    """Random maps, in which neighbours share molecules in every way."""
    rng = torch.Generator().manual_seed(seed)
    p = torch.rand(n, 7, 9, generator=rng) ** 3
    places = 9 * torch.rand(2, n, 7, 9, generator=rng)
    rows, columns = torch.meshgrid(torch.arange(7), torch.arange(9), indexing="ij")
    near = torch.stack([columns, rows])[:, None] + (places / 9) * 1.4 - 0.2
    return posterior_of(p, near, 0.3)


@pytest.mark.parametrize("place", [(3.5, 3.5), (3.0, 3.4), (3.0, 3.0), (3.03, 2.9)])
@pytest.mark.parametrize("sigma_px", [0.1, 0.25])
def test_a_draw_holds_a_lone_molecule_once_wherever_it_lies_in_its_pixels(
    place: tuple[float, float], sigma_px: float, rng: torch.Generator
) -> None:
    at = torch.tensor([place])
    p = seen(at, sigma_px, torch.tensor([0.99]), (7, 7)).mean(0, keepdim=True)
    posterior = posterior_of(p, nearest(at, (7, 7)), sigma_px).molecules()
    assert float(posterior.counts().pmf(1)[0, 1]) > 0.97
    drawn = torch.cat([posterior.sample(rng).frame + i for i in range(500)])
    counts = torch.bincount(drawn, minlength=500)
    assert float((counts == 1).double().mean()) > 0.96, "0.99 but for chance"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_expected_number_in_a_pixel_is_the_networks(seed: int) -> None:
    posterior = crowd(seed)
    for frame in range(len(posterior)):
        mean, _ = posterior[frame : frame + 1].molecules().expected_map()
        p = posterior.probability[frame]
        torch.testing.assert_close(mean, p.where(p > LEAST, 0.0), rtol=1e-9, atol=1e-12)


def test_no_molecule_is_more_than_sure_and_its_parts_are_all_of_it() -> None:
    posterior = crowd(3)
    molecules = posterior.molecules()
    assert float(molecules.probability.max()) <= 1
    total = torch.zeros(len(molecules), dtype=torch.float64)
    total = total.index_add(0, molecules.molecule, molecules.weight)
    torch.testing.assert_close(total, torch.ones_like(total))
    assert molecules.frame.tolist() == sorted(molecules.frame.tolist())


@pytest.mark.parametrize("second_px", [4.4, 5.0, 5.3])
def test_counts_of_a_chain_of_two_molecules_are_those_of_a_simulation(second_px: float) -> None:
    places = torch.tensor([[3.03, 3.5], [second_px, 3.5]])
    counted = seen(places, 0.15, torch.tensor([0.9, 0.95]), (7, 9))
    occupied = (counted > 0).float()
    p = occupied.mean(0, keepdim=True)
    posterior = posterior_of(p, nearest(places, (7, 9)), 0.15).molecules()
    left = (torch.arange(9) < 4).expand(7, 9)
    for region in (torch.ones(7, 9, dtype=torch.bool), left):
        inside = (occupied * region).sum((1, 2)).long()
        simulated = torch.bincount(inside, minlength=4)[:4].double() / len(inside)
        pmf = posterior.counts(region).pmf(3)[0]
        assert float((pmf - simulated).abs().max()) < 0.02


def test_two_molecules_that_share_a_pixel_remain_two() -> None:
    """Both lie on a border of the pixel between them, which holds at most one."""
    places = torch.tensor([[3.0, 3.5], [4.0, 3.5]])
    occupied = (seen(places, 0.1, torch.tensor([1.0, 1.0]), (7, 9)) > 0).float()
    p = occupied.mean(0, keepdim=True)
    shared = posterior_of(p, nearest(places, (7, 9)), 0.1)
    counts = shared.molecules().counts()
    truth = occupied.sum((1, 2))
    assert float(counts.mean) == pytest.approx(float(truth.mean()), abs=1e-2)
    pixels = (shared.probability * (1 - shared.probability)).sum()
    assert float(truth.var()) < float(counts.sd) ** 2 < 0.75 * float(pixels)
    assert float(counts.pmf(0)[0, 0]) < 1e-9, "one at least"


def test_draws_have_the_moments_that_the_table_states(rng: torch.Generator) -> None:
    at = torch.tensor([[3.05, 2.9]])
    p = seen(at, 0.2, torch.tensor([0.97]), (6, 7)).mean(0, keepdim=True)
    posterior = posterior_of(p.clamp(1e-9), nearest(at, (6, 7)), 0.2, axial=True)
    many = posterior.molecules().above(0.5)
    table = many.table()
    assert table.xyz_sigma is not None
    assert table.photons_sigma is not None
    drawn = [many.sample(rng, first_frame=5) for _ in range(4000)]
    assert {int(f) for d in drawn for f in d.frame} == {5}
    xyz = torch.cat([d.xyz for d in drawn])
    photons = torch.cat([d.photons for d in drawn])
    torch.testing.assert_close(xyz.mean(0).float(), table.xyz[0], atol=2.5, rtol=0)
    torch.testing.assert_close(xyz.std(0).float(), table.xyz_sigma[0], atol=0, rtol=0.06)
    assert float(photons.std()) == pytest.approx(float(table.photons_sigma), rel=0.06)
    assert float(photons.mean()) == pytest.approx(1000, abs=8)


def test_counts_and_maps_within_pixels_are_the_frequencies_of_draws(rng: torch.Generator) -> None:
    posterior = crowd(4, n=1).molecules()
    region = torch.rand(3 * 7, 3 * 9, generator=rng) < 0.3
    counts = posterior.counts(region)
    n = 3000
    inside, hits = torch.zeros(n), torch.zeros(21, 27)
    for i in range(n):
        x, y = (posterior.sample(rng).xyz[:, :2] * 3 / PIXEL).long().T
        hits.index_put_((y, x), torch.ones(len(x)), accumulate=True)
        inside[i] = float(region[y, x].sum())
    assert float(inside.mean()) == pytest.approx(float(counts.mean), abs=5 * float(counts.sd) / 54)
    assert float(inside.std()) == pytest.approx(float(counts.sd), rel=0.06)
    mean, sd = posterior.expected_map(3)
    z = (hits / n - mean) / (sd / n**0.5).clamp_min(1e-3)
    assert float(z.abs().max()) < 5
    pmf = counts.pmf()[0]
    frequency = torch.bincount(inside.long(), minlength=len(pmf))[: len(pmf)] / n
    assert float((frequency - pmf).abs().max()) < 0.04


def test_a_table_lists_the_molecules_above_the_threshold() -> None:
    posterior = crowd(5)
    for threshold in (0.2, 0.5):
        listed, every = posterior.point_estimate(threshold), posterior.molecules().table()
        assert every.probability is not None
        assert listed.probability is not None
        assert len(listed) == int((every.probability > threshold).sum()) > 5
        torch.testing.assert_close(
            listed.probability, every.probability[every.probability > threshold]
        )


def test_a_region_must_cover_the_frame() -> None:
    posterior = crowd(6).molecules()
    with pytest.raises(
        ValueError, match=r"the region is \(7, 8\) \(y, x\), the frames are \(7, 9\)"
    ):
        posterior.counts(torch.ones(7, 8, dtype=torch.bool))


def test_nothing_is_drawn_where_nothing_is() -> None:
    empty = posterior_of(torch.full((2, 5, 5), 1e-6), torch.full((2, 2, 5, 5), 2.5), 0.1)
    molecules: MoleculePosterior = empty.molecules()
    assert len(molecules) == len(molecules.sample()) == len(molecules.table()) == 0
    assert molecules.counts().pmf(2).round(decimals=9).tolist() == [[1, 0, 0], [1, 0, 0]]
    assert float(molecules.expected_map(2)[0].sum()) == 0


@pytest.mark.parametrize("centre_px", [-6.0, -1.5, -0.3, 0.4, 1.5, 6.0])
@pytest.mark.parametrize("sigma_px", [0.05, 0.4, 5.0])
def test_draws_in_a_pixel_lie_where_its_moments_and_masses_say(
    centre_px: float, sigma_px: float, rng: torch.Generator
) -> None:
    """Also where the Gaussian's centre is far outside the pixel."""
    n = 4000
    light = torch.full((n,), 500.0, dtype=torch.float64)
    offset = torch.full((n, 2), centre_px, dtype=torch.float64)
    pixels = TruncatedGaussians(
        pixel=torch.zeros(n, 2, dtype=torch.int64),
        offset_px=offset,
        offset_sigma_px=torch.full_like(offset, sigma_px),
        photons=light,
        photons_sigma=light / 10,
        pixel_size_nm=1.0,
    )
    x = pixels.sample(rng)[0][:, 0]
    mean, variance = (m[0, 0] for m in pixels.moments())
    # beyond 38 sigma a draw is the edge itself, which the mean is a thousandth of a pixel from
    error = float(5 * variance.sqrt() / n**0.5) + 1e-3
    assert float(x.mean()) == pytest.approx(float(mean), abs=error)
    mass = pixels[torch.tensor([0])].mass(0, 4)[0]
    assert float(mass.sum()) == pytest.approx(1, abs=1e-12)
    frequency = torch.histc(x.float(), 4, 0, 1) / n
    assert float((frequency - mass).abs().max()) < 5 * 0.5 / n**0.5
