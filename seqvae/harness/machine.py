"""What this machine is and can do: versions, devices, memory, the precisions that work, and its GEMM peaks."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import shutil
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement
from torch import Tensor, nn

import seqvae
from seqvae.harness.engine import PRECISIONS, Engine

LIBRARIES = (
    "torch",
    "numpy",
    "lightning-fabric",
    "hydra-core",
    "safetensors",
    "sentencepiece",
    "pretty_midi",
    "pillow",
    "tensorboard",
    "symusic",
)

EXTRAS = {
    "examples": "the named corpora of data_prep/",
    "fast": "MIDI read by symusic: --reader symusic",
    "metrics": "BLEU of reconstructions, self-BLEU of samples, the note scores' yardstick in tests",
    "plots": "the table of attributes as a picture",
    "onnx": "seqvae export --format onnx, and a runtime for what it writes",
    "dask": "a cluster that prepares a dataset: --engine dask",
    "sweep": "the jobs of a sweep side by side: hydra/launcher=joblib",
    "dev": "tests, formatting and type checks",
}
"""What each optional extra of the package gives."""


def facts() -> dict[str, Any]:
    """Return what there is to know without measuring, as plain JSON values."""
    return {
        "versions": versions(),
        "system": {
            "os": platform.platform(),
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
            "memory_gib": _gib(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
            "free_disk_gib": _gib(shutil.disk_usage(Path.cwd()).free),
        },
        "devices": devices(),
        "gloo": torch.distributed.is_available() and torch.distributed.is_gloo_available(),
        "extras": extras(),
    }


def versions() -> dict[str, str | None]:
    """Return the version of Python, of seqvae and of each library that matters; None where it is not installed."""
    return {
        "python": platform.python_version(),
        "seqvae": seqvae.__version__,
        **{name: _version(name) for name in LIBRARIES},
    }


def devices() -> list[str]:
    """Return what `--device` and the trainer can use here, the CPU first."""
    found = ["cpu"]
    found += [f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(torch.cuda.device_count())]
    return found + ["mps"] * torch.backends.mps.is_available()


def extras() -> dict[str, bool]:
    """Return for each optional extra of this package whether all of it is installed."""
    wanted: dict[str, list[str]] = {name: [] for name in EXTRAS}
    for line in importlib.metadata.requires("seqvae") or []:
        requirement = Requirement(line)
        for name, libraries in wanted.items():
            if requirement.marker is not None and requirement.marker.evaluate({"extra": name}):
                libraries.append(requirement.name)
    return {name: all(_version(library) for library in libraries) for name, libraries in wanted.items()}


def precisions() -> dict[str, dict[str, str]]:
    """Return for each precision "ok" or the reason why a recurrent or a convolutional network cannot train with it."""
    networks = {"lstm": _Recurrent, "conv": _Convolutional}
    logging.disable(logging.WARNING)  # Fabric announces each precision
    try:
        return {
            precision: {name: _attempt(precision, network()) for name, network in networks.items()}
            for precision in PRECISIONS
        }
    finally:
        logging.disable(logging.NOTSET)


def gemm_peak(
    size: int = 1024,
    seconds: float = 1.0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> float:
    """Return the rate of a matrix product in GFLOP/s: the median over as many as fit in `seconds`.

    This is the peak that a model's own rate is a share of; it holds for the number of threads torch now uses. That of
    bfloat16 says whether trainer.precision=bf16-mixed pays: a processor without instructions for it is far slower.

    Raises:
        ValueError: for a size or a time that is not positive.
    """
    if size < 1 or not seconds > 0:
        raise ValueError(f"size and seconds must be positive, got {size} and {seconds}")
    a, b = torch.rand(2, size, size, device=device).to(dtype)
    out = torch.empty_like(a)
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(times) < 4 or time.perf_counter() < deadline:
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        if out.device.type != "cpu":
            out[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(times[1:]) / 1e9  # the first one also sets up the library


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.LSTM(4, 4, batch_first=True)

    def forward(self) -> Tensor:
        weight = next(self.parameters())
        output: Tensor = self.network(torch.ones(2, 3, 4, dtype=weight.dtype, device=weight.device))[0]
        return output


class _Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 1, 3))

    def forward(self) -> Tensor:
        weight = next(self.parameters())
        output: Tensor = self.network(torch.ones(2, 1, 6, 6, dtype=weight.dtype, device=weight.device))
        return output


def _attempt(precision: str, network: nn.Module) -> str:
    """Take one optimizer step; return "ok" or the first line of what was raised."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the answer says it
            engine = Engine(devices=1, precision=precision)
            module, optimizer = engine.setup(network, torch.optim.SGD(network.parameters(), lr=0.1), compile=False)
            loss = module().float().square().mean()
            engine.backward(loss)
            optimizer.step()
    except Exception as error:  # whatever a library raises is the answer
        return next(iter(str(error).splitlines()), "") or type(error).__name__
    return "ok" if bool(torch.isfinite(loss)) else f"the loss is {float(loss.detach())}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gib(count: int) -> float:
    return round(count / 2**30, 1)
