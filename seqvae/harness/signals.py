"""SIGTERM and SIGINT: asked once, a training saves and ends; asked twice, it leaves at once."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self


class Stopped(Exception):
    """A training that was asked to stop, and has saved what it needs to go on."""

    def __init__(self, number: int, step: int) -> None:
        self.exit_code = 128 + number
        super().__init__(f"stopped by {signal.Signals(number).name} at step {step:,}; go on with resume=auto")


class StopSignals:
    """Notes a signal for the loop to see at its next step; only the main thread can listen."""

    def __init__(self) -> None:
        self.number = 0  # of the signal that came; 0: none
        self.former: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self.former = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            os._exit(128 + number)  # no clean-up: whoever asks twice does not want to wait for one
        self.number = number
