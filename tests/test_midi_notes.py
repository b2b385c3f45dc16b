"""The note table: what stands in it, and that both readers make the same one."""

import importlib.util
import random
import sys
from pathlib import Path

import numpy as np
import pretty_midi
import pytest

from seqvae.data.dataset import WindowDataset
from seqvae.data.midi import MidiError, Song, prepare_midi, read_midi, read_song, song_of
from seqvae.data.midi.notes import seconds_of
from tests.helpers.midi import chunk, meta, number, part, smf, song

needs_symusic = pytest.mark.skipif(importlib.util.find_spec("symusic") is None, reason="the extra `fast`")
READERS = ["pretty_midi", pytest.param("symusic", marks=needs_symusic)]


def table(path: Path, data: bytes, reader: str = "pretty_midi") -> Song:
    path.write_bytes(data)
    return read_song(path, reader)


def same(a: Song, b: Song, names: bool = True) -> bool:
    heads = [[(t.name * names, t.program, t.is_drum) for t in one.tracks] for one in (a, b)]
    notes = all(np.array_equal(x.notes, y.notes) for x, y in zip(a.tracks, b.tracks, strict=True))
    return heads[0] == heads[1] and notes and (a[0], *a[2:]) == (b[0], *b[2:])


def on(delta: int, pitch: int = 60) -> bytes:
    return number(delta) + bytes([0x90, pitch, 80])


def off(delta: int, pitch: int = 60) -> bytes:
    return number(delta) + bytes([0x80, pitch, 0])


def tempo(high: int) -> bytes:
    return number(0) + meta(0x51, bytes([high, 0xA1, 0x20]))


def meter(over: int, delta: int = 0) -> bytes:
    return number(delta) + meta(0x58, bytes([over, 2, 24, 8]))


FINE = [(step, step + 4, 60) for step in range(0, 40_000, 6_665)]

RICH = {
    "tempos": song([(0, 4, 60), (4, 8.3, 62)], tempos={0: 93, 5: 61, 7: 61}),
    "metres": song([(0, 4, 60), (4, 8.3, 62)], meters={0: (3, 4), 12: (6, 8)}),
    "tempo and metre set twice on a tick": smf(tempo(6) + meter(3) + tempo(7) + meter(4), part([(0, 4, 60)])),
    "tempo and metre on the second track": smf(b"", tempo(9) + meter(3, 480), part([(0, 4, 60)])),
    "instruments": smf(*(part([(c, c + 4, 60 + c)], channel=c, program=40 - c, velocity=50 + c) for c in (0, 3, 9))),
    "format 0 of two channels": smf(on(0) + number(5) + b"\x91\x40\x50" + off(5) + number(5) + b"\x81\x40\x00", kind=0),
    "programs in turn": smf(b"".join(number(0) + bytes([0xC0, program]) + on(0) + off(9) for program in (7, 3, 7))),
    "a note struck again before it ends": smf(on(0) + on(10) + off(10) + off(10) + on(5) + off(5)),
    "a note struck again where it ends": smf(on(0) + on(10) + off(0) + off(10)),
    "a note of no length": smf(on(0) + off(0) + on(9) + off(9)),
    "a release too many": smf(off(0) + on(5) + off(5) + off(5) + on(5, 62) + off(5, 62)),
    "running status": smf(on(0) + b"\x09\x3c\x00\x00" + meta(0x05, b"la") + b"\x09\x3e\x50\x09\x3e\x00"),
    "running aftertouch": smf(on(0) + b"\x01\xd0\x10\x01\x20" + number(200) + b"\x30" + off(1)),
    "a name in UTF-8": smf(number(0) + meta(0x03, "Flöte 1".encode()) + on(0) + off(9)),
    "the finest ticks": song(FINE, division=32767, tempos={0: 120, 20_000: 90}),
    "an RMID wrapper": b"RIFF\x00\x00\x00\x00RMIDdata\x00\x00\x00\x00" + song([(0, 4, 60)]),
    "a longer header": chunk(b"\x00\x01\x00\x01\x01\xe0\x00\x00", b"MThd") + smf(on(0) + off(9))[14:],
}


@needs_symusic
@pytest.mark.parametrize("name", RICH)
def test_the_readers_make_the_same_table(tmp_path: Path, name: str) -> None:
    slow, fast = (table(tmp_path / "a.mid", RICH[name], reader) for reader in ("pretty_midi", "symusic"))
    assert same(slow, fast)
    assert not same(slow, slow._replace(resolution=1))  # the comparison can fail
    assert not same(slow, slow._replace(tracks=[track._replace(notes=track.notes + 1) for track in slow.tracks]))


@needs_symusic
@pytest.mark.parametrize(
    ("events", "pretty", "fast"),
    [
        (on(0) + on(5) + off(5), 2, 1),
        (b"\x00\xc0\x05" + on(0) + b"\x00\xc0\x07" + off(5), 7, 5),
    ],
    ids=["a note that is never ended on its own", "a program that changes while a note sounds"],
)
def test_where_the_readers_differ(tmp_path: Path, events: bytes, pretty: int, fast: int) -> None:
    found = [table(tmp_path / "a.mid", smf(events), reader).tracks[0] for reader in ("pretty_midi", "symusic")]
    assert [track.program or len(track.notes) for track in found] == [pretty, fast]


