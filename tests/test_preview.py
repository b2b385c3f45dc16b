"""Songs as pictures, sound, notation and a page that plays: whatever shows them has the notes of the file."""

import base64
import hashlib
import html
import json
import math
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import mido
import numpy as np
import pretty_midi
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqvae.cli import main
from seqvae.data.midi import DrumTokenizer, MelodyTokenizer, read_midi
from seqvae.data.midi.abc import tunes
from seqvae.data.midi.page import page
from seqvae.data.midi.preview import documents
from seqvae.data.midi.rolls import COLOURS, DRUM_COLOUR, piano_rolls
from seqvae.data.midi.sheet import sheet_of
from seqvae.data.midi.sound import PAUSE, PEAK, RATE, play
from tests.helpers.midi import Notes, song
from tests.helpers.worlds import Run

CODEC = MelodyTokenizer()
STEP = 6  # pixels of a picture
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\x1b[31m\n%%MIDI program 5"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-headless-shell", "google-chrome"))), None)

TUNE: Notes = [(0, 4, 60), (4, 6, 64), (8, 20, 67), (20, 24, 72)]
BASS: Notes = [(0, 16, 36), (16, 32, 43)]
BEAT: Notes = [*((step, step + 1, 42) for step in range(0, 32, 2)), (0, 1, 36), (8, 9, 38), (16, 17, 36), (24, 25, 38)]


def made(*parts: Notes, folder: Path, **options: Any) -> pretty_midi.PrettyMIDI:
    path = folder / "song.mid"
    path.write_bytes(song(*parts, **options))
    return read_midi(path)


@pytest.fixture
def trio(tmp_path: Path) -> pretty_midi.PrettyMIDI:
    return made(TUNE, BASS, BEAT, channels=(0, 1, 9), tempos={0: 90}, folder=tmp_path)


def melody(*row: int) -> pretty_midi.PrettyMIDI:
    return CODEC.join([torch.tensor([*row, *[0] * (32 - len(row))])])


def quarters(midi: pretty_midi.PrettyMIDI, drums: bool = False) -> list[tuple[float, float, int]]:
    """Return the notes in quarter notes at one tempo: read from the song itself, not from what is shown of it."""
    beat = 60 / midi.get_tempo_changes()[1][0]
    notes = [note for part in midi.instruments if part.is_drum == drums for note in part.notes]
    return sorted((round(float(note.start / beat), 3), round(float(note.end / beat), 3), note.pitch) for note in notes)


# In bars and quarter notes


@pytest.mark.parametrize(
    ("meters", "starts", "end"),
    [
        ({}, [0, 4], 8),
        ({0: (3, 4)}, [0, 3, 6], 9),
        ({0: (6, 8)}, [0, 3, 6], 9),
        ({0: (3, 4), 12: (2, 4)}, [0, 3, 5, 7], 9),
        ({0: (4, 4), 8: (4, 4)}, [0, 2, 6], 10),  # a signature within a bar begins a new one
        ({24: (5, 4)}, [0, 4, 6], 11),
    ],
)
def test_bars_are_those_of_the_songs_own_metre(
    tmp_path: Path, meters: dict[float, tuple[int, int]], starts: list[float], end: float
) -> None:
    sheet = sheet_of(made([(0, 4, 60), (28, 32, 62)], meters=meters, folder=tmp_path))
    assert [bar.start for bar in sheet.bars] == starts
    assert (sheet.end, sheet.goes_on) == (end, False)


def test_the_clock_follows_every_tempo(tmp_path: Path) -> None:
    midi = made([(0, 4, 60), (40, 60, 62)], tempos={0: 120, 16: 60, 32: 200}, folder=tmp_path)
    sheet = sheet_of(midi)
    for sound, note in zip(sheet.voices[0].sounds, midi.instruments[0].notes, strict=True):
        assert (sheet.seconds(sound.start), sheet.seconds(sound.end)) == pytest.approx((note.start, note.end), abs=1e-3)


