"""Windows left out of scores, samples of every modality measured, the aggregate's latents, chains, attributes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pretty_midi
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from seqvae.data import MelodyTokenizer
from seqvae.data.codec import encoded_again
from seqvae.data.dataset import WindowDataset
from seqvae.harness.aggregate import read_aggregate
from seqvae.harness.config import load
from seqvae.harness.samples import sample_quality
from seqvae.harness.scoring import evaluate, unseen
from seqvae.latent import attribute_table, chains, encode, named_attributes
from seqvae.priors import StandardNormal
from tests.helpers.commands import ok, refused
from tests.helpers.letters import make
from tests.helpers.vectors import RowCodec, linear_world
from tests.helpers.worlds import Run
from tests.test_aggregate import without

GetRun = Callable[[str], Run]
Capture = pytest.CaptureFixture[str]


def printed(capsys: Capture, *arguments: object) -> Any:
    capsys.readouterr()
    ok(*arguments)
    return json.loads(capsys.readouterr().out)


# Windows that stand in train


def test_windows_that_stand_in_train_are_not_among_the_unseen(tmp_path: Path) -> None:
    make(tmp_path / "data", ["train:abc", "train:bcd", "valid:xyz", "test:abc", "test:new", "test:bcd", "test:own"])
    test = WindowDataset(tmp_path / "data", "test")
    train = {tuple(window.tolist()) for window in map(WindowDataset(tmp_path / "data", "train").__getitem__, range(2))}
    assert unseen(test).tolist() == [i for i in range(4) if tuple(test[i].tolist()) not in train] == [1, 3]
    assert unseen(WindowDataset(tmp_path / "data", "test", limit=2)).tolist() == [1]
    assert unseen(WindowDataset(tmp_path / "data", "train")).tolist() == [0, 1]
    with pytest.raises(ValueError, match="each of the 1 windows of test also stands in train; --keep-seen"):
        unseen(WindowDataset(tmp_path / "data", "test", limit=1))


def test_an_evaluation_leaves_seen_windows_out_and_says_how_many(
    get_run: GetRun, tmp_path: Path, capsys: Capture
) -> None:
    run = get_run("melody")
    root = Path(shutil.copytree(run.world.root, tmp_path / "data"))
    dataset = WindowDataset(root, "test")
    flags = (np.arange(len(dataset)) % 3 == 0).astype(np.int64)
    np.save(root / "test" / "seen_in_train.column.npy", flags)
    command = ["evaluate", run.path, "--data", root, "--scores", tmp_path / "scores.npz"]
    plain, kept = (printed(capsys, *command, "--json", *more) for more in ([], ["--keep-seen"]))
    assert plain["left_out_as_seen_in_train"] == flags.sum() > 0
    assert kept["left_out_as_seen_in_train"] == 0
    assert kept["metrics"]["examples"] == len(dataset) == plain["metrics"]["examples"] + flags.sum()
    trained = load(run.path)
    direct = evaluate(trained.vae, trained.codec, dataset, places=np.flatnonzero(flags == 0))
    assert plain["metrics"]["elbo"] == direct.metrics["elbo"] != kept["metrics"]["elbo"]
    assert plain["reconstruction"] == direct.reconstruction
    subset = printed(capsys, *command, "--json", "--subset", 2)
    assert subset["metrics"]["examples"] == 2
    ok(*command)
    expected = f"{flags.sum()} of {len(dataset)} windows also stand in train and are left out (--keep-seen keeps them)"
    assert expected in capsys.readouterr().out


# Samples measured


def test_the_quality_of_melodies_and_pictures_is_that_of_their_windows(get_run: GetRun, capsys: Capture) -> None:
    for name, attribute in (("melody", "note_density"), ("fashion", "brightness")):
        run = get_run(name)
        found = printed(capsys, "quality", run.path, "-n", 5, "--from", "aggregate", "--json")
        assert found["from"] == "aggregate"
        assert {row["windows"] for key, row in found["rows"].items() if key != "test split"} == {5.0}
        assert found["rows"]["training windows"]["in_training_data"] == 1.0
        assert all(0 <= row[attribute] <= 1 for row in found["rows"].values())
        ok("quality", run.path, "-n", "3")
        assert "samples from the prior" in capsys.readouterr().out
        assert "--lm-steps is for sentences" in refused(capsys, "quality", run.path, "-n", 5, "--lm-steps", 3)


def test_training_windows_as_samples_are_copies_and_all_of_the_codecs_measures_are_there(get_run: GetRun) -> None:
    run = get_run("melody")
    trained, train = load(run.path), WindowDataset(run.world.root, "train")
    rows = sample_quality(trained, [train[0], train[1], train[1], torch.zeros_like(train[0])], run.world.root)
    row = rows["samples"]
    assert (row["encodable"], row["unique"], row["in_training_data"], row["near_copies"]) == (0.75,) * 4
    assert row["encodes_again"] == sum(torch.equal(train[i], _again(trained.codec, train[i])) for i in (0, 1, 1)) / 4
    assert rows["test split"]["pitch_class_overlap"] == rows["test split"]["interval_overlap"] == pytest.approx(1.0)
    assert 0 < row["pitch_class_overlap"] < 1
    assert "near_copies" not in rows["training windows"]
    with pytest.raises(ValueError, match="no samples to measure"):
        sample_quality(trained, [], run.world.root)


def _again(codec: Any, window: Tensor) -> Tensor:
    again = encoded_again(codec, window)
    assert again is not None
    return again


def test_a_window_encodes_again_when_its_item_gives_it_back() -> None:
    codec = MelodyTokenizer(bars=1)
    window = torch.zeros(16, dtype=torch.int64)
    assert encoded_again(codec, window) is None  # nothing is heard
    window[[0, 4, 6]] = torch.tensor([40, 1, 45])
    assert torch.equal(_again(codec, window), window)
    window[5] = 1  # silence ends nothing
    assert not torch.equal(_again(codec, window), window)


# Latents from the aggregate


def test_samples_of_the_aggregate_are_those_of_its_latents(run: Run, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    output = tmp_path / "lines.txt" if run.world.experiment == "text" else out
    for source in ("aggregate", "prior"):
        ok("sample", run.path, "-n", "2", "--from", source, "-o", output)
    trained = load(run.path)
    law = read_aggregate(trained)
    assert law is not None
    assert law.sample(3).shape == (3, trained.vae.latent_dim)


def test_without_a_kept_mixture_one_is_fitted_to_the_data_or_a_line_says_what_is_missing(
    get_run: GetRun, tmp_path: Path, capsys: Capture
) -> None:
    run = get_run("text")
    alone = Path(shutil.copytree(load(run.path).path, tmp_path / "alone"))
    capsys.readouterr()
    ok("sample", alone, "-n", "3", "--from", "aggregate")
    expected = capsys.readouterr().out
    without(alone)
    ok("sample", alone, "-n", "3", "--from", "aggregate", "--data", run.world.root)
    assert capsys.readouterr().out.count("\n") == expected.count("\n") == 3
    error = refused(capsys, "sample", alone, "--from", "aggregate", "--data", tmp_path / "nowhere")
    assert "holds no mixture" in error
    assert "say where it is with --data ROOT" in error


# Chains


def test_the_latents_of_a_chain_are_standard_normal_and_as_near_as_the_drift_says() -> None:
    vae = linear_world(numbers=3, latent=3)
    z = torch.cat([torch.cat(chain) for chain in chains(vae, 5000, 3, 0.6)]).detach()
    decoder: Any = vae.decoder
    latents = torch.linalg.solve(decoder.weight.detach(), (z - decoder.bias).T).T.view(5000, 3, 3)
    torch.testing.assert_close(torch.cov(latents.flatten(0, 1).T), torch.eye(3), atol=0.06, rtol=0.0)
    assert float((latents[:, 0] * latents[:, 1]).mean()) == pytest.approx(0.8, abs=0.05)
    assert float((latents[:, 0] * latents[:, 2]).mean()) == pytest.approx(0.64, abs=0.05)


def test_a_chain_without_drift_repeats_its_window_and_chains_are_as_many_as_asked() -> None:
    vae = linear_world()
    found = list(chains(vae, 600, 3, 0.0, law=StandardNormal(3)(vae.encoder)))
    assert [len(chain) for chain in found] == [3] * 600
    assert all(torch.equal(chain[0], window) for chain in found for window in chain)
    assert not torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 2, 0.5), "must be positive, got 0 and 2"), ((1, 0, 0.5), "got 1 and 0"), ((1, 2, 1.5), "drift must be")],
)
def test_a_chain_of_nothing_is_refused(arguments: tuple[int, int, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chains(linear_world(), *arguments)


def test_a_sample_of_bars_is_as_long_as_asked(get_run: GetRun, tmp_path: Path, capsys: Capture) -> None:
    run = get_run("melody")
    for law, length in (("prior", ["--bars", "6"]), ("aggregate", ["--windows", "3"])):
        out = tmp_path / law
        command = ["sample", str(run.path), "-n", "2", "--from", law, *length, "--drift", "0.2", "-o", str(out)]
        ok(*command)
        tunes = [pretty_midi.PrettyMIDI(str(path)) for path in sorted(out.glob("sample-*.mid"))]
        assert len(tunes) == 2
        assert all(tune.get_end_time() <= 6 * 2.0 + 1e-3 for tune in tunes)  # bars of two seconds
        assert max(note.start for tune in tunes for note in tune.instruments[0].notes) > 4.0  # not all in one window


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("melody", ["--bars", "3"], "--bars must be a multiple of the 2 bars of a window, got 3"),
        ("melody", ["--windows", "0"], "--windows must be positive, got 0"),
        ("melody", ["--drift", "0.1"], "--drift is between the windows of an item"),
        ("melody", ["--windows", "2", "--drift", "2"], "drift must be between 0 and 1, got 2.0"),
        ("melody", ["--windows", "2", "--unique"], "--unique and --novel compare single windows"),
        ("text", ["--windows", "2"], "--windows: an item of the SentencePieceTokenizer is one window"),
        ("fashion", ["--bars", "2"], "--bars: an item of the PixelCodec is one window"),
    ],
)
def test_a_length_that_items_cannot_have_is_refused(
    name: str, arguments: list[str], message: str, get_run: GetRun, tmp_path: Path, capsys: Capture
) -> None:
    assert message in refused(capsys, "sample", get_run(name).path, *arguments, "-o", tmp_path / "out")


# Named attributes


class Named(RowCodec):
    """Rows with the first number as an attribute, a constant one, and one that half of the rows have."""

    def attributes(self, window: Tensor) -> dict[str, float]:
        first = float(window[0, 0])
        return {"first": first, "constant": 1.0, **({"positive": first} if first > 0 else {})}


ROWS = [row.unsqueeze(0) for row in torch.randn(80, 5, generator=torch.Generator().manual_seed(1))]


def test_a_named_vector_is_the_top_quartile_minus_the_bottom_quartile() -> None:
    vae = linear_world()
    ordered = sorted(ROWS, key=lambda row: float(row[0, 0]))
    means = [encode(vae, Named(), part).mean(0) for part in (ordered[-20:], ordered[:20])]
    found = named_attributes(vae, Named(), ROWS)
    assert list(found) == ["first", "positive"]  # what never differs has no direction
    torch.testing.assert_close(found["first"], means[0] - means[1])
    having = [row for row in ordered if row[0, 0] > 0]
    quarter = len(having) // 4
    means = [encode(vae, Named(), part).mean(0) for part in (having[-quarter:], having[:quarter])]
    torch.testing.assert_close(named_attributes(vae, Named(), ROWS, ["positive"])["positive"], means[0] - means[1])


@pytest.mark.parametrize(
    ("amounts", "least", "most"),
    [
        ([0, 0, 0, 0, 0, 0, 0, 1], [0, 1, 2, 3, 4, 5, 6], [7]),  # rare: those that have any against all others
        ([2, 2, 2, 2, 2, 2, 2, 1], [7], [0, 1, 2, 3, 4, 5, 6]),
        ([2, 2, 2, 2, 2, 2, 3, 1], [7], [6]),
        ([0, 0, 0, 1, 2, 3, 3, 3], [0, 1, 2], [5, 6, 7]),
    ],
)
def test_windows_of_the_same_amount_are_in_the_same_quarter(
    amounts: list[int], least: list[int], most: list[int]
) -> None:
    rows = [
        torch.cat([torch.tensor([[float(amount)]]), row[:, 1:]], 1) for amount, row in zip(amounts, ROWS, strict=False)
    ]
    vae = linear_world()
    latents = encode(vae, Named(), rows)
    expected = latents[most].mean(0) - latents[least].mean(0)
    torch.testing.assert_close(named_attributes(vae, Named(), rows, ["first"])["first"], expected)
    turned = named_attributes(vae, Named(), rows[::-1], ["first"])["first"]  # their order says nothing
    torch.testing.assert_close(turned, expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("last", "the attribute must be one of constant, first, positive, got 'last'"),
        ("constant", "constant does not differ between the quartiles of 80 windows"),
    ],
)
def test_an_attribute_without_a_direction_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        named_attributes(linear_world(), Named(), ROWS, [name])


def test_the_table_is_the_mean_after_moving_beside_the_mean_before() -> None:
    vae = linear_world()
    vectors = {"up": torch.tensor([1.0, 0.0, 0.0]), "none": torch.zeros(3)}
    table = attribute_table(vae, Named(), ROWS, vectors, 0.5)
    for name, vector in vectors.items():
        z = encode(vae, Named(), ROWS) + 0.5 * vector
        assert table.after[name]["first"] == pytest.approx(
            float(vae.decoder.predict(z, z)[:, 0].detach().mean()), rel=1e-4
        )
    assert table.after["none"] == table.before
    change = table.after["up"]["first"] / table.before["first"] - 1
    assert table.percent()["up"]["first"] == pytest.approx(100 * change)
    assert table._replace(before={"first": 0.0}).percent() == {"up": {"first": None}, "none": {"first": None}}


def test_the_command_writes_a_named_vector_that_edits(run: Run, tmp_path: Path, capsys: Capture) -> None:
    name = {"melody": "note_density", "text": "length", "fashion": "brightness"}[run.world.experiment]
    path = tmp_path / "v.safetensors"
    ok("attribute", run.path, "--by", name, "-o", path)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["by"]) == name
    output = tmp_path / "out"
    ok("edit", run.path, run.world.inputs[0], "--attribute", path, "-o", output)
    found = printed(capsys, "attribute", run.path, "--table", "-n", 3, "--strength", "-0.5", "--json")
    assert (found["windows"], found["strength"]) == (3, -0.5)
    assert name in found["after"]
    assert found["percent"].keys() == found["after"].keys()
    assert found["before"].keys() == found["percent"][name].keys()
    ok("attribute", run.path, "--table", "-n", "3")
    table = capsys.readouterr().out.splitlines()
    assert "3 test windows moved by strength 1" in table[0]
    assert table[-1].split()[0] == "reconstructions"


def test_the_table_is_drawn(get_run: GetRun, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "table.png"
    ok("attribute", get_run("melody").path, "--table", "-n", "4", "-o", path)
    with Image.open(path) as picture:
        assert min(picture.size) > 200


def test_a_picture_without_matplotlib_is_refused_before_any_work(
    get_run: GetRun, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    error = refused(capsys, "attribute", get_run("melody").path, "--table", "-o", tmp_path / "t.png")
    assert 'pip install "seqvae[plots]"' in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of --with INPUT --without INPUT, --by NAME or --table is wanted"),
        (["--with", "test:0"], "one of --with INPUT --without INPUT"),
        (["--by", "note_density", "--table"], "one of --with INPUT --without INPUT"),
        (["--by", "note_density"], "-o OUT is needed"),
        (["--by", "loudness", "-o", "v.safetensors"], "the attribute must be one of average_interval, c_diatonic"),
        (["--table", "-n", "0"], "n must be positive, got 0"),
        (["--table", "--strength", "nan"], "strength must be finite, got nan"),
        (["--table", "--limit", "0"], "limit must be positive, got 0"),
        (["--table", "--orthogonal-to", "v"], "--orthogonal-to is not for --table; leave it out"),
        (["--by", "note_density", "-o", "v", "--strength", "2"], "--strength is for --table; leave it out"),
        (["--by", "note_density", "-o", "v", "-n", "8"], "-n is for --table; leave it out"),
        (["--with", "test:0", "--without", "test:1", "-o", "v", "--json"], "--json is for --table; leave it out"),
        (["--table", "-o", "table.txt"], "-o of --table is a picture, FILE.png, got table.txt"),
    ],
)
def test_a_mistake_with_attributes_is_one_line(
    arguments: list[str], message: str, get_run: GetRun, capsys: Capture
) -> None:
    assert message in refused(capsys, "attribute", get_run("melody").path, *arguments)
