"""The benchmarks as commands: what a user got wrong is one line."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cli, intervals, overhead, pythae, speed, text, text_speed
from seqvae.harness.signals import Stopped
from tests.helpers.commands import refused
from tests.helpers.worlds import Run

GetRun = Callable[[str], Run]


@pytest.mark.parametrize(
    ("bench", "arguments", "message"),
    [
        (intervals, "nowhere", "checkpoint nowhere: no such file or directory"),
        (intervals, "--beam 0 {melody}", "beam width must be a positive int, got 0"),
        (intervals, "{melody} {fashion}", "has no melodies: its codec is a PixelCodec"),
        (overhead, "--root nowhere", "nowhere is not a prepared dataset"),
        (overhead, "--root {fashion_data}", "PixelCodec has no view option 'transpose'"),
        (overhead, "--root {melody_data} --steps 0", "steps must be positive, got 0"),
        (speed, "melody --set nothing=1", "Could not override 'nothing'"),
        (speed, "nothing", "Could not find 'experiment/nothing'"),
        (speed, "melody --steps 39", "steps must be at least 40, got 39"),
        (pythae, "--root nowhere", "nowhere is not a prepared dataset"),
        (pythae, "--root {melody_data}", "MelodyTokenizer has no view option 'binarize'"),
        (pythae, "--root {fashion_data} --batch-size 0", "batch-size must be positive, got 0"),
        (pythae, "--root {fashion_data} --lr -1", "lr must be positive, got -1.0"),
        (pythae, "--root {fashion_data} --set model.nothing=1", "Could not override 'model.nothing'"),
        (pythae, "--root {fashion_data} --set model.width=0", "width must be a positive int, got 0"),
        (pythae, "--root {fashion_data} --python nowhere", "No such file or directory"),
        (pythae, "--root {fashion_data} --python {without}", "cannot run benchmarks.pythae_worker: No module pythae"),
        (text, "--jobs 0", "jobs must be positive, got 0"),
        (text, "--plan nowhere", "No such file or directory: 'nowhere'"),
        (text_speed, "--steps 0", "steps must be positive, got 0"),
        (text_speed, "--checkpoint {melody}", "has no sentences: its codec is a MelodyTokenizer"),
    ],
)
def test_a_mistake_with_a_benchmark_is_one_line(
    bench: Any, arguments: str, message: str, get_run: GetRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {name: get_run(name).path for name in ("melody", "fashion") if f"{{{name}}}" in arguments}
    roots = {f"{name}_data": get_run(name).world.root for name in ("melody", "fashion")}
    without = tmp_path / "python"
    without.write_text("#!/bin/sh\necho a traceback >&2\necho No module pythae >&2\nexit 1\n")
    without.chmod(0o755)
    words = arguments.format(**names, **roots, without=without).split()
    error = refused(capsys, *words, command=bench.main)
    assert error.startswith(f"python -m {bench.__name__}: ")
    assert message in error


def test_a_benchmark_ends_with_its_own_code_or_that_of_what_stopped_it() -> None:
    def ended(bench: Callable[[Any], int | None]) -> int:
        return cli.run(cli.parser("none", "None."), bench, [])

    def stopped(_: object) -> None:
        raise Stopped(signal.SIGTERM, 3)

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    assert [ended(lambda _: None), ended(lambda _: 1), ended(stopped), ended(interrupted)] == [0, 1, 143, 130]
    with pytest.raises(ZeroDivisionError):  # a bug is not the user's
        ended(lambda _: 1 // 0)
