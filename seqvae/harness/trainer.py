"""The training loop: one step after another, validated, saved, and resumable at every step."""

import logging
import math
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn

from seqvae.data.batching import BatchOrder, loader
from seqvae.data.codec import Codec
from seqvae.data.dataset import VALID_EPOCH, Batch, WindowDataset
from seqvae.harness import checkpoint
from seqvae.harness.aggressive import FIRST_EPOCH, catch_up
from seqvae.harness.checkpoint import CheckpointError, TrainingState
from seqvae.harness.engine import Engine
from seqvae.harness.meter import Meter, Report
from seqvae.harness.options import TrainerOptions
from seqvae.harness.profiling import profiler
from seqvae.harness.signals import Stopped, StopSignals
from seqvae.harness.tracking import ProgressBar, Tracker
from seqvae.harness.validation import Validation
from seqvae.objectives import BatchMean, Loss, Objective, ScheduledSampling, batch_mean
from seqvae.schedules import Schedule
from seqvae.vae import VAE

log = logging.getLogger(__name__)

COLLAPSED_NATS = 0.1  # of mutual information: latents that say less say nothing


class TrainingError(ValueError):
    """A training that cannot go on; the message says where it stands."""


class TrainingStep(nn.Module):
    """The one module that is wrapped, because DDP synchronises only through the wrapped forward."""

    def __init__(self, vae: VAE, objective: Objective, sampling: ScheduledSampling | None = None) -> None:
        super().__init__()
        self.vae = vae
        self.objective = objective
        self.sampling = sampling

    def forward(self, x: Tensor, progress: float, mean: BatchMean = batch_mean) -> Loss:
        if self.sampling is not None:
            return self.sampling(self.objective, self.vae, x, progress, mean)
        return self.objective(self.vae, x, progress, mean)


