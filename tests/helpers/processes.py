"""Real processes that start quickly: a server that has imported torch forks each of them."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from seqvae.harness import validation


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["seqvae.cli", "seqvae.harness.config", "torch.utils.tensorboard", "lightning_fabric", "tests.helpers.worlds"]
    )
    return context


def _child(environment: dict[str, str], output: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    validation.PREVIEWS = 1  # as tests/conftest.py has it
    multiprocessing.set_start_method("fork", force=True)  # or loader workers would start by a server of their own
    with output.open("a", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.exit(function(*arguments))


def start(function: Callable[..., Any], *arguments: Any, output: Path, **environment: str) -> ForkServerProcess:
    """Start a process that ends with what the function returns; what it prints is added to `output`."""
    process = _context().Process(target=_child, args=(environment, output, function, arguments))
    process.start()
    return process


def end(process: ForkServerProcess, seconds: float = 120.0) -> int:
    """Return a process's exit code; one that does not end in time is killed, and fails the test."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"process {process.pid} did not end within {seconds} s")
    return process.exitcode


def together(
    size: int, function: Callable[..., Any], *arguments: Any, output: Path, seconds: float = 120.0
) -> list[int]:
    """Run a function in the processes of a job, as torchrun starts them; return their exit codes by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "GROUP_WORLD_SIZE": "1",
        "GROUP_RANK": "0",
    }
    ranks = [
        start(function, *arguments, output=output, **job, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(size)
    ]
    try:
        return [end(process, seconds) for process in ranks]
    finally:
        for process in ranks:
            if process.is_alive():
                process.kill()