@pytest.mark.parametrize("reader", READERS)
def test_a_table_holds_ticks_and_what_the_file_says(tmp_path: Path, reader: str) -> None:
    bass = part([(0, 16, 40), (1, 2, 41)], channel=1, program=33, velocity=70)
    data = song([(0, 4, 60)], meters={0: (3, 4), 12: (6, 8)}, tempos={4: 240})[14:]
    found = table(tmp_path / "a.mid", smf(b"", bass)[:10] + b"\x00\x03\x01\xe0" + smf(bass)[14:] + data, reader)
    assert found.resolution == 480
    assert [(t.program, t.is_drum, t.notes.tolist()) for t in found.tracks] == [
        (0, False, [[0, 480, 60, 80]]),
        (33, False, [[0, 1920, 40, 70], [120, 240, 41, 70]]),
    ]
    assert found.tempos == [(0, 120.0), (480, 240.0)]
    assert found.time_signatures == [(0, 3, 4), (1440, 6, 8)]
    assert seconds_of(found, 960) == pytest.approx(0.5 + 0.25)


def test_a_song_of_a_program_is_the_song_of_its_file(tmp_path: Path) -> None:
    midi = pretty_midi.PrettyMIDI(initial_tempo=6e7 / (616_000 + 1e-3), resolution=96)
    midi.instruments.append(pretty_midi.Instrument(5, name="tune"))
    midi.instruments[0].notes = [pretty_midi.Note(90, 60 + n, 0.31 * n, 0.31 * n + 0.2) for n in range(40)]
    midi.write(str(tmp_path / "a.mid"))
    assert same(song_of(midi), song_of(read_midi(tmp_path / "a.mid"))._replace(time_signatures=[]))


def test_ticks_are_pretty_midis_own(tmp_path: Path) -> None:
    chance = random.Random(0)
    notes = [(s := chance.uniform(0, 400), s + chance.uniform(0.1, 9), 60 + n % 20) for n in range(500)]
    data = song(notes, tempos={n: chance.uniform(20, 300) for n in range(0, 400, 7)}, division=96)
    (tmp_path / "a.mid").write_bytes(data)
    midi = read_midi(tmp_path / "a.mid")
    expected = [(midi.time_to_tick(n.start), midi.time_to_tick(n.end), n.pitch) for n in midi.instruments[0].notes]
    assert sorted(expected) == [tuple(row) for row in song_of(midi).tracks[0].notes[:, :3].tolist()]


def test_a_reader_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="reader must be one of pretty_midi, symusic, got 'music21'"):
        read_song(tmp_path / "a.mid", "music21")
    monkeypatch.setitem(sys.modules, "symusic", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "seqvae\[fast\]"'):
        prepare_midi(tmp_path, tmp_path / "root", reader="symusic")


@needs_symusic
def test_a_dataset_is_the_same_with_each_reader(tmp_path: Path) -> None:
    chance = random.Random(1)
    (tmp_path / "midi").mkdir()
    for name in range(6):
        parts = [[(2 * n, 2 * n + 3, chance.randint(50, 80)) for n in range(40)] for _ in range(3)]
        (tmp_path / "midi" / f"{name}.mid").write_bytes(song(*parts, tempos={0: 100, 50: 80}))
    for reader in ("pretty_midi", "symusic"):
        prepare_midi(tmp_path / "midi", tmp_path / reader, reader=reader)
    for split in ("train", "valid", "test"):
        a, b = (WindowDataset(tmp_path / reader, split) for reader in ("pretty_midi", "symusic"))
        assert len(a) > 0
        assert [a[n].tolist() for n in range(len(a))] == [b[n].tolist() for n in range(len(b))]


@needs_symusic
def test_the_readers_agree_on_damaged_files_or_differ_as_they_say(tmp_path: Path) -> None:
    """Thousands of files, in this process: what passes the checks makes neither reader crash."""
    seeds, chance, agreed, read = list(RICH.values())[:14], random.Random(2), 0, 0
    for _ in range(1500):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.choice((1, 1, 2, 3))):
            data[chance.randrange(14, len(data))] = chance.choice(
                (0, 1, 0x3C, 0x7F, 0x80, 0x90, 0xFF, chance.randrange(256))
            )
        results: list[Song | None] = []
        for reader in ("pretty_midi", "symusic"):
            try:
                results.append(table(tmp_path / "a.mid", bytes(data), reader))
            except MidiError:
                results.append(None)
        a, b = results
        read += a is not None
        agreed += (
            (a is None) == (b is None)
            if a is None or b is None
            else len(a.tracks) == len(b.tracks) and same(a, b, names=False)
        )
    assert read > 300
    assert agreed > 1350  # the rest: notes without an end, programs that change under a note
