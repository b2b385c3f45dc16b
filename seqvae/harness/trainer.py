"""The training loop: one step after another, validated, saved, and resumable at every step."""

import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from seqvae.data.batching import BatchOrder, loader, valid_loader
from seqvae.data.codec import Codec
from seqvae.data.dataset import VALID_EPOCH, Batch, WindowDataset
from seqvae.evaluation import active_units
from seqvae.gaussian import DiagonalGaussian
from seqvae.harness import checkpoint
from seqvae.harness.checkpoint import CheckpointError, TrainingState
from seqvae.harness.engine import Engine
from seqvae.harness.tracking import ProgressBar, Tracker
from seqvae.objectives import Loss, Objective
from seqvae.schedules import Schedule
from seqvae.vae import VAE

log = logging.getLogger(__name__)

PREVIEWS = 8  # items a preview shows
SCORED_WINDOWS = 512  # windows whose reconstruction is scored at each validation
PROJECTED_POINTS = 2000  # posterior means in the projector's snapshot
VALID_SEED = 777


class TrainingError(ValueError):
    """A training that cannot go on; the message says where it stands."""


@dataclass(frozen=True)
class TrainerOptions:
    """A person's choices; intervals count optimizer steps.

    Raises:
        ValueError: for a value out of its range, with the key a person typed.
    """

    max_steps: int
    max_minutes: float | None = None  # a safety stop: it saves and ends, and moves no schedule
    valid_every: int = 500
    save_every: int = 500
    log_every: int = 50
    keep_last: int = 2
    clip_norm: float = 1.0
    monitor: str = "objective"
    devices: int | str = "auto"
    precision: str = "32-true"

    def __post_init__(self) -> None:
        for name in ("max_steps", "valid_every", "save_every", "log_every", "keep_last"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"trainer.{name} must be a positive int, got {value!r}")
        for name in ("max_minutes", "clip_norm"):
            value = getattr(self, name)
            if value is None and name == "max_minutes":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"trainer.{name} must be a positive number, got {value!r}")


class TrainingStep(nn.Module):
    """The one module that is wrapped, because DDP synchronises only through the wrapped forward."""

    def __init__(self, vae: VAE, objective: Objective) -> None:
        super().__init__()
        self.vae = vae
        self.objective = objective

    def forward(self, x: Tensor, progress: float) -> Loss:
        return self.objective(self.vae, x, progress)


