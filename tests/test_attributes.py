"""Attribute vectors and edits by exact arithmetic in a linear world, and by what they must leave unchanged anywhere."""

import pytest
import torch
from torch import Tensor

from seqvae.latent import attribute, edit, encode, orthogonalize, reconstruct
from tests.helpers.vectors import RowCodec, linear_world

CODEC = RowCodec()
VAE = linear_world()
HAVING = [row.unsqueeze(0) for row in torch.randn(40, 5, generator=torch.Generator().manual_seed(1)) + 1]
LACKING = [row.unsqueeze(0) for row in torch.randn(25, 5, generator=torch.Generator().manual_seed(2))]


def test_a_vector_is_the_difference_of_the_mean_posterior_means() -> None:
    weight = VAE.encoder.get_parameter("weight")
    expected = weight @ (torch.cat(HAVING).mean(0) - torch.cat(LACKING).mean(0))
    torch.testing.assert_close(attribute(VAE, CODEC, HAVING, LACKING), expected.detach())


def test_the_vector_of_the_opposite_is_the_opposite_vector() -> None:
    assert torch.equal(attribute(VAE, CODEC, HAVING, LACKING), -attribute(VAE, CODEC, LACKING, HAVING))
    assert not attribute(VAE, CODEC, HAVING, HAVING).any()


def test_an_edit_by_one_takes_the_mean_without_to_the_mean_with() -> None:
    vector = attribute(VAE, CODEC, HAVING, LACKING)
    there = encode(VAE, CODEC, HAVING).mean(0)
    torch.testing.assert_close(encode(VAE, CODEC, LACKING).mean(0) + vector, there)
    edited = torch.stack(edit(VAE, CODEC, list(LACKING), vector, [1.0]))
    torch.testing.assert_close(edited.mean(0)[0], VAE.decoder.predict(there[None], there[None])[0].detach())


def test_an_edit_adds_the_vector_times_the_strength_in_every_window() -> None:
    items = [torch.randn(3, 5), torch.randn(1, 5)]
    vector = torch.tensor([0.5, -1.0, 2.0])
    edited = edit(VAE, CODEC, items, vector, [-2.0, 0.0, 0.5])
    assert [tuple(item.shape) for item in edited] == [(3, 5)] * 3 + [(1, 5)] * 3
    for item, results in zip(items, (edited[:3], edited[3:]), strict=True):
        for strength, result in zip((-2.0, 0.0, 0.5), results, strict=True):
            z = encode(VAE, CODEC, CODEC.windows(item)) + strength * vector
            torch.testing.assert_close(result, VAE.decoder.predict(z, z).detach())


def test_strength_zero_is_the_reconstruction() -> None:
    items = [torch.randn(2, 5), torch.randn(1, 5)]
    for edited, plain in zip(
        edit(VAE, CODEC, items, torch.randn(3), [0.0]), reconstruct(VAE, CODEC, items), strict=True
    ):
        assert torch.equal(edited, plain)


@pytest.mark.parametrize(
    "others", [[[1.0, 0.0, 0.0]], [[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]], [[1.0, 2.0, 0.0], [2.0, 4.0, 0.0]]]
)
def test_an_orthogonal_vector_has_no_part_along_the_others(others: list[list[float]]) -> None:
    rows = [torch.tensor(other) for other in others]
    plain = attribute(VAE, CODEC, HAVING, LACKING)
    vector = attribute(VAE, CODEC, HAVING, LACKING, rows)
    assert all(abs(float(plain @ row)) > 1e-3 for row in rows)
    assert all(abs(float(vector @ row)) < 1e-6 for row in rows)
    spanned = torch.stack([*rows, plain - vector])  # what went lies in their span
    assert torch.linalg.matrix_rank(spanned, tol=1e-4) == torch.linalg.matrix_rank(torch.stack(rows))


def test_taking_out_nothing_changes_nothing() -> None:
    vector = torch.randn(4)
    torch.testing.assert_close(orthogonalize(vector, []), vector.double())
    torch.testing.assert_close(orthogonalize(vector, [torch.zeros(4)]), vector.double())


@pytest.mark.parametrize("others", [[[2.0, -4.0]], [[1.0, 0.0], [1.0, 1.0]]])
def test_a_vector_along_the_others_is_refused(others: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="nothing is left of the attribute"):
        orthogonalize(torch.tensor([-1.0, 2.0]), [torch.tensor(other) for other in others])


@pytest.mark.parametrize(("having", "lacking", "name"), [([], LACKING, "with"), (HAVING, [], "without")])
def test_an_empty_set_is_named(having: list[Tensor], lacking: list[Tensor], name: str) -> None:
    with pytest.raises(ValueError, match=f"the set of items {name} the attribute is empty"):
        attribute(VAE, CODEC, having, lacking)


def test_an_edit_along_an_orthogonal_vector_leaves_the_other_attribute_alone() -> None:
    plain, other = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.3, 0.4, 1.2])
    vector = orthogonalize(plain, [other]).float()
    torch.testing.assert_close(vector, plain - other * (plain @ other) / (other @ other))  # Gram-Schmidt
    items = [torch.randn(2, 5) for _ in range(3)]
    before, plainly, after = (
        torch.stack([encode(VAE, CODEC, CODEC.windows(item)) for item in items]) + step
        for step in (torch.zeros(3), 2 * plain, 2 * vector)
    )
    torch.testing.assert_close(after @ other, before @ other)
    assert not torch.allclose(plainly @ other, before @ other)
    decoded = torch.stack(edit(VAE, CODEC, items, vector, [2.0]))
    torch.testing.assert_close(decoded, VAE.decoder.predict(after, after).detach())
