"""Laws of what a network is conditioned on."""

from __future__ import annotations

import pytest
import torch

from decode.conditioning import (
    KINDS,
    AstigmaticPupil,
    Conditioning,
    Domain,
    FieldPosition,
    GaussianWidth,
    KnownOptics,
    Unconditioned,
)

FIELD = Domain({"field_x": (0.0, 3000.0), "field_y": (0.0, 2000.0)}, pixel_size_nm=100.0)
WIDTHS = Domain({"psf_sigma_px": (0.8, 2.0)})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_names_of_the_maps_tell_the_kind(kind: type[Conditioning]) -> None:
    assert Domain(dict.fromkeys(kind.names, (0.0, 1.0))).kind is kind


def test_names_of_another_version_are_refused() -> None:
    with pytest.raises(ValueError, match="no model of the context"):
        _ = Domain({"temperature": (0.0, 1.0)}).kind


def test_a_width_in_nm_becomes_one_in_pixels() -> None:
    known = WIDTHS.conditioning(KnownOptics(pixel_size_nm=100.0, psf_sigma_nm=140.0))
    assert known == GaussianWidth(pytest.approx(1.4))
    assert WIDTHS.context_map(known.values).tolist() == [[[[pytest.approx(0.0, abs=1e-6)]]]]


def test_what_is_not_known_of_the_optics_is_asked_for() -> None:
    nothing = KnownOptics(pixel_size_nm=100.0)
    with pytest.raises(ValueError, match="--psf-sigma"):
        WIDTHS.conditioning(nothing)
    with pytest.raises(ValueError, match="--psf"):
        Domain(dict.fromkeys(AstigmaticPupil.names, (0.0, 1.0))).conditioning(nothing)


def test_a_value_beyond_its_range_is_refused_with_the_range() -> None:
    with pytest.raises(ValueError, match=r"psf_sigma_px = 2\.5 lies outside the range 0\.8 to 2"):
        WIDTHS.context_map(GaussianWidth(2.5).values)


def test_pixels_lie_at_their_centres_and_beyond_the_field_at_its_border() -> None:
    known = FIELD.conditioning(KnownOptics(pixel_size_nm=100.0, shape=(20, 40)))
    assert isinstance(known, FieldPosition)
    x, y = torch.as_tensor(known.x_nm), torch.as_tensor(known.y_nm)
    assert x.shape == y.shape == (20, 40)
    assert float(x[3, 7]) == 750
    assert float(y[3, 7]) == 350
    assert float(x.max()) == 3000
    assert FIELD.context_map(known.values).shape == (1, 2, 20, 40)


@pytest.mark.parametrize("domain", [FIELD, Domain(pixel_size_nm=100.0)], ids=["field", "one PSF"])
def test_a_network_for_one_psf_takes_the_pixels_of_its_training(domain: Domain) -> None:
    domain.conditioning(KnownOptics(pixel_size_nm=101.0))
    with pytest.raises(ValueError, match="trained for pixels of 100 nm, the movie's are 110 nm"):
        domain.conditioning(KnownOptics(pixel_size_nm=110.0))


def test_a_movie_that_is_not_the_field_is_remarked_on() -> None:
    assert FIELD.remark((20, 30), 100.0) == ""
    assert FIELD.remark((10, 30), 100.0).endswith("the same pixel of the sensor")
    assert FIELD.remark((20, 31), 100.0).endswith("the PSF is that of the border")
    assert WIDTHS.remark((20, 31), 100.0) == ""


def test_nothing_is_a_conditioning_too() -> None:
    known = Domain(pixel_size_nm=100.0).conditioning(KnownOptics(pixel_size_nm=100.0))
    assert known == Unconditioned()
    assert Domain().context_map(known.values).shape == (1, 0, 1, 1)
