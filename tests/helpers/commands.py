"""Commands, run within this process: they do what they are asked, or refuse in one line."""

from collections.abc import Callable

import pytest

from seqvae.cli import main

__all__ = ["ok", "refused"]


def ok(*arguments: object) -> None:
    """Run a command that must succeed."""
    assert main([str(argument) for argument in arguments]) == 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: object, command: Callable[[list[str]], int] = main) -> str:
    """Return the one line of a command that failed as it should."""
    capsys.readouterr()
    assert command([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    return err