def test_of_a_long_song_whole_bars_are_shown_and_it_goes_on(tmp_path: Path) -> None:
    midi = made([(16 * bar, 16 * bar + 24, 60) for bar in range(99)], BASS, meters={0: (3, 4)}, folder=tmp_path)
    sheet = sheet_of(midi)
    assert sheet.goes_on
    assert (sheet.end, len(sheet.bars)) == (129, 43)
    assert max(sound.end for sound in sheet.voices[0].sounds) == 129
    assert tunes([midi], ["long"]).endswith("% the first 43 bars\n")  # type: ignore[union-attr]
    assert piano_rolls([midi] * 9).size < 10**8


# Pictures


def columns_of(image: Any, colour: Sequence[int]) -> list[int]:
    """Return the columns of a picture of one song that hold a colour, its frame left out."""
    return sorted(set(np.argwhere((image[4:-4, 4:-4] == colour).all(2))[:, 1].tolist()))


def test_a_line_stands_at_every_bar(tmp_path: Path) -> None:
    waltz = made([(0, 4, 60), (28, 36, 62)], meters={0: (3, 4)}, folder=tmp_path)
    assert columns_of(piano_rolls([waltz]), (200, 200, 205)) == [0, 12 * STEP, 24 * STEP]
    assert columns_of(piano_rolls([melody(41, *[0] * 20, 43)]), (200, 200, 205)) == [0, 16 * STEP]


