"""What a training looks at on the way: the valid split's metrics, reconstructions, samples and latents."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seqvae.data.batching import VALID_SEED, loader, valid_loader
from seqvae.data.captions import labelled
from seqvae.data.codec import Codec, Preview
from seqvae.data.dataset import VALID_EPOCH, WindowDataset, read_manifest, spread
from seqvae.evaluation import active_units, mutual_information, use_of_dimensions
from seqvae.gaussian import DiagonalGaussian
from seqvae.harness import plots
from seqvae.harness.engine import Engine
from seqvae.harness.tracking import Tracker
from seqvae.latent.interpolation import path
from seqvae.objectives import Objective
from seqvae.traversals import largest, quantile_grid, traverse
from seqvae.vae import VAE

PREVIEWS = 8  # items a preview shows, and dimensions that are traversed
TRAVERSED = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # values of each of them, or such quantiles of another prior
STEPS = 8  # from one item to another
SIDE = 10  # of the grid over the plane of two dimensions, where there are no others
SCORED_WINDOWS = 512  # windows whose reconstruction is scored at each validation
LATENT_WINDOWS = 2000  # windows whose posteriors are looked at: for mutual information and the projector's snapshot


@dataclass(frozen=True)
class Validation:
    """Looks at a VAE on the valid split, the same way every time, and leaves the training's RNG as it was."""

    engine: Engine
    vae: VAE
    codec: Codec[Any]
    objective: Objective
    valid: WindowDataset
    batch_size: int
    max_tokens: int | None  # of a batch, fillers included

    @torch.no_grad()
    def run(self, tracker: Tracker | None, step: int, interrupted: Callable[[], bool]) -> dict[str, float]:
        """Return the metrics with every schedule at its end; nothing where `interrupted` said so on the way."""
        devices = [self.engine.device] if self.engine.device.type == "cuda" else []
        training = self.vae.training
        self.vae.eval()
        self.engine.share_buffers(self.vae)
        with torch.random.fork_rng(devices):
            torch.manual_seed(VALID_SEED)
            metrics = self._means(interrupted)
            if metrics and self.engine.is_main:
                looked_at = self._spread(LATENT_WINDOWS) if self.vae.latent_dim else []
                posterior = self._posterior(looked_at) if looked_at else None
                metrics |= self._latent_health(posterior) | self._reconstruction_scores()
                if tracker is not None:
                    tracker.scalars("valid", metrics, step)
                    self._preview(tracker, step)
                    if posterior is not None:
                        self._show_latents(tracker, step, looked_at, posterior)
        self.vae.train(training)
        return self.engine.broadcast(metrics)

    def _means(self, interrupted: Callable[[], bool]) -> dict[str, float]:
        batches = valid_loader(
            self.valid,
            self.codec,
            batch_size=self.batch_size,
            max_tokens=self.max_tokens,
            rank=self.engine.rank,
            world_size=self.engine.world_size,
        )
        totals: dict[str, Tensor] = {}
        for batch in batches:
            if interrupted():
                return {}
            x = batch.x.to(self.engine.device)
            examples = int((batch.index >= 0).sum())
            loss, parts = self.objective(self.vae, x, 1.0, self.engine.batch_mean(examples))
            for name, value in {"objective": loss, **parts, "examples": torch.ones(())}.items():
                totals[name] = totals.get(name, torch.zeros((), dtype=torch.float64)) + value.cpu().double() * examples
        names = sorted(totals)
        sums = self.engine.sum(torch.stack([totals[name] for name in names])).tolist()
        means = dict(zip(names, sums, strict=True))
        examples = means.pop("examples")
        return {name: total / examples for name, total in means.items()}

    def _latent_health(self, posterior: DiagonalGaussian | None) -> dict[str, float]:
        """Return what the latents say of windows, always the same ones; nothing where there is no latent."""
        if posterior is None:
            return {}
        on_cpu = DiagonalGaussian(posterior.mean.cpu(), posterior.log_variance.cpu())
        health = {"active_units": float(active_units(on_cpu))}
        if self.objective.noise:
            health["mutual_information"] = mutual_information(on_cpu, torch.Generator().manual_seed(VALID_SEED))
            health["mutual_information_cap"] = math.log(len(posterior.mean))
        return health

    def _reconstruction_scores(self) -> dict[str, float]:
        chosen = self._spread(SCORED_WINDOWS)
        predicted: list[Tensor] = []
        for x in self._seen(chosen):
            predicted += self.vae.decoder.predict(x, self.vae.encoder(x).mean).cpu()
        return self.codec.score([self.valid[index] for index in chosen], predicted)

    def _spread(self, count: int) -> list[int]:
        """Return evenly spread windows of the valid split."""
        return spread(range(len(self.valid)), count)

    def _seen(self, chosen: list[int]) -> Iterator[Tensor]:
        """Return what the model sees of windows, a batch at a time."""
        for batch in loader(self.valid, self.codec, self._cut(chosen), seed=VALID_SEED, epoch=VALID_EPOCH):
            yield batch.x.to(self.engine.device)

    def _cut(self, chosen: list[int]) -> list[list[int]]:
        """Return windows in batches within the training's bounds, in the order in which they come."""
        batches: list[list[int]] = []
        longest = 0
        for index in chosen:
            length = int(self.valid.lengths[index])
            longest = max(longest, length)
            rows = len(batches[-1]) + 1 if batches else 0
            fits = 0 < rows <= self.batch_size and (self.max_tokens is None or rows * longest <= self.max_tokens)
            if fits:
                batches[-1].append(index)
            else:
                batches.append([index])
                longest = length
        return batches

    def _posterior(self, chosen: list[int]) -> DiagonalGaussian:
        """Return the posteriors of windows."""
        parts = [self.vae.encoder(x) for x in self._seen(chosen)]
        posterior = DiagonalGaussian(
            torch.cat([part.mean for part in parts]), torch.cat([part.log_variance for part in parts])
        )
        return posterior if self.objective.noise else posterior.without_noise()

    def _preview(self, tracker: Tracker, step: int) -> None:
        chosen = self._spread(PREVIEWS)
        posterior = self._posterior(chosen)
        generator = torch.Generator(self.engine.device).manual_seed(VALID_SEED)
        prior = self.vae.prior(self.vae.encoder)
        shown: dict[str, Iterable[Tensor]] = {
            "truth": [self.valid[index] for index in chosen],
            "reconstruction": self.vae.decoder.sample(posterior.mean),
            "sample": self.vae.decoder.sample(prior.sample(PREVIEWS, generator)),
        }
        for name, windows in shown.items():
            items = [self.codec.join([window.cpu()]) for window in windows]
            tracker.preview(f"valid/{name}", self.codec.preview(items), step)

    def _show_latents(self, tracker: Tracker, step: int, looked_at: list[int], posterior: DiagonalGaussian) -> None:
        """Show how much each dimension is used, what the most used ones do, and where the posteriors lie."""
        prior = self.vae.prior(self.vae.encoder)
        generator = torch.Generator(self.engine.device).manual_seed(VALID_SEED)
        use = use_of_dimensions(posterior, prior, generator)
        if self.objective.noise:
            tracker.histogram("valid/kl_per_dimension", use.amount, step)
        dimensions = largest(use.amount, PREVIEWS)
        preview = self._grid(traverse(prior, prior.mean, dimensions, TRAVERSED), len(TRAVERSED))
        rows, columns = [use.label(d) for d in dimensions], [f"{value:+g}" for value in TRAVERSED]
        tracker.preview("valid/traversal", labelled(preview, rows, columns), step)
        ends = self._posterior(self._spread(2)).mean
        tracker.preview("valid/interpolation", self._grid(path(ends[0], ends[-1], STEPS), STEPS), step)
        if self.vae.latent_dim == 2:
            tracker.preview("valid/manifold", self._grid(quantile_grid(prior, (0, 1), SIDE), SIDE), step)
        if plots.missing() or not bool((posterior.mean + posterior.log_variance.exp()).isfinite().all()):
            return
        title = f"step {step:,}"
        figures = {"prior": plots.against_prior(posterior, use, prior, title, generator=generator)}
        if self.vae.latent_dim > 1:
            names = read_manifest(self.valid.root)["options"].get("label_names", ())
            cloud = plots.cloud(title, posterior.mean, self._labels(looked_at), use, prior)
            figures["latents"] = plots.scatter([cloud], names)
        for name, figure in figures.items():
            tracker.preview(f"valid/{name}", Preview(image=plots.pixels(figure)), step)

    def _grid(self, z: Float[Tensor, "windows latent"], columns: int) -> Preview:
        """Return what latents decode to, row by row."""
        items = [self.codec.join([window.cpu()]) for window in self.vae.decoder.sample(z)]
        return self.codec.preview(items, columns, sound=False)

    def _labels(self, chosen: list[int]) -> Tensor | None:
        try:
            return torch.from_numpy(self.valid.column("label")[chosen])
        except ValueError:
            return None

    @torch.no_grad()
    def project(self, tracker: Tracker, step: int) -> None:
        """Write posterior means for the embedding projector, where there are any."""
        if self.vae.latent_dim == 0:
            return
        training = self.vae.training
        self.vae.eval()
        chosen = self._spread(LATENT_WINDOWS)
        labels = self._labels(chosen)
        if labels is None:
            names = [self.valid.names[self.valid.items[index]] for index in chosen]
        else:
            names = [str(label) for label in labels.tolist()]
        tracker.embedding("valid/posterior_mean", self._posterior(chosen).mean.cpu(), names, step)
        self.vae.train(training)
