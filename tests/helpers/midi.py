"""Standard MIDI Files built byte by byte, so that tests can break them anywhere."""

import struct
from collections.abc import Mapping, Sequence

Notes = Sequence[tuple[float, float, int]]  # start and end in steps (sixteenths), pitch


def number(value: int) -> bytes:
    """Return a variable-length quantity."""
    digits = [value & 0x7F]
    while value := value >> 7:
        digits.append(value & 0x7F | 0x80)
    return bytes(reversed(digits))


def meta(kind: int, content: bytes = b"") -> bytes:
    return bytes([0xFF, kind]) + number(len(content)) + content


END = number(0) + meta(0x2F)


def chunk(content: bytes, name: bytes = b"MTrk") -> bytes:
    return name + struct.pack(">I", len(content)) + content


def smf(*tracks: bytes, kind: int = 1, division: int = 480, count: int | None = None) -> bytes:
    """Return a file of tracks that are given as their events, without the end of track."""
    header = struct.pack(">HHH", kind, len(tracks) if count is None else count, division)
    return chunk(header, b"MThd") + b"".join(chunk(track + END) for track in tracks)


def timed(events: Sequence[tuple[int, int, bytes]]) -> bytes:
    """Return (tick, rank, message) in order, ranks deciding within a tick, as events with delta times."""
    now, written = 0, b""
    for tick, _, message in sorted(events):
        written += number(tick - now) + message
        now = tick
    return written


def part(notes: Notes, *, division: int = 480, channel: int = 0, velocity: int = 80, program: int = 0) -> bytes:
    events = [(0, 0, bytes([0xC0 | channel, program]))]
    for start, end, pitch in notes:
        events.append((round(start * division / 4), 2, bytes([0x90 | channel, pitch, velocity])))
        events.append((round(end * division / 4), 1, bytes([0x80 | channel, pitch, 0])))
    return timed(events)


def song(
    *parts: Notes,
    meters: Mapping[float, tuple[int, int]] | None = None,
    tempos: Mapping[float, float] | None = None,
    division: int = 480,
    channels: Sequence[int] = tuple(range(9)),
    program: int | Sequence[int] = 0,
) -> bytes:
    """Return a song: time signatures as powers of two and tempos in bpm, both by the step where they are set.

    Channel 9 is that of drums; `program` is every part's, or each part's own.
    """
    conductor = [
        (round(step * division / 4), 0, meta(0x58, bytes([over, under.bit_length() - 1, 24, 8])))
        for step, (over, under) in (meters or {}).items()
    ]
    conductor += [
        (round(step * division / 4), 1, meta(0x51, round(6e7 / bpm).to_bytes(3, "big")))
        for step, bpm in (tempos or {}).items()
    ]
    programs = [program] * len(parts) if isinstance(program, int) else program
    written = [
        part(notes, division=division, channel=channel, program=number)
        for notes, channel, number in zip(parts, channels, programs, strict=False)
    ]
    return smf(timed(conductor), *written, division=division)
