"""The aggregate posterior's mixture against closed forms and known mixtures, and its place in a checkpoint."""

import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from seqvae.aggregate import RotatedMixture, fit_aggregate, from_tensors
from seqvae.data.dataset import WindowDataset
from seqvae.gaussian import DiagonalGaussian
from seqvae.harness import aggregate as harness_aggregate
from seqvae.harness import checkpoint
from seqvae.harness.aggregate import fit_to, keep_aggregate, read_aggregate
from seqvae.harness.checkpoint import AGGREGATE, CheckpointError
from seqvae.harness.config import load
from tests.helpers.worlds import Run

GetRun = Callable[[str], Run]


def posteriors(n: int = 4000, latent: int = 3) -> DiagonalGaussian:
    """Return posteriors whose means are correlated and lie away from 0."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(n, latent, generator=generator) @ torch.randn(latent, latent, generator=generator) + 2
    return DiagonalGaussian(mean, torch.randn(n, latent, generator=generator) - 1)


def two_clouds(n: int = 4000) -> tuple[DiagonalGaussian, Tensor]:
    """Return posteriors in two clouds, three to one, and as many draws from the mixture that they make up."""
    generator = torch.Generator().manual_seed(1)
    centres, chosen = torch.tensor([[4.0, 4.0, 0.0], [-4.0, 0.0, 1.0]]), (torch.arange(n) % 4 == 0).long()
    mean = centres[chosen] + 0.5 * torch.randn(n, 3, generator=generator)
    q = DiagonalGaussian(mean, torch.full((n, 3), math.log(0.25)))
    return q, q.rsample(1, generator)[0]


def test_one_component_has_the_mean_and_the_covariance_of_the_aggregate_posterior() -> None:
    q = posteriors()
    covariance = torch.cov(q.mean.double().T, correction=0) + torch.diag(q.log_variance.double().exp().mean(0))
    truth = MultivariateNormal(q.mean.double().mean(0), covariance)
    z = 3 * torch.randn(50, 3)
    found = fit_aggregate(q, components=1)
    torch.testing.assert_close(found.log_prob(z), truth.log_prob(z.double()).float(), rtol=1e-4, atol=1e-3)
    drawn = found.sample(200_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.cov(drawn.T), covariance.float(), rtol=0.03, atol=0.05)


def test_two_clouds_are_found_with_their_weights_and_widths() -> None:
    q, _ = two_clouds()
    found = fit_aggregate(q, components=2)
    weights, order = found.mixture.logits.exp().sort()
    torch.testing.assert_close(weights, torch.tensor([0.25, 0.75]), atol=0.01, rtol=0.0)
    centres = found.mixture.components.mean[order] @ found.basis.T
    torch.testing.assert_close(centres, torch.tensor([[-4.0, 0.0, 1.0], [4.0, 4.0, 0.0]]), atol=0.1, rtol=0.0)
    variances = found.mixture.components.log_variance.exp()
    # 0.25 of the means and 0.25 of each posterior, and what is shrunk towards the common variance of 17
    torch.testing.assert_close(variances, torch.full((2, 3), 0.5), atol=0.2, rtol=0.0)


def test_draws_of_the_aggregate_posterior_are_likelier_than_under_the_prior_or_one_gaussian() -> None:
    q, drawn = two_clouds()
    normal = -0.5 * (drawn.square() + math.log(2 * math.pi)).sum(1)
    scores = [normal, *(fit_aggregate(q, components).log_prob(drawn) for components in (1, 2, 10))]
    means = [float(score.mean()) for score in scores]
    assert means[0] < means[1] - 1 < means[2] - 1.5
    assert means[3] == pytest.approx(means[2], abs=0.1)  # more components do no harm


def test_a_fit_is_a_function_of_its_seed_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    first, again = (fit_aggregate(posteriors(), seed=3).tensors() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_noise_the_mixture_is_that_of_the_means_even_where_they_agree() -> None:
    q = posteriors()
    points = DiagonalGaussian(torch.cat([q.mean, torch.ones(len(q.mean), 1)], 1), torch.zeros(len(q.mean), 4))
    found = fit_aggregate(points.without_noise(), components=1)
    drawn = found.sample(200_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.cov(drawn[:, :3].T), torch.cov(q.mean.T), rtol=0.03, atol=0.05)
    torch.testing.assert_close(drawn[:, 3], torch.ones(len(drawn)), atol=0.02, rtol=0.0)


def test_fewer_posteriors_than_components_are_fitted_too() -> None:
    found = fit_aggregate(DiagonalGaussian(torch.randn(2, 3), torch.zeros(2, 3)))
    assert found.mixture.logits.shape == (2,)
    assert found.sample(5).isfinite().all()


@pytest.mark.parametrize(
    ("q", "components", "message"),
    [
        (DiagonalGaussian(torch.zeros(0, 3), torch.zeros(0, 3)), 1, "must be at least 1, got 1 and 0"),
        (DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 3)), 0, "must be at least 1, got 0 and 2"),
        (DiagonalGaussian(torch.full((2, 3), math.nan), torch.zeros(2, 3)), 1, "a posterior is not finite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(q: DiagonalGaussian, components: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_aggregate(q, components)


def moments(z: Tensor) -> Tensor:
    return torch.cat([z.mean(0), torch.cov(z.T).flatten(), z.pow(3).mean(0)])


def test_a_walk_leaves_the_mixture_as_it_is() -> None:
    found = fit_aggregate(two_clouds()[0], components=3)
    generator = torch.Generator().manual_seed(0)
    z = start = found.sample(100_000, generator)
    for _ in range(3):
        z = found.walk(z, 0.6, generator)
    torch.testing.assert_close(moments(z), moments(start), atol=0.05, rtol=0.02)
    assert 0.2 < float(((z - z.mean(0)) * (start - start.mean(0))).mean() / start.var(0).mean()) < 1  # still related
    pulled = 0.8 * start + 0.6 * torch.randn_like(start)  # the walk of N(0, I) is another's
    assert float((moments(pulled) - moments(start)).abs().max()) > 1


def test_a_drift_of_nothing_stays_in_place() -> None:
    found = fit_aggregate(posteriors())
    z = found.sample(20)
    torch.testing.assert_close(found.walk(z, 0.0), z, atol=1e-4, rtol=1e-4)


def test_the_tensors_of_a_mixture_make_it_again() -> None:
    found = fit_aggregate(posteriors())
    z = torch.randn(9, 3)
    assert torch.equal(from_tensors(found.tensors(), 3).log_prob(z), found.log_prob(z))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"basis": None}, "it holds log_variance, logits, mean, not basis"),
        ({"mean": torch.zeros(10, 4)}, "its shapes are .* no mixture over 3 latent dimensions"),
        ({"logits": torch.zeros(())}, "its shapes are"),
        ({"logits": torch.full((10,), math.inf)}, "numbers that are not finite"),
    ],
)
def test_tensors_of_something_else_are_refused(change: dict[str, Tensor | None], message: str) -> None:
    tensors = {
        name: tensor for name, tensor in (fit_aggregate(posteriors()).tensors() | change).items() if tensor is not None
    }
    with pytest.raises(ValueError, match=message):
        from_tensors(tensors, 3)


# In a checkpoint


def trained_on(run: Run) -> WindowDataset:
    return WindowDataset(run.world.root, "train", limit=64)  # debug=smoke


def same(one: RotatedMixture | None, other: RotatedMixture | None) -> bool:
    assert one is not None
    assert other is not None
    return all(torch.equal(a, b) for a, b in zip(one.tensors().values(), other.tensors().values(), strict=True))


def test_a_training_ends_with_the_mixture_in_its_best_checkpoint_alone(run: Run) -> None:
    held = [path for path in checkpoint.checkpoints(run.path) if (path / AGGREGATE).exists()]
    assert held == [checkpoint.best(run.path)]
    trained = load(run.path)
    assert same(read_aggregate(trained), fit_to(trained, trained_on(run)))


def test_adding_it_changes_no_other_byte_of_the_checkpoint(get_run: GetRun, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(get_run("melody").path, tmp_path / "run"))
    older = next(path for path in checkpoint.checkpoints(run_dir) if not (path / AGGREGATE).exists())
    before = {path.name: path.read_bytes() for path in older.iterdir() if path.name != checkpoint.MANIFEST}
    checkpoint.add_tensors(older, AGGREGATE, {"x": torch.zeros(1)})
    checkpoint.verify(older)
    after = {path.name: path.read_bytes() for path in older.iterdir()}
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {AGGREGATE, checkpoint.MANIFEST}


def test_a_checkpoint_that_has_it_is_left_alone(
    get_run: GetRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = Path(shutil.copytree(get_run("melody").path, tmp_path / "run"))
    monkeypatch.setattr(harness_aggregate, "load", lambda *_: pytest.fail("it was fitted again"))
    keep_aggregate(run_dir, trained_on(get_run("melody")), torch.device("cpu"))


def without(path: Path) -> None:
    """Make of a checkpoint one that was saved without the mixture."""
    (path / AGGREGATE).unlink()
    manifest = json.loads((path / checkpoint.MANIFEST).read_text())
    (path / checkpoint.MANIFEST).write_text(json.dumps({n: value for n, value in manifest.items() if n != AGGREGATE}))


def test_a_training_does_not_fail_for_want_of_it(
    get_run: GetRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = Path(shutil.copytree(get_run("melody").path, tmp_path / "run"))
    train, cpu = trained_on(get_run("melody")), torch.device("cpu")
    without(load(run_dir).path)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(checkpoint, "_fsync", lambda _: raised(OSError("the disk is full")))
        keep_aggregate(run_dir, train, cpu)
    assert "has no mixture to sample from" in caplog.text
    assert "the disk is full" in caplog.text
    assert read_aggregate(load(run_dir)) is None
    keep_aggregate(run_dir, train, cpu)
    assert same(read_aggregate(load(run_dir)), read_aggregate(load(get_run("melody").path)))


def raised(error: Exception) -> None:
    raise error


def test_a_file_that_is_no_mixture_is_named(get_run: GetRun, tmp_path: Path) -> None:
    path = Path(shutil.copytree(load(get_run("text").path).path, tmp_path / "alone"))
    checkpoint.add_tensors(path, AGGREGATE, {"mean": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match=r"damaged: aggregate\.safetensors cannot be used \(it holds mean, not"):
        read_aggregate(load(path))