def test_each_instrument_has_a_colour_and_drums_have_rows_below(trio: pretty_midi.PrettyMIDI) -> None:
    image = piano_rolls([trio])[4:-4, 4:-4]
    rows = [np.argwhere((image == colour).all(2))[:, 0] for _, colour in COLOURS[:2]]
    assert rows[0].max() < rows[1].min()  # the tune above the bass
    dark = np.argwhere((image[:, :, 0] < 130) & (np.ptp(image, axis=2) < 12))
    assert dark[:, 0].min() > rows[1].max()
    lanes = Counter(int(row) for row in dark[:, 0])
    assert len({row // 7 for row in lanes}) >= 3
    assert image.shape[1] == 32 * STEP


def test_a_note_is_as_long_and_as_high_as_it_is(tmp_path: Path) -> None:
    image = piano_rolls([made([(0, 4, 60), (6, 14, 67)], folder=tmp_path)])[4:-4, 4:-4]
    (held, struck) = ((image == colour).all(2) for colour in COLOURS[0])
    inked = np.flatnonzero((held | struck).any(0)).tolist()
    assert inked == [*range(4 * STEP - 1), *range(6 * STEP, 14 * STEP - 1)]
    assert np.flatnonzero(struck.any(0)).tolist() == [*range(STEP - 1), *range(6 * STEP, 7 * STEP - 1)]
    low, high = (np.flatnonzero(struck[:, column])[0] for column in (0, 6 * STEP))
    assert low - high == 7 * 4


def test_drums_alone_are_a_grid_without_a_keyboard(tmp_path: Path) -> None:
    image = piano_rolls([made(BEAT, channels=(9,), folder=tmp_path)])
    assert image.shape[:2] == (3 * 7 + 8, 32 * STEP + 8)
    assert not any((image == colour).all(2).any() for pair in COLOURS for colour in pair)
    shade = [round(value + 0.6 * (1 - 80 / 127) * (255 - value)) for value in DRUM_COLOUR]
    starts = {column // STEP for column in columns_of(image, shade)}
    assert starts == set(range(0, 32, 2))


# Sound


def test_sound_lasts_whole_bars_at_the_songs_tempo(trio: pretty_midi.PrettyMIDI) -> None:
    assert len(play([trio, trio])) == 2 * (round(8 * 60 / 90 * RATE) + round(PAUSE * RATE))


@pytest.mark.parametrize("program", [0, 33, 48, 73])
def test_every_instrument_is_as_loud_and_none_clips(tmp_path: Path, program: int) -> None:
    notes = [(step, step + 2, 60 + step % 7) for step in range(0, 32, 2)]
    audio = play([made(notes, notes, program=program, folder=tmp_path)])
    assert np.abs(audio).max() <= PEAK + 1e-6
    assert -20 < 20 * math.log10(np.sqrt(np.mean(audio**2))) < -16  # dB below full scale


@pytest.mark.parametrize("pitch", [33, 60, 69, 96])
@pytest.mark.parametrize("program", [0, 20, 33, 73])
def test_a_tone_has_the_frequency_of_its_pitch(tmp_path: Path, pitch: int, program: int) -> None:
    audio = play([made([(0, 16, pitch)], program=program, folder=tmp_path)])
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
    loudest = np.argmax(spectrum) * RATE / len(audio)
    assert loudest == pytest.approx(440 * 2 ** ((pitch - 69) / 12), rel=0.01, abs=0.6)


def test_rests_are_silent_and_drums_are_heard(tmp_path: Path, trio: pretty_midi.PrettyMIDI) -> None:
    quiet = play([made([(0, 4, 60), (12, 16, 62)], program=20, folder=tmp_path)])  # an organ, at 120 bpm
    second = len(quiet) // 5  # of 2.5 seconds
    assert np.abs(quiet[: second - 9]).max() > 0.2
    assert np.abs(quiet[int(1.1 * 2 * second) : int(1.4 * 2 * second)]).max() < 1e-6
    trio.instruments = [part for part in trio.instruments if part.is_drum]
    assert 0.2 < np.abs(play([trio])).max() <= PEAK + 1e-6


def test_many_songs_are_bounded_together(tmp_path: Path) -> None:
    long = made([(16 * bar, 16 * bar + 16, 60) for bar in range(30)], folder=tmp_path)
    assert len(play([long], rate=2000)) == round(45.5 * 2000)
    assert len(play([long] * 50, rate=2000)) == round(50 * 12.5 * 2000)


def test_notes_that_pile_up_take_no_longer_than_a_synthesizers_voices(tmp_path: Path) -> None:
    piled = made([(0, 4, 60), *((1 + n / 100, 400, 40 + n % 40) for n in range(3000))], folder=tmp_path)
    started = time.process_time()
    audio = play([piled], rate=4000)
    assert time.process_time() - started < 10
    assert 0.05 < np.abs(audio).max() <= PEAK + 1e-6


# Notation


def read_abc(text: str) -> Any:
    symusic = pytest.importorskip("symusic")
    return symusic.Score.from_abc(text)


def notes_of_abc(text: str) -> list[tuple[float, float, int]]:
    """Return the notes in quarter notes; the converter's notes begin a tick late and end in time."""
    score = read_abc(text)
    notes = [note for track in score.tracks for note in track.notes]
    return sorted((round((n.time - 1) / 480, 3), round(n.end / 480, 3), n.pitch) for n in notes)


def book(*items: pretty_midi.PrettyMIDI) -> str:
    text = tunes(items, [f"tune {number}" for number in range(len(items))])
    assert text is not None
    return text


CLASSES = st.one_of(st.just(0), st.just(0), st.integers(0, 89))
FILES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FILES
@given(st.lists(st.lists(CLASSES, min_size=32, max_size=32), min_size=1, max_size=2))
def test_the_notation_of_any_melody_has_its_notes(rows: list[list[int]]) -> None:
    midi = CODEC.join([torch.tensor([41, *row[1:]]) for row in rows])
    assert notes_of_abc(book(midi)) == quarters(midi)


@pytest.mark.parametrize("bpm", [40, 93, 208])
@pytest.mark.parametrize("meter", [(4, 4), (3, 4), (6, 8), (2, 2), (5, 4)])
def test_notation_has_the_metre_tempo_and_program(tmp_path: Path, bpm: int, meter: tuple[int, int]) -> None:
    notes = [(0, 10, 61), (10, 30, 66), (31, 35, 54), (36, 37, 87)]
    midi = made(notes, meters={0: meter}, tempos={0: bpm}, program=73, folder=tmp_path)
    text = book(midi)
    score = read_abc(text)
    assert notes_of_abc(text) == quarters(midi)
    assert [(m.numerator, m.denominator) for m in score.time_signatures] == [meter]
    assert score.tempos[0].qpm == pytest.approx(bpm, rel=1e-4)
    assert [track.program for track in score.tracks] == [73]
    bars = text.splitlines()[7:]
    assert "".join(bars).count("|") == len(sheet_of(midi).bars)


@FILES
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(40, 90)), min_size=1, max_size=12))
def test_triplets_keep_their_rhythm(tmp_path: Path, line: list[tuple[int, int, int]]) -> None:
    thirds = [(8 * n + 4 * start / 3, 8 * n + 4 * (start + length) / 3, p) for n, (start, length, p) in enumerate(line)]
    midi = made(thirds, folder=tmp_path)
    np.testing.assert_allclose(notes_of_abc(book(midi)), quarters(midi), atol=0.003)


