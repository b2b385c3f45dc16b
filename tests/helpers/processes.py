"""Real processes that die where they are told to: forked from a server that has all modules loaded, so quickly."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["seqvae.cli", "seqvae.data", "tests.helpers.letters", "tests.test_preparation"])

WRITES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "shutil.rmtree"}


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
