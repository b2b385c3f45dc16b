"""Real processes that start quickly and die where they are told to: forked from a server with torch loaded."""

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from seqvae.harness import validation

WRITES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "shutil.rmtree"}


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "torch.utils.tensorboard",
        "lightning_fabric",
        "seqvae.cli",
        "seqvae.data",
        "seqvae.harness.launch",
        "tests.helpers.letters",
        "tests.helpers.worlds",
        "tests.test_preparation",
    ]
)


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
    process = CONTEXT.Process(target=_child, args=(environment, output, function, arguments))
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


def start_job(size: int, function: Callable[..., Any], *arguments: Any, output: Path) -> list[ForkServerProcess]:
    """Start a function in the processes of a job, as torchrun does; return them by rank."""
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
    return [
        start(function, *arguments, output=output, **job, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(size)
    ]


def together(size: int, function: Callable[..., Any], *arguments: Any, output: Path) -> list[int]:
    """Run a function in the processes of a job; return their exit codes by rank."""
    ranks = start_job(size, function, *arguments, output=output)
    try:
        return [end(process) for process in ranks]
    finally:
        for process in ranks:
            if process.is_alive():
                process.kill()


def exit_code(work: Callable[..., Any], *arguments: Any) -> int | None:
    """Run the work in a process of its own and return its exit code, negative when a signal ended it."""
    process = CONTEXT.Process(target=work, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


def killed_at(operation: int, folder: Path, work: Callable[..., Any], *arguments: Any) -> bool:
    """Run the work in a process that kills itself before its n-th operation on files below the folder; True if it did.

    SIGKILL leaves no time for anything: no `finally`, no flushed buffer.
    """
    code = exit_code(_killed, operation, str(folder), work, *arguments)
    assert code in (0, -signal.SIGKILL), code
    return code != 0


def _killed(operation: int, folder: str, work: Callable[..., Any], *arguments: Any) -> None:
    seen = 0

    def watch(event: str, details: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in WRITES and isinstance(details[0], str | os.PathLike) and os.fspath(details[0]).startswith(folder):
            if seen == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(watch)
    work(*arguments)