@dataclass
class Trainer:
    """Trains a VAE on the train split and watches it on the valid split."""

    engine: Engine
    vae: VAE
    codec: Codec[Any]
    objective: Objective
    optimizer: Optimizer
    learning_rate: Schedule  # a factor of the optimizer's own rate
    train: WindowDataset
    valid: WindowDataset
    order: BatchOrder
    options: TrainerOptions
    run_dir: Path
    config: dict[str, Any]  # what a checkpoint says of the model
    seed: int = 0
    workers: int = 0
    fresh_views: bool = True
    step: int = 0
    schedule_steps: int = 0
    best_score: float = -math.inf
    best_path: Path | None = None

    def fit(self, resume: Path | None = None) -> dict[str, float]:
        """Train to the last step and return the last validation's metrics; `resume` is a checkpoint to go on from."""
        self.engine.seed(self.seed)
        self.schedule_steps = self.options.max_steps
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.module, self.optimizer = self.engine.setup(TrainingStep(self.vae, self.objective), self.optimizer)
        if resume is not None:
            self._restore(resume)
        tracker = Tracker(self.run_dir / "tensorboard", self.step) if self.engine.is_main else None
        if tracker is not None and resume is None:
            tracker.config((self.run_dir / "config.yaml").read_text(encoding="utf-8"))
        try:
            with ProgressBar(self.options.max_steps, self.step, self.engine.is_main) as bar:
                return self._loop(tracker, bar)
        finally:
            if tracker is not None:
                tracker.close()

    def _loop(self, tracker: Tracker | None, bar: ProgressBar) -> dict[str, float]:
        options, metrics, start = self.options, {}, time.monotonic()
        meter = _Meter(self.engine)
        batches = self._batches()
        while self.step < options.max_steps:
            meter.add(*self._step(next(batches)))
            bar.step(self.step)
            if self.step % options.log_every == 0:
                numbers = meter.read()
                bar.numbers(self.step, numbers)
                if tracker is not None:
                    tracker.scalars("train", numbers, self.step)
            finished = self.step == options.max_steps
            out_of_time = self._out_of_time(start)
            valid_due = finished or self.step % options.valid_every == 0
            if valid_due:
                metrics = self._validate(tracker)
                bar.numbers(self.step, {f"valid/{name}": value for name, value in metrics.items()})
                meter.pause()
            if valid_due or out_of_time or self.step % options.save_every == 0:
                if tracker is not None:
                    tracker.flush()
                self._save(metrics if valid_due else {})
                meter.pause()
            if out_of_time and not finished:
                log.warning(
                    "stopped at step %s of %s after %g minutes; go on with resume=auto",
                    f"{self.step:,}",
                    f"{options.max_steps:,}",
                    options.max_minutes,
                )
                break
        if tracker is not None:
            self._project(tracker)
        return metrics

    def _out_of_time(self, start: float) -> bool:
        if self.options.max_minutes is None:
            return False
        return self.engine.broadcast(time.monotonic() - start > 60 * self.options.max_minutes)

    def _batches(self) -> Iterator[Batch]:
        """Yield this rank's batches from the current position on, for ever."""
        while True:
            epoch, done = divmod(self.step, self.order.steps)
            batches = self.order.epoch(epoch, self.engine.rank)[done:]
            view_epoch = epoch if self.fresh_views else VALID_EPOCH
            yield from loader(self.train, self.codec, batches, seed=self.seed, epoch=view_epoch, workers=self.workers)

    def _step(self, batch: Batch) -> tuple[int, int, dict[str, Tensor]]:
        """Take one optimizer step; return how many examples and values it saw here, and the batch's metrics."""
        progress = self.step / self.schedule_steps
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * self.learning_rate(progress)
        examples = int((batch.index >= 0).sum())
        x = batch.x.to(self.engine.device, non_blocking=True)
        result = self.module(x, progress)
        # every example weighs the same, however many share its batch
        self.engine.backward(result.loss * (examples / self.order.mean_batch_size))
        try:
            norm = self.engine.clip(self.module, self.optimizer, self.options.clip_norm)
        except RuntimeError as error:
            loss, windows = float(result.loss.detach()), batch.index[:8].tolist()
            raise TrainingError(
                f"step {self.step + 1}: the gradient is not finite (loss {loss:g}, first windows of the batch "
                f"{windows}); the optimizer step was not taken, the last checkpoint stands"
            ) from error
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        values = int((batch.x >= 0).sum()) if batch.x.ndim == 2 else 0
        return examples, values, {"loss": result.loss.detach(), **result.metrics, "grad_norm": norm}

    @torch.no_grad()
    def _validate(self, tracker: Tracker | None) -> dict[str, float]:
        """Return the valid split's metrics with every schedule at its end; the training's RNG is left as it was."""
        devices = [self.engine.device] if self.engine.device.type == "cuda" else []
        self.vae.eval()
        with torch.random.fork_rng(devices):
            torch.manual_seed(VALID_SEED)
            metrics = self._valid_means()
            if self.engine.is_main:
                metrics |= self._reconstruction_scores()
                if tracker is not None:
                    tracker.scalars("valid", metrics, self.step)
                    self._preview(tracker)
        self.vae.train()
        return metrics

    def _valid_means(self) -> dict[str, float]:
        batch_size = math.ceil(self.order.mean_batch_size)
        batches = valid_loader(
            self.valid, self.codec, batch_size=batch_size, rank=self.engine.rank, world_size=self.engine.world_size
        )
        totals: dict[str, Tensor] = {}
        for batch in batches:
            x = batch.x.to(self.engine.device)
            loss, parts = self.objective(self.vae, x, progress=1.0)
            examples = int((batch.index >= 0).sum())
            for name, value in {"objective": loss, **parts, "examples": torch.ones(())}.items():
                totals[name] = totals.get(name, torch.zeros((), dtype=torch.float64)) + value.double().cpu() * examples
        names = sorted(totals)
        sums = self.engine.sum(torch.stack([totals[name] for name in names]).to(self.engine.device)).tolist()
        means = dict(zip(names, sums, strict=True))
        examples = means.pop("examples")
        return {name: total / examples for name, total in means.items()}

    def _reconstruction_scores(self) -> dict[str, float]:
        chosen, x, posterior = self._encode(SCORED_WINDOWS)
        predicted = list(self.vae.decoder.predict(x, posterior.mean).cpu())
        truth = [self.valid[index] for index in chosen]
        return {"active_units": float(active_units(posterior)), **self.codec.score(truth, predicted)}

    def _encode(self, count: int) -> tuple[list[int], Tensor, DiagonalGaussian]:
        """Return evenly spread windows of the valid split, what the model sees of them, and their posteriors."""
        count = min(count, len(self.valid))
        chosen = [place * len(self.valid) // count for place in range(count)]
        (batch,) = loader(self.valid, self.codec, [chosen], seed=VALID_SEED, epoch=VALID_EPOCH)
        x = batch.x.to(self.engine.device)
        return chosen, x, self.vae.encoder(x)

    def _preview(self, tracker: Tracker) -> None:
        chosen, _, posterior = self._encode(PREVIEWS)
        generator = torch.Generator(self.engine.device).manual_seed(VALID_SEED)
        prior = self.vae.prior(self.vae.encoder)
        shown: dict[str, Iterable[Tensor]] = {
            "truth": [self.valid[index] for index in chosen],
            "reconstruction": self.vae.decoder.sample(posterior.mean),
            "sample": self.vae.decoder.sample(prior.sample(PREVIEWS, generator)),
        }
        for name, windows in shown.items():
            items = [self.codec.join([window.cpu()]) for window in windows]
            tracker.preview(f"valid/{name}", self.codec.preview(items), self.step)

    @torch.no_grad()
    def _project(self, tracker: Tracker) -> None:
        self.vae.eval()
        chosen, _, posterior = self._encode(PROJECTED_POINTS)
        try:
            labels = [str(label) for label in self.valid.column("label")[chosen]]
        except ValueError:
            labels = [self.valid.names[self.valid.items[index]] for index in chosen]
        tracker.embedding("valid/posterior_mean", posterior.mean.cpu(), labels, self.step)
        self.vae.train()

    def _save(self, metrics: dict[str, float]) -> None:
        """Write a checkpoint (every rank hands in its RNG, the main one writes) and remove those no longer wanted."""
        generators = self.engine.gather(torch.get_rng_state().to(self.engine.device))
        if self.engine.device.type == "cuda":
            cuda = self.engine.gather(torch.cuda.get_rng_state(self.engine.device).to(self.engine.device))
        else:
            cuda = []
        score = self._score(metrics)
        if self.engine.is_main:
            improved = score is not None and score > self.best_score
            if improved:
                assert score is not None
                self.best_score = score
            tensors = {f"rng.{rank}": state for rank, state in enumerate(generators)}
            tensors |= {f"rng.cuda.{rank}": state for rank, state in enumerate(cuda)}
            for index, state in self.optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
            if isinstance(self.objective, nn.Module):  # what a controller has come to
                tensors |= {f"objective.{name}": value for name, value in self.objective.state_dict().items()}
            values = {
                "step": self.step,
                "schedule_steps": self.schedule_steps,
                "world_size": self.engine.world_size,
                "best_score": self.best_score if self.best_score > -math.inf else None,
            }
            path = checkpoint.save_checkpoint(
                self.run_dir / "checkpoints",
                self.step,
                self.vae.state_dict(),
                {**self.config, "step": self.step, "metrics": metrics, "score": score},
                self.codec,
                TrainingState(tensors, values),
            )
            if improved:
                self.best_path = path
            checkpoint.prune(self.run_dir, self.options.keep_last, self.best_path)
        self.engine.barrier()

    def _score(self, metrics: dict[str, float]) -> float | None:
        """Return what `best` is chosen by, higher is better; None where there was no validation."""
        if not metrics:
            return None
        metrics = self.engine.broadcast(metrics)
        if self.options.monitor not in metrics:
            known = ", ".join(sorted(metrics))
            raise TrainingError(f"trainer.monitor must be one of {known}, got {self.options.monitor!r}")
        value = metrics[self.options.monitor]
        return -value if self.options.monitor == "objective" else value

    def _restore(self, path: Path) -> None:
        """Take up a checkpoint: weights, optimizer, position, random numbers."""
        state = checkpoint.read_training(path)
        try:
            world_size = state.values["world_size"]
            if world_size != self.engine.world_size:
                raise CheckpointError(
                    path, f"was trained by {world_size} processes, cannot go on with {self.engine.world_size}"
                )
            self.vae.load_state_dict(checkpoint.read_tensors(path, "model.safetensors"))
            optimizer = self.optimizer.state_dict()
            moments: dict[int, dict[str, Tensor]] = {}
            for name, tensor in state.tensors.items():
                if name.startswith("optimizer."):
                    _, index, key = name.split(".")
                    moments.setdefault(int(index), {})[key] = tensor
            self.optimizer.load_state_dict({**optimizer, "state": moments})
            if isinstance(self.objective, nn.Module):
                below = {name: value for name, value in state.tensors.items() if name.startswith("objective.")}
                self.objective.load_state_dict({name.removeprefix("objective."): below[name] for name in below})
            self.step = state.values["step"]
            self.schedule_steps = state.values["schedule_steps"]
            best = state.values["best_score"]
            torch.set_rng_state(state.tensors[f"rng.{self.engine.rank}"].cpu())
            if self.engine.device.type == "cuda":
                torch.cuda.set_rng_state(state.tensors[f"rng.cuda.{self.engine.rank}"].cpu(), self.engine.device)
        except (KeyError, RuntimeError, TypeError) as error:
            raise CheckpointError(path, f"does not fit this training: {error}") from error
        if best is not None:
            self.best_score = best
            self.best_path = checkpoint.best(self.run_dir)
        log.info("going on from %s", path)


class _Meter:
    """Means over examples of what the steps between two lines reported, and the throughput between them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._clear()

    def _clear(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.examples = 0
        self.values = 0
        self.seconds = 0.0
        self.since = time.monotonic()

    def add(self, examples: int, values: int, metrics: dict[str, Tensor]) -> None:
        now = time.monotonic()
        self.seconds += now - self.since
        self.since = now
        self.examples += examples
        self.values += values
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.detach() * examples

    def pause(self) -> None:
        """Leave out of the throughput what was no training."""
        self.since = time.monotonic()

    def read(self) -> dict[str, float]:
        """Return the means over all processes since the last call, and examples (and tokens) a second."""
        names = sorted(self.sums)
        counts = torch.tensor([self.examples, self.values], dtype=torch.float32, device=self.engine.device)
        totals = self.engine.sum(torch.cat([torch.stack([self.sums[name] for name in names]), counts])).tolist()
        *sums, examples, values = totals
        numbers = {name: total / max(examples, 1) for name, total in zip(names, sums, strict=True)}
        numbers["examples_per_second"] = examples / max(self.seconds, 1e-9)
        if values:
            numbers["tokens_per_second"] = values / max(self.seconds, 1e-9)
        self._clear()
        return numbers


def trainer_options(node: dict[str, Any]) -> TrainerOptions:
    """Return the options of a configuration node. Raises ValueError for a key that is none."""
    known = {field.name for field in fields(TrainerOptions)}
    for name in node:
        if name not in known:
            raise ValueError(f"trainer has no option {name!r}; it has: {', '.join(sorted(known))}")
    return TrainerOptions(**node)