def test_voices_are_kept_apart_and_drums_are_left_out(trio: pretty_midi.PrettyMIDI) -> None:
    text = book(trio)
    assert notes_of_abc(text) == quarters(trio)
    assert text.count("\nV:") == 2
    trio.instruments = [part for part in trio.instruments if part.is_drum]
    assert tunes([trio], ["drums"]) is None
    assert tuple(documents([trio], "drums", ["drums"])) == DrumTokenizer.document_endings
    assert tuple(documents([melody(41, 0, 43)], "tune", ["tune"])) == MelodyTokenizer.document_endings


def test_a_tune_as_a_person_would_write_it(tmp_path: Path) -> None:
    notes = [(0, 4, 67), (4, 6, 66), (6, 8, 65), (8, 12, 66), (12, 20, 74), (20, 25, 79), (26, 32, 55)]
    assert book(made(notes, tempos={0: 100}, folder=tmp_path)) == (
        "X:1\nT:tune 0\nM:4/4\nL:1/16\nQ:1/4=100\nK:G\n%%MIDI program 0\nG4 F2 =F2 ^F4 d4-|d4 g4- g z G,6|]\n"
    )


@pytest.mark.parametrize("meters", [{n / 40: (4, 4) for n in range(90)}, {0: (1, 64)}, {2.1: (3, 4)}])
def test_bars_without_room_for_a_note_are_none(tmp_path: Path, meters: dict[float, tuple[int, int]]) -> None:
    midi = made([(0, 4, 60), (6, 8, 62)], meters=meters, folder=tmp_path)
    assert notes_of_abc(book(midi)) == quarters(midi)
    assert music(page("a", [midi], ["a"]))["items"][0]["beats"] >= 2


@pytest.mark.parametrize("tonic", range(12))
def test_a_scale_needs_no_accidental_in_its_own_key(tmp_path: Path, tonic: int) -> None:
    scale = [60 + tonic + step for step in (0, 2, 4, 5, 7, 9, 11, 12)]
    midi = made([(4 * n, 4 * n + 4, pitch) for n, pitch in enumerate(scale)], folder=tmp_path)
    text = book(midi)
    assert not set("^_=") & set(text.splitlines()[-1])
    assert notes_of_abc(text) == quarters(midi)


def test_chords_are_tied_where_one_of_their_notes_goes_on(tmp_path: Path) -> None:
    midi = made([(0, 8, 60), (0, 4, 64), (4, 8, 67)], folder=tmp_path)
    assert book(midi).splitlines()[-1] == "[C-E]4 [CG]4 z8|]"


def test_a_title_is_one_line_that_means_nothing(tmp_path: Path) -> None:
    text = tunes([melody(41, 0, 43)], [HOSTILE])
    assert text is not None
    assert len(text.splitlines()) == 8
    assert [track.program for track in read_abc(text).tracks] == [0]


# A page


