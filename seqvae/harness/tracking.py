"""What a run shows: TensorBoard scalars, media and embeddings as `split/name`, and a bar or lines in the terminal."""

import logging
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from seqvae.data.codec import Preview
from seqvae.objectives import OF_THE_LIKELIHOOD

log = logging.getLogger(__name__)

HYPERPARAMETER_METRICS = ("objective", "elbo")  # of the validation


class Tracker:
    """Writes one TensorBoard run; after a resume, what stood after `step` is purged, so each step shows once.

    Where p(x|z) is a `density`, the nats made of it have tags of their own: elbo_of_density is in no chart with an ELBO
    of probabilities.
    """

    def __init__(self, folder: Path, step: int = 0, density: bool = False) -> None:
        self.density = density
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tensorboard's own imports
            from torch.utils.tensorboard import SummaryWriter
            from torch.utils.tensorboard.summary import hparams
        self.hparams = hparams
        # at the very start, too: a run that died before its first checkpoint begins again in the same folder
        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else 0)

    def scalars(self, split: str, metrics: dict[str, float], step: int) -> None:
        """Write numbers as split/name."""
        for name, value in metrics.items():
            self.writer.add_scalar(self._tag(split, name), value, step)

    def _tag(self, split: str, name: str) -> str:
        return f"{split}/{name}_of_density" if self.density and name in OF_THE_LIKELIHOOD else f"{split}/{name}"

    def histogram(self, name: str, values: Tensor, step: int) -> None:
        """Write how numbers are spread under split/name."""
        self.writer.add_histogram(name, values, step)

    def config(self, settings: Mapping[str, Any], step: int) -> None:
        """Write a flat configuration as text and, in the same run, as hyperparameters beside what they led to."""
        text = "\n".join(f"    {name}: {_printable(str(value))}" for name, value in settings.items())
        self.writer.add_text("run/config", text, step)
        values = {
            name: value if isinstance(value, bool | int | float) else str(value) for name, value in settings.items()
        }
        # not add_hparams: it would open a second run beside this one
        metrics = {self._tag("valid", name): 0.0 for name in HYPERPARAMETER_METRICS}
        summaries = self.hparams(values, metrics)  # type: ignore[no-untyped-call]
        for summary in summaries:
            self.writer._get_file_writer().add_summary(summary)

    def preview(self, name: str, preview: Preview, step: int) -> None:
        """Write items as a picture under split/name, and as text and sound under split/name_text and split/name_audio.

        TensorBoard shows one kind of thing a tag, and drops the others without a word.
        """
        if preview.text is not None:
            text = "\n".join("    " + _printable(line) for line in preview.text.splitlines())  # as code: no Markdown
            self.writer.add_text(f"{name}_text", text, step)
        if preview.image is not None:
            self.writer.add_image(name, preview.image, step, dataformats="HWC")
        if preview.audio is not None:
            audio = np.clip(preview.audio, -1.0, 1.0)[None]
            self.writer.add_audio(f"{name}_audio", audio, step, sample_rate=preview.sample_rate)

    def embedding(self, name: str, points: Tensor, labels: list[str], step: int) -> None:
        """Write points for the embedding projector."""
        cleaned = [_printable(label) or "-" for label in labels]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.writer.add_embedding(points, metadata=cleaned, tag=name, global_step=step)

    def flush(self) -> None:
        """Write what is still in memory: before a checkpoint, so that a killed run lacks no step before it."""
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def _printable(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text)


class ProgressBar:
    """A bar with throughput where there is a terminal, plain lines in the log where there is none."""

    def __init__(self, total: int, start: int, enabled: bool = True) -> None:
        self.enabled = enabled
        self.total = total
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        if enabled and sys.stderr.isatty():
            self.bar = Progress(
                TextColumn("step {task.completed:,}/{task.total:,}"),
                BarColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task("train", total=total, completed=start, numbers="")

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def step(self, step: int) -> None:
        """Move the bar."""
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=step)

    def numbers(self, step: int, metrics: dict[str, float]) -> None:
        """Show the latest numbers."""
        text = " ".join(f"{name} {_short(value)}" for name, value in metrics.items())
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, numbers=text)
        elif self.enabled and metrics:
            log.info("step %s/%s %s", f"{step:,}", f"{self.total:,}", text)


def _short(value: Any) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
