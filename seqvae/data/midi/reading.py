"""The guarded MIDI reader: whatever the bytes are, music or one readable error, within two seconds and 512 MB."""

import contextlib
import io
import re
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mido
import numpy as np
import pretty_midi

from seqvae.data.preparation import printable

MAX_BYTES = 2 * 2**20
MAX_EVENTS = 50_000  # less than a second of parsing
MAX_BEATS = 10_000
MAX_TICKS = 4_000_000  # pretty_midi keeps a float64 a tick; finer files are read at COARSE_RESOLUTION
COARSE_RESOLUTION = 480
MAX_SECONDS = 3 * 3600.0
MAX_MESSAGE = 1_000_000  # bytes of a text or a system exclusive message


class MidiError(ValueError):
    """A MIDI file that cannot be used: one line with its name and the reason; `rule` is what reports count it under."""

    def __init__(self, message: str, rule: str = "unreadable MIDI") -> None:
        super().__init__(message)
        self.rule = rule


def read_midi(path: Path) -> pretty_midi.PrettyMIDI:
    """Return the file's music, reading at most about two seconds and 512 MB whatever the bytes are.

    Tempos and time signatures count on whichever track they stand; a RIFF wrapper (.rmi) is taken off.
    Raises MidiError for a file that is damaged, beyond the limits above, or without notes.
    """
    with one_reason(path):
        return _parse(*checked_bytes(path))


