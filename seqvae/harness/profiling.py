"""A trace of a few steps, for chrome://tracing or ui.perfetto.dev."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

PASSED = 2  # steps that are passed over first: they allocate, and compile


@contextmanager
def profiler(path: Path, steps: int) -> Iterator[Callable[[], None]]:
    """Yield what is to be called after each step: from the third on, `steps` of them are recorded and written.

    With `steps` 0, nothing is.
    """
    if steps == 0:
        yield lambda: None
        return
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(
        activities=activities,
        schedule=schedule(wait=PASSED - 1, warmup=1, active=steps, repeat=1),
        on_trace_ready=lambda finished: finished.export_chrome_trace(str(path)),
    ) as recorder:
        yield recorder.step