class Tags(HTMLParser):
    """What a page holds: its elements with their attributes, and the text of its scripts by their type."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str | None, str] = {}
        self.title = ""
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[self.tags[-1][1].get("type")] = data
        elif self.inside == "title":
            self.title = data


def outside(text: str) -> list[str]:
    """Return what a page refers to outside itself."""
    found = [f"{name}={value}" for _, attributes in Tags(text).tags for name, value in attributes.items()
             if name in ("src", "href", "srcset", "action", "data", "poster")]  # fmt: skip
    calls = (
        r"https?://[^\"']*|url\(|@import|\bimport\b|\bfetch\b|XMLHttpRequest|WebSocket|EventSource|sendBeacon|Worker"
    )
    return found + [match for match in re.findall(calls, text) if match != "http://www.w3.org/2000/svg"]


def music(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Tags(text).scripts["application/json"])
    return found


def test_a_page_holds_every_note(trio: pretty_midi.PrettyMIDI) -> None:
    item = music(page("trio", [trio], ["one"]))["items"][0]
    notes = [(round(n[0], 3), round(n[1], 3), n[2]) for voice in item["voices"][:2] for n in voice["notes"]]
    assert sorted(notes) == quarters(trio)
    (drums,) = (voice for voice in item["voices"] if voice["drums"])
    assert [note[0] for note in drums["notes"]] == [note[0] for note in quarters(trio, drums=True)]
    assert {note[3] for note in drums["notes"]} == {80}
    assert [drum["name"] for drum in music(page("trio", [trio], ["one"]))["drums"]] == [
        "closed hi-hat",
        "snare",
        "kick",
    ]
    assert item["bars"] == [0, 4]
    assert item["clock"] == [[0, 0], [8, pytest.approx(8 * 60 / 90, abs=1e-4)]]


def test_a_page_refers_to_nothing_outside_and_the_check_can_fail(trio: pretty_midi.PrettyMIDI) -> None:
    text = page(HOSTILE, [trio], [HOSTILE])
    assert outside(text) == []
    for offence in ('<img src="a.png">', "<style>a { background: url(a.png) }</style>", "<script>fetch(1)</script>"):
        assert len(outside(text.replace("</body>", f"{offence}</body>"))) == 1


def test_hostile_names_are_text_and_no_script_but_the_pages_own_may_run(trio: pretty_midi.PrettyMIDI) -> None:
    trio.instruments[0].name = HOSTILE
    plain, hostile = page("a", [trio], ["a"]), page(HOSTILE, [trio], [HOSTILE])
    assert [tag for tag, _ in Tags(hostile).tags] == [tag for tag, _ in Tags(plain).tags]
    assert Tags(hostile).title == HOSTILE
    assert html.unescape(music(hostile)["items"][0]["title"]).startswith("</script><img")
    policy = next(value["content"] for _, value in Tags(hostile).tags if "http-equiv" in value)
    digest = base64.b64encode(hashlib.sha256(Tags(hostile).scripts[None].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_every_button_and_picture_of_a_page_has_a_label(trio: pretty_midi.PrettyMIDI) -> None:
    script = Tags(page("a", [trio], ["a"])).scripts[None]
    assert '"aria-label", `Play ${item.title}`' in script
    assert 'role: "img"' in script


DRIVER = """<script>
(async () => {
  const item = music.items[0], length = item.clock[item.clock.length - 1][1];
  const offline = new OfflineAudioContext(1, Math.ceil(length * 22050), 22050);
  const limiter = output(offline);
  for (const event of events(item)) sound(offline, limiter, event, 0);
  const samples = (await offline.startRendering()).getChannelData(0);
  const loudness = part => Math.sqrt(part.reduce((sum, value) => sum + value * value, 0) / part.length);
  const playing = () => document.querySelectorAll("figure.playing").length;
  const state = () => [document.getElementById("status").textContent, playing()];
  const heard = { rms: loudness(samples), late: loudness(samples.subarray(samples.length / 2)) };
  heard.peak = samples.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const button = document.querySelector("figure button"), all = document.getElementById("all");
  button.click();
  heard.playing = state();
  await new Promise(resolve => setTimeout(resolve, 1500));
  const head = document.querySelector("figure svg line:last-child");
  heard.head = [head.getAttribute("visibility"), Number(head.getAttribute("x1"))];
  button.click();
  heard.stopped = state();
  all.click();
  heard.all = all.textContent;
  return heard;
})().then(heard => fetch("/heard", { method: "POST", body: JSON.stringify(heard) }),
  error => fetch("/heard", { method: "POST", body: JSON.stringify({ error: String(error) }) }));
</script>"""


def chromium(folder: Path, url: str, *options: str) -> list[str]:
    """Return a command that opens a page without any network but this machine's own."""
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={folder / 'profile'}"]
    return [CHROMIUM, *flags, *options, url]