@dataclass
class Progress:
    """How far a training has come: with the tensors of a checkpoint, all that the next step depends on."""

    step: int = 0
    schedule_steps: int = 0
    best_score: float | None = None
    validations_since_best: int = 0
    skipped: int = 0  # steps whose loss or gradient was not finite
    collapse_told: bool = False  # once is enough
    encoder_caught_up: bool = False  # then it takes no more steps of its own
    mutual_information: float | None = None  # at the last validation before that
    validation_due: bool = False  # of this very step: a signal may come between the two


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
    sampling: ScheduledSampling | None = None
    progress: Progress = field(default_factory=Progress)

    def fit(self, resume: Path | None = None, settings: dict[str, Any] | None = None) -> dict[str, float]:
        """Train to the end and return the last validation's metrics; `resume` is a checkpoint to go on from.

        `settings` is the configuration, where it is new and to be shown.

        Raises:
            Stopped: after a signal, when everything is saved.
            TrainingError: when a step or the weights are not finite, or there is no such metric to monitor.
        """
        self.set_up(resume)
        step, is_main = self.progress.step, self.engine.is_main
        density = self.vae.decoder.is_density
        self.tracker = Tracker(self.run_dir / "tensorboard", step, density) if is_main else None
        if self.tracker is not None and settings is not None:
            self.tracker.config(settings, step)
        profile = profiler(self.run_dir / f"trace-{step:09d}.json", self.options.profile if is_main else 0)
        self.bar = ProgressBar(self.options.max_steps, step, is_main)
        try:
            with StopSignals() as self.signals, self.bar, profile as self.profile_step:
                return self._loop()
        finally:
            if self.tracker is not None:
                self.tracker.close()

    def set_up(self, resume: Path | None = None) -> None:
        """Make ready what a step needs, as a start or as `resume` left it."""
        options = self.options
        self.engine.seed(self.seed)
        self.progress.schedule_steps = options.max_steps
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.module, self.optimizer = self.engine.setup(
            TrainingStep(self.vae, self.objective, self.sampling), self.optimizer, options.compile
        )
        self.average = _moving_average(self.vae, options.ema)
        self.used = self.vae if self.average is None else cast("VAE", self.average.module)
        self.validation = Validation(
            engine=self.engine,
            vae=self.used,
            codec=self.codec,
            objective=self.objective,
            valid=self.valid,
            batch_size=math.ceil(self.order.mean_batch_size),
            max_tokens=self.order.max_tokens,
        )
        self.best_path: Path | None = None
        self.meter = Meter(self.engine)
        if resume is not None:
            self._restore(resume)

    def _loop(self) -> dict[str, float]:
        options, progress = self.options, self.progress
        metrics: dict[str, float] = {}
        start, out_of_time = time.monotonic(), False
        position = progress.step * options.accumulate
        # closed here, not when the interpreter ends: it may have workers
        with closing(self._batches(position, workers=self.workers)) as batches:
            while not self._finished() and not out_of_time:
                if not progress.validation_due:
                    self.meter.add(self._step(batches))
                    self.profile_step()
                    self._log()
                    last = progress.step >= options.max_steps
                    progress.validation_due = last or progress.step % options.valid_every == 0
                validated = self._validate() if progress.validation_due else {}
                metrics = validated or metrics
                improved = self._judge(validated)
                out_of_time = self._out_of_time(start)
                if validated or out_of_time or progress.step % options.save_every == 0 or self._signal():
                    self._save(validated, improved)
                    if number := self._signal():  # which may have come while saving
                        raise Stopped(number, progress.step)
                self.meter.pause()
        self._say_why_it_ends()
        if self.tracker is not None:
            self.validation.project(self.tracker, progress.step)
        return metrics

    def _finished(self) -> bool:
        return not self.progress.validation_due and (
            self.progress.step >= self.options.max_steps or self._out_of_patience()
        )

    def _out_of_patience(self) -> bool:
        patience = self.options.patience
        return patience is not None and self.progress.validations_since_best >= patience

    def _out_of_time(self, start: float) -> bool:
        if self.options.max_minutes is None:
            return False
        return self.engine.broadcast(time.monotonic() - start > 60 * self.options.max_minutes)

    def _signal(self) -> int:
        """Return the signal that came, to whichever process: they stop at the same step or wait for each other."""
        return self.engine.largest(self.signals.number)

    def _say_why_it_ends(self) -> None:
        options, progress = self.options, self.progress
        if progress.step >= options.max_steps or not self.engine.is_main:
            return
        if self._out_of_patience():
            log.info(
                "ended at step %s of %s: %d validations without a better one (trainer.patience)",
                f"{progress.step:,}",
                f"{options.max_steps:,}",
                progress.validations_since_best,
            )
        else:
            log.warning(
                "stopped at step %s of %s after %g minutes; go on with resume=auto",
                f"{progress.step:,}",
                f"{options.max_steps:,}",
                options.max_minutes,
            )

    def _log(self) -> None:
        step = self.progress.step
        self.bar.step(step)
        if step % self.options.log_every == 0:
            numbers = self.meter.read()
            if self.progress.skipped:
                numbers["skipped_steps"] = self.progress.skipped
            self.bar.numbers(step, numbers)
            if self.tracker is not None:
                self.tracker.scalars("train", numbers, step)

    def _batches(self, position: int, first_epoch: int = 0, workers: int = 0) -> Generator[Batch]:
        """Yield this rank's batches from a position on, for ever."""
        while True:
            epoch, done = divmod(position, self.order.steps)
            epoch += first_epoch
            batches = self.order.epoch(epoch, self.engine.rank)[done:]
            view_epoch = epoch if self.fresh_views else VALID_EPOCH
            yield from loader(self.train, self.codec, batches, seed=self.seed, epoch=view_epoch, workers=workers)
            position += len(batches)

    def _step(self, batches: Iterator[Batch]) -> list[Report]:
        """Take one optimizer step over `accumulate` batches; return what they reported."""
        share = self.progress.step / self.progress.schedule_steps
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * self.learning_rate(share)
        ahead = self._catch_up(share)
        reports, windows = self._gradients(batches, share)
        norm = self.engine.clip(self.module, self.optimizer, self.options.clip_norm)
        losses = torch.stack([report.metrics["loss"] for report in reports])
        self.progress.step += 1
        if self.engine.largest(not bool(torch.stack([*losses, norm]).isfinite().all())):
            self._skip(losses, norm, windows)
            self.optimizer.zero_grad(set_to_none=True)
            return []
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.vae)
        return [report._replace(metrics={**report.metrics, **ahead, "grad_norm": norm}) for report in reports]

    def _gradients(self, batches: Iterator[Batch], share: float) -> tuple[list[Report], list[int]]:
        """Add up the gradients of the next `accumulate` batches; return what they reported and their windows."""
        # every example weighs the same, however many share its batch; DDP takes the mean over processes, hence the size
        examples_a_step = self.options.accumulate * len(self.train) / self.order.steps
        weight = self.engine.world_size / examples_a_step
        reports, windows = [], []
        for part in range(self.options.accumulate):
            batch = next(batches)
            examples = int((batch.index >= 0).sum())
            x = batch.x.to(self.engine.device, non_blocking=True)
            with self.engine.accumulating(self.module, more=part + 1 < self.options.accumulate):
                loss, metrics = self.module(x, share, self.engine.batch_mean(examples))
                self.engine.backward(loss * (examples * weight))
            tokens = int((batch.x >= 0).sum()) if batch.x.dtype == torch.int64 else 0
            reports.append(Report(examples, tokens, {"loss": loss.detach(), **metrics}))
            windows += batch.index.tolist()
        return reports, windows

    def _catch_up(self, share: float) -> dict[str, Tensor]:
        """Let the encoder take its own steps before the next one, whose number says which batches they see."""
        most, taken = self.options.aggressive_steps, 0
        if most == 0:
            return {}
        if not self.progress.encoder_caught_up:
            batches = self._batches(self.progress.step * most * self.options.accumulate, FIRST_EPOCH)
            taken = catch_up(
                self.engine,
                self.module,
                self.optimizer,
                self.vae,
                lambda: self._gradients(batches, share)[0],
                most,
                self.options.clip_norm,
            )
        return {"encoder_steps": torch.tensor(float(taken), device=self.engine.device)}

    def _skip(self, losses: Tensor, norm: Tensor, windows: list[int]) -> None:
        """Count a step that is not taken. Raises TrainingError when that has happened too often."""
        self.progress.skipped += 1
        what = "gradient" if losses.isfinite().all() else "loss"
        where = f" in process {self.engine.rank}" if self.engine.world_size > 1 else ""
        told = (
            f"step {self.progress.step}{where}: the {what} is not finite (loss {float(losses.mean()):g}, gradient norm "
            f"{float(norm):g}, first windows of the batch {windows[:8]}); the optimizer step was not taken"
        )
        limit = self.options.skip_nonfinite
        if self.progress.skipped > limit:
            raise TrainingError(
                f"{told}, the last checkpoint stands" + (f"; {limit} were skipped before" if limit else "")
            )
        log.warning("%s (%d of at most %d)", told, self.progress.skipped, limit)

    def _validate(self) -> dict[str, float]:
        """Return the metrics; nothing where a signal came on the way: then the validation stays due."""
        step = self.progress.step
        metrics = self.validation.run(self.tracker, step, interrupted=lambda: self._signal() != 0)
        self.progress.validation_due = not metrics
        self.bar.numbers(step, {f"valid/{name}": value for name, value in metrics.items()})
        self._warn_of_collapse(metrics)
        self._watch_the_encoder(metrics)
        return metrics

    def _watch_the_encoder(self, metrics: dict[str, float]) -> None:
        """End the steps of the encoder alone when what the latents say has not grown since the last validation."""
        progress = self.progress
        if not metrics or self.options.aggressive_steps == 0 or progress.encoder_caught_up:
            return
        before, progress.mutual_information = progress.mutual_information, metrics["mutual_information"]
        progress.encoder_caught_up = before is not None and not progress.mutual_information > before
        if progress.encoder_caught_up and self.engine.is_main:
            log.info(
                "step %s: mutual information no longer grows (%.3g nats after %.3g): "
                "the encoder takes no more steps of its own",
                f"{progress.step:,}",
                progress.mutual_information,
                before,
            )

    def _warn_of_collapse(self, metrics: dict[str, float]) -> None:
        """Say, once a training, that the latents are not used at the price that their KL ends with, and what helps."""
        progress, nats = self.progress, metrics.get("mutual_information", math.inf)
        if progress.collapse_told or nats >= COLLAPSED_NATS:
            return
        if metrics["mutual_information_cap"] < COLLAPSED_NATS:  # of a single window nothing can be told
            return
        if not self.objective.annealed(progress.step / progress.schedule_steps):
            return
        progress.collapse_told = True
        if self.engine.is_main:
            log.warning(
                "step %s: the latents say %.2g nats about what they encode, and their KL has come to its last price: "
                "the posterior has collapsed. Try objective.free_nats=0.25, objective=target_rate, "
                "model.posterior_gamma=0.6 (lstm), or the encoder of an autoencoder (experiment=text_pretrained)",
                f"{progress.step:,}",
                nats,
            )

    def _score(self, metrics: dict[str, float]) -> float | None:
        """Return what `best` is chosen by, higher is better; None where it is not finite or nothing was validated."""
        if not metrics:
            return None
        name = self.options.monitor
        if name not in metrics:
            raise TrainingError(f"trainer.monitor must be one of {', '.join(sorted(metrics))}, got {name!r}")
        value = -metrics[name] if name == "objective" else metrics[name]
        return value if math.isfinite(value) else None

    def _judge(self, metrics: dict[str, float]) -> bool:
        """Return whether these metrics are the best so far, and count how long ago the best ones were."""
        if not metrics:
            return False
        score, best = self._score(metrics), self.progress.best_score
        if score is not None and (best is None or score > best):
            self.progress.best_score, self.progress.validations_since_best = score, 0
            return True
        self.progress.validations_since_best += 1
        return False

    def _save(self, metrics: dict[str, float], improved: bool) -> None:
        """Write a checkpoint (every rank hands in its RNG, the main one writes) and remove those no longer wanted.

        Raises:
            TrainingError: instead of writing weights that are not finite.
        """
        for name, weight in self.used.state_dict().items():
            if not bool(weight.isfinite().all()):
                raise TrainingError(f"step {self.progress.step}: {name} is not finite; the last checkpoint stands")
        generators = {"rng": self.engine.gather(torch.get_rng_state().to(self.engine.device))}
        if self.engine.device.type == "cuda":
            state = torch.cuda.get_rng_state(self.engine.device).to(self.engine.device)
            generators["rng.cuda"] = self.engine.gather(state)
        meter = self.meter.state()
        if self.engine.is_main:
            if self.tracker is not None:
                self.tracker.flush()
            tensors = {
                f"{name}.{rank}": state for name, states in generators.items() for rank, state in enumerate(states)
            }
            tensors |= {f"meter.{name}": value for name, value in meter.items()}
            for index, state in self.optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
            if isinstance(self.objective, nn.Module):  # what a controller has come to
                tensors |= {f"objective.{name}": value for name, value in self.objective.state_dict().items()}
            if self.average is not None:
                tensors |= {f"raw.{name}": value for name, value in self.vae.state_dict().items()}
            path = checkpoint.save_checkpoint(
                self.run_dir / "checkpoints",
                self.progress.step,
                self.used.state_dict(),
                {**self.config, "step": self.progress.step, "metrics": metrics, "score": self._score(metrics)},
                self.codec,
                TrainingState(tensors, {**asdict(self.progress), "world_size": self.engine.world_size}),
            )
            if improved:
                self.best_path = path
            checkpoint.prune(self.run_dir, self.options.keep_last, self.best_path)
        self.engine.barrier()

    def _restore(self, path: Path) -> None:
        """Take up a checkpoint: weights, optimizer, position, random numbers."""
        state = checkpoint.read_training(path)
        try:
            values = dict(state.values)
            world_size = values.pop("world_size")
            if world_size != self.engine.world_size:
                raise CheckpointError(
                    path, f"was trained by {world_size} processes, cannot go on with {self.engine.world_size}"
                )
            self.progress = Progress(**values)
            self.used.load_state_dict(checkpoint.read_tensors(path, checkpoint.WEIGHTS))
            if self.average is not None:
                self.vae.load_state_dict(_below("raw.", state.tensors))
                self.average.n_averaged.fill_(self.progress.step - self.progress.skipped)
            moments: dict[int, dict[str, Tensor]] = {}
            for name, tensor in _below("optimizer.", state.tensors).items():
                index, key = name.split(".")
                moments.setdefault(int(index), {})[key] = tensor
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
            if isinstance(self.objective, nn.Module):
                self.objective.load_state_dict(_below("objective.", state.tensors))
            if self.engine.is_main:
                self.meter.restore(_below("meter.", state.tensors))
            torch.set_rng_state(state.tensors[f"rng.{self.engine.rank}"].cpu())
            if self.engine.device.type == "cuda":
                torch.cuda.set_rng_state(state.tensors[f"rng.cuda.{self.engine.rank}"].cpu(), self.engine.device)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(path, f"does not fit this training: {error}") from error
        if self.engine.is_main:
            if self.progress.best_score is not None:
                self.best_path = checkpoint.best(self.run_dir)
            log.info("going on from %s", path)


def _moving_average(vae: VAE, decay: float | None) -> AveragedModel | None:
    """Return a copy of the VAE that follows its weights: what is then validated, shown and used.

    The decay after n steps is min(decay, (1 + n) / (10 + n)), as of TensorFlow's ExponentialMovingAverage(num_updates):
    a constant one of 0.999 would weigh the random weights of the beginning by 0.37 after 1,000 steps.
    """
    if decay is None:
        return None

    def follow(means: PARAM_LIST, weights: PARAM_LIST, steps: Tensor | int) -> None:
        n = int(steps)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(means, weights, steps)

    # buffers too: running statistics of the last weights would not be those of the average
    return AveragedModel(vae, multi_avg_fn=follow, use_buffers=True)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