@contextlib.contextmanager
def one_reason(path: Path) -> Iterator[None]:
    """Make a MidiError that names the file of whatever is raised."""
    try:
        yield
    except Exception as error:  # the parsers leak nearly every built-in type, MemoryError among them
        known = isinstance(error, MidiError)
        text = (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or "cut short"
        reason = text if known or isinstance(error, OSError) else f"{type(error).__name__}: {text}"
        rule = error.rule if isinstance(error, MidiError) else "unreadable MIDI"
        raise MidiError(f"{printable(path.name)}: {printable(reason)}", rule) from error


def checked_bytes(path: Path) -> tuple[bytes, int]:
    """Return a MIDI file that any parser may be given, in its plainest form, and its length in ticks.

    Raises MidiError for one that is damaged or beyond the limits, OSError for one that cannot be read.
    """
    data = _midi_bytes(path)
    ticks = _scan(data)
    (length,) = struct.unpack(">I", data[4:8])  # of the header; symusic takes no other than 6
    return data[:4] + struct.pack(">I", 6) + data[8:14] + data[8 + length :], ticks


def check_length(seconds: float) -> None:
    """Raise MidiError for a song longer than the limit, or of no length that can be told."""
    if not seconds <= MAX_SECONDS:
        raise MidiError(f"lasts {seconds / 3600:,.1f} hours, the limit is {MAX_SECONDS / 3600:g}", "beyond the limits")


def no_notes() -> MidiError:
    """Return what a file without a note is refused with."""
    return MidiError("has no notes", "no notes")


def _midi_bytes(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise MidiError("is not a file")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise MidiError(f"is larger than {MAX_BYTES:,} bytes", "beyond the limits")
    if data[:4] == b"RIFF" and data[8:12] == b"RMID":
        return data[max(data.find(b"MThd"), 0) :]
    return data


def _parse(data: bytes, ticks: int) -> pretty_midi.PrettyMIDI:
    song = mido.MidiFile(file=io.BytesIO(data))
    song.tracks = [track for track in song.tracks if track]
    if not song.tracks:
        raise no_notes()
    conductor = ("set_tempo", "time_signature")
    if ticks > MAX_TICKS or any(event.type in conductor for track in song.tracks[1:] for event in track):
        _rearrange(song, conductor, COARSE_RESOLUTION if ticks > MAX_TICKS else song.ticks_per_beat)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about key signatures outside track 0, which do not matter here
        midi = pretty_midi.PrettyMIDI(mido_object=song)
    if not any(instrument.notes for instrument in midi.instruments):
        raise no_notes()
    check_length(midi.get_end_time())
    return midi


def _rearrange(song: mido.MidiFile, conductor: Sequence[str], resolution: int) -> None:
    """Give the first track every tempo and time signature (pretty_midi looks nowhere else), and scale the ticks."""
    tracks: list[list[tuple[int, Any]]] = []
    for track in song.tracks:
        now, timed = 0, []
        for event in track:
            now += event.time
            timed.append((round(now * resolution / song.ticks_per_beat), event))
        tracks.append(timed)
    moved = [pair for timed in tracks[1:] for pair in timed if pair[1].type in conductor]
    tracks[0] = sorted(tracks[0] + moved, key=lambda pair: pair[0])
    tracks[1:] = [[pair for pair in timed if pair[1].type not in conductor] for timed in tracks[1:]]
    song.ticks_per_beat = resolution
    song.tracks = [mido.MidiTrack(event for _, event in timed) for timed in tracks if timed]
    for timed in tracks:
        for (before, _), (tick, event) in zip([(0, None), *timed], timed, strict=False):
            event.time = tick - before  # in place: copies would take longer than all the rest of reading


# channel prefix, tempo, SMPTE offset, time signature, key signature
_META_LENGTHS = {0x20: 1, 0x51: 3, 0x54: 5, 0x58: 4, 0x59: 2}

# Channel messages whose status byte is followed by two data bytes, and those where by one. Each: a run of them, the
# same where a running status goes on, and the delta time of one.
_DELTA, _DATA = rb"[\x80-\xff]{0,3}+[\x00-\x7f]", rb"[\x00-\x7f]"
_RUNS = [
    (
        re.compile(rb"(?:%b(%b)%b(?:%b%b)*+)++" % (_DELTA, status, data, _DELTA, data)),
        re.compile(rb"(?:%b%b)*+(?:%b(%b)%b(?:%b%b)*+)*+" % (_DELTA, data, _DELTA, status, data, _DELTA, data)),
        re.compile(rb"(%b)[\x80-\xff]?%b" % (_DELTA, data)),
    )
    for status, data in ((rb"[\x80-\xbf\xe0-\xef]", _DATA * 2), (rb"[\xc0-\xdf]", _DATA))
]


def _scan(data: bytes) -> int:
    """Return the length in ticks, having walked every event without keeping any (Standard MIDI Files 1.0).

    Raises MidiError for whatever would make the parsers slow, large or obscure, before they see it.
    """
    if data[:4] != b"MThd":
        raise MidiError("is not a MIDI file (no MThd header)" if data else "is empty")
    if len(data) < 14:
        raise MidiError("the header is cut short")
    length, kind, tracks, division = struct.unpack(">IHHH", data[4:14])
    if length < 6:
        raise MidiError(f"the header holds {length} bytes instead of 6")
    if kind > 1:
        raise MidiError(f"is of format {kind}; only 0 and 1 hold one song")
    if division == 0 or division >= 0x8000:
        raise MidiError("a division of 0 ticks a beat" if division == 0 else "times in SMPTE frames instead of beats")
    position, events, longest = 8 + length, 0, 0
    for number in range(tracks):
        if data[position : position + 4] != b"MTrk":
            raise MidiError(f"no track where track {number + 1} of {tracks} should begin")
        (length,) = struct.unpack(">I", data[position + 4 : position + 8].rjust(4, b"\xff"))
        start, position = position + 8, position + 8 + length
        if position > len(data):
            raise MidiError(f"track {number + 1} of {tracks} is cut short")
        try:
            ticks, events = _scan_track(data[start:position], events)
        except IndexError:
            raise MidiError(f"track {number + 1} of {tracks} ends within an event") from None
        longest = max(longest, ticks)
    if longest > MAX_BEATS * division:
        raise MidiError(f"lasts {longest // division:,} beats, the limit is {MAX_BEATS:,}", "beyond the limits")
    return longest


def _scan_track(track: bytes, events: int) -> tuple[int, int]:
    """Return the track's ticks, and `events` with its events added; IndexError where it ends too soon."""
    position = ticks = status = 0
    deltas: list[bytes] = []
    while position < len(track):
        for short, (run, going_on, event) in enumerate(_RUNS):
            goes_on = status and short == (0xC0 <= status < 0xE0)
            if found := (going_on if goes_on else run).match(track, position):
                deltas += event.findall(track, position, found.end())
                position, status = found.end(), found[1][0] if found[1] else status
        if position < len(track):
            delta, position, status = _scan_event(track, position, status)
            ticks, events = ticks + delta, events + 1
        if events + len(deltas) > MAX_EVENTS:
            raise MidiError(f"has more than {MAX_EVENTS:,} events", "beyond the limits")
    return ticks + _total(deltas), events + len(deltas)


def _total(deltas: Sequence[bytes]) -> int:
    """Return the sum of variable-length quantities."""
    digits = np.frombuffer(b"".join(deltas), np.uint8)
    if len(digits) == len(deltas):
        return int(digits.sum())
    last = np.flatnonzero(digits < 0x80)
    places = np.repeat(last, np.diff(last, prepend=-1)) - np.arange(len(digits))  # digits that follow in the number
    return int(((digits & 0x7F).astype(np.int64) << 7 * places).sum())


def _scan_event(track: bytes, position: int, status: int) -> tuple[int, int, int]:
    """Return an event's delta time, where it ends, and the running status after it."""
    delta, position = _variable_length(track, position)
    byte = track[position]
    if byte < 0x80:
        if status == 0:
            raise MidiError("a running status that follows no status")
    elif byte < 0xF0:
        status, position = byte, position + 1
    elif byte not in (0xF0, 0xF7, 0xFF):
        raise MidiError(f"status byte {byte:#x}, which no file may hold")
    if byte < 0xF0:
        end = position + (1 if 0xC0 <= status < 0xE0 else 2)
        if not track[position:end].isascii():
            raise MidiError(f"a data byte above 127 after status byte {status:#x}")
    else:
        length, body = _variable_length(track, position + 2 if byte == 0xFF else position + 1)
        end = body + length
        if byte == 0xFF:
            _check_meta(track[position + 1], track[body:end], length)
        else:
            status = 0  # a system exclusive message ends the running status
        if end <= len(track) and length > MAX_MESSAGE:
            raise MidiError(f"a message of {length:,} bytes exceeds maximum length {MAX_MESSAGE:,}")
    if end > len(track):
        raise IndexError
    return delta, end, status


def _variable_length(track: bytes, position: int) -> tuple[int, int]:
    value = 0
    for place in range(position, position + 4):
        value = value << 7 | track[place] & 0x7F
        if track[place] < 0x80:
            return value, place + 1
    raise MidiError("a number of more than four bytes")


def _check_meta(kind: int, content: bytes, length: int) -> None:
    if length != _META_LENGTHS.get(kind, length):
        raise MidiError(f"meta event {kind:#x} holds {length} bytes instead of {_META_LENGTHS[kind]}")
    if kind == 0x51 and not any(content):
        raise MidiError("a tempo of 0 microseconds a beat")
    if kind == 0x58 and content[1:2] > b"\x06":
        raise MidiError(f"a time signature over 2^{content[1]}")
    if kind == 0x58 and content[:1] == b"\x00":
        raise MidiError("a time signature of 0 beats a bar")
    if kind == 0x59 and not (content[0] in (*range(8), *range(249, 256)) and content[1] < 2):
        raise MidiError(f"a key signature of bytes {content.hex(' ')}, which spell none")