def browse(path: Path, text: str) -> tuple[list[tuple[str, dict[str, str | None]]], str]:
    """Return a page's elements as Chromium has them after its scripts have run, and what it complains about."""
    path.write_text(text, encoding="utf-8")
    command = chromium(path.parent, path.as_uri(), "--dump-dom")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return Tags(done.stdout).tags, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def drive(folder: Path, text: str) -> tuple[dict[str, Any], set[str]]:
    """Return what a page with the driver tells of itself, and all that it asked its server for."""
    asked: set[str] = set()
    told: Queue[bytes] = Queue()

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.add(self.path)
            self.answer(200 if self.path == "/" else 404, text.encode() if self.path == "/" else b"")

        def do_POST(self) -> None:
            told.put(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(200, b"")

        def answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = chromium(folder, f"http://127.0.0.1:{server.server_port}/", "--remote-debugging-port=0")
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
            try:
                heard: dict[str, Any] = json.loads(told.get(timeout=120))
            finally:
                browser.terminate()
                server.shutdown()
    return heard, asked


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")


@needs_chromium
@pytest.mark.slow
def test_chromium_draws_every_note_and_runs_no_other_script(tmp_path: Path, trio: pretty_midi.PrettyMIDI) -> None:
    text = page(HOSTILE, [trio, melody(41, 0, 43)], [HOSTILE, "step 2/7"], columns=2)
    seen, complaints = browse(tmp_path / "a.html", text)
    assert complaints == ""
    notes = len(TUNE) + len(BASS) + len(BEAT) + 2
    assert sum(tag == "rect" and attributes.get("class") == "note" for tag, attributes in seen) == notes
    assert not [tag for tag, _ in seen if tag == "img"]
    labels = [attributes.get("aria-label") or "" for _, attributes in seen]
    assert "Play step 2/7" in labels
    assert "piano roll of step 2/7: 2 notes in 2 bars" in labels

    _, complaints = browse(tmp_path / "a.html", text.replace("</body>", f"{DRIVER}</body>"))
    assert "Executing inline script violates" in complaints  # only the page's own may


@needs_chromium
@pytest.mark.slow
def test_chromium_plays_and_stops(tmp_path: Path, trio: pretty_midi.PrettyMIDI) -> None:
    text = page("songs", [trio, melody(41, 0, 43)], ["one", "step 2/7"])
    heard, asked = drive(tmp_path, re.sub("<meta http-equiv.*>", "", text).replace("</body>", f"{DRIVER}</body>"))
    assert "error" not in heard, heard
    assert asked <= {"/", "/favicon.ico"}
    assert 0.02 < heard["rms"] < 0.5
    assert heard["late"] > 0.01
    assert heard["peak"] < 1
    assert heard["playing"] == ["playing one", 1]
    visibility, place = heard["head"]
    assert visibility == "visible"
    assert place > 0
    assert heard["stopped"] == ["", 0]
    assert heard["all"] == "Stop"


# What the commands write


def test_every_command_writes_a_page_that_says_what_each_song_is(
    get_run: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = get_run("melody")
    a, b = run.world.inputs
    monkeypatch.chdir(tmp_path)

    def titles(stem: str, *arguments: object) -> list[str]:
        out = tmp_path / "-".join(map(str, (stem, len(arguments))))
        assert main([str(argument) for argument in (*arguments, "-o", out)]) == 0
        shown = music((out / f"{stem}.html").read_text(encoding="utf-8"))
        assert (out / f"{stem}.abc").read_text(encoding="utf-8").count("X:") == len(shown["items"])
        found: list[str] = [item["title"] for item in shown["items"]]
        return found

    assert titles("sample", "sample", run.path, "-n", 2) == ["sample 1", "sample 2"]
    steps = ["step 1/3", "step 2/3", "step 3/3"]
    assert titles("interpolation", "interpolate", run.path, a, b, "--steps", 3) == ["A: a.mid", *steps, "B: b.mid"]
    grid = titles("grid", "interpolate", run.path, a, b, b, a, "--grid", "2x3")
    assert grid[1:4] == ["row 1, column 2", "row 1, column 3 (B: b.mid)", "row 2, column 1 (C: b.mid)"]
    assert titles("similar", "similar", run.path, "test:1", "-n", 2) == ["test:1", "variation 1", "variation 2"]
    again = titles("reconstruction", "reconstruct", run.path, a, b)
    assert again[:2] == ["a.mid", "b.mid"]
    assert again[3].startswith("b.mid again: accuracy ")
    assert main(["attribute", str(run.path), "--with", a, "--without", b, "-o", "v"]) == 0
    edited = titles("edit", "edit", run.path, a, "--attribute", "v", "--strength", -0.5, 1)
    assert edited == ["a.mid, strength -0.5", "a.mid, strength 1"]


def test_reconstruct_prints_the_scores_of_each_item_beside_its_file(
    get_run: Callable[[str], Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = get_run("melody")
    assert main(["reconstruct", str(run.path), run.world.inputs[0], "-o", str(tmp_path)]) == 0
    half = pretty_midi.PrettyMIDI(str(tmp_path / "reconstruction-1.mid"))
    half.instruments[0].notes = half.instruments[0].notes[::2]  # of what a model of four steps says whatever it hears
    CODEC.write(half, tmp_path / "half.mid")
    capsys.readouterr()
    assert main(["reconstruct", str(run.path), run.world.inputs[1], f"{tmp_path}/half.mid", "-o", str(tmp_path)]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines() if "/reconstruction-" in line]
    for number, (path, *scores) in enumerate(lines, 1):
        files = [tmp_path / f"{name}-{number}.mid" for name in ("original", "reconstruction")]
        assert path == str(files[1])
        truth, found = (
            {(start, pitch) for start, _, pitch in quarters(pretty_midi.PrettyMIDI(str(file)))} for file in files
        )
        assert scores[-1] == f"note_f1 {2 * len(truth & found) / (len(truth) + len(found)):.4g}"
        names = ["accuracy", "onset_accuracy", "note_precision", "note_recall", "note_f1"]
        assert [score.split()[0] for score in scores] == names
    assert float(lines[1][-1].split()[1]) > 0.4


# Files for any sequencer


def test_a_written_song_is_the_same_for_every_reader(tmp_path: Path) -> None:
    like = made([(0, 4, 60), (4, 8, 62)], tempos={0: 93}, meters={0: (2, 4)}, program=68, folder=tmp_path)
    rows = [[41, 0, 0, 0, 43, 43, 0, 1, *[0] * 20, 89, 0, 0, 0], [0, 2, 0, 41, *[0] * 28]]
    midi = CODEC.join([torch.tensor(row) for row in rows], like=like)
    path = tmp_path / "a.mid"
    CODEC.write(midi, path)
    expected = [(0, 4, 60), (4, 5, 62), (5, 7, 62), (28, 32, 108), (33, 35, 21), (35, 64, 60)]
    ours = [(4 * start, 4 * end, pitch) for start, end, pitch in quarters(pretty_midi.PrettyMIDI(str(path)))]
    np.testing.assert_allclose(ours, expected, atol=0.01)

    file = mido.MidiFile(str(path), clip=False)
    conductor, track = file.tracks
    events = [event for event in conductor if event.is_meta]
    assert [(e.type, e.time) for e in events if e.type in ("set_tempo", "time_signature")] == [
        ("set_tempo", 0),
        ("time_signature", 0),
    ]
    (tempo,) = (event.tempo for event in events if event.type == "set_tempo")
    assert tempo == math.floor(6e7 / 93)
    assert [(e.numerator, e.denominator) for e in events if e.type == "time_signature"] == [(4, 4)]
    assert [event.name for event in track if event.type == "track_name"] == ["melody"]
    assert [event.program for event in track if event.type == "program_change"] == [68]
    assert all([e.type for e in each if e.type == "end_of_track"] == ["end_of_track"] for each in (conductor, track))
    assert conductor[-1].type == track[-1].type == "end_of_track"

    now, open_notes, heard = 0, {}, []
    for event in track:
        now += event.time
        if event.type == "note_on" and event.velocity:
            assert event.note not in open_notes  # an end comes before the next beginning
            open_notes[event.note] = now
            assert event.velocity == 80
        elif event.type in ("note_on", "note_off"):
            heard.append((open_notes.pop(event.note), now, event.note))
    assert [
        tuple(round(4 * t / file.ticks_per_beat, 2) for t in note[:2]) + note[2:] for note in sorted(heard)
    ] == expected

    symusic = pytest.importorskip("symusic")
    score = symusic.Score(str(path))
    (line,) = score.tracks
    found = sorted(
        (4 * n.time / score.ticks_per_quarter, 4 * n.end / score.ticks_per_quarter, n.pitch) for n in line.notes
    )
    np.testing.assert_allclose(found, expected, atol=0.01)
    assert (line.name, line.program, score.tempos[0].qpm) == ("melody", 68, pytest.approx(93, rel=1e-5))
