"""Exported models: what another program computes of their files is what the model computes."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.cli import main
from seqvae.cli.writing import whole_folder
from seqvae.data import DrumTokenizer, MelodyTokenizer
from seqvae.data.codec import Codec
from seqvae.data.midi.melody import to_notes
from seqvae.export import export_magenta, export_onnx
from seqvae.harness.config import load
from seqvae.models import conv, lstm
from seqvae.models.decoding import Greedy
from seqvae.priors import MixtureOfGaussians, StandardNormal
from seqvae.vae import VAE
from tests.helpers.magenta import ask, magenta_music, sequence
from tests.helpers.worlds import Run

Capture = pytest.CaptureFixture[str]
GetRun = Callable[[str], Run]

DOCUMENTED = Path(__file__).parent.parent / "docs" / "export.md"
NORMAL: dict[str, Any] = {
    "latent_dim": 128,
    "embedding_dim": 64,
    "encoder_hidden_dim": 256,
    "hidden_dim": 320,
    "num_layers": 2,
}


def flat(codec: Codec[Any] | None = None, **options: Any) -> VAE:
    """Return a melody model of random weights, large enough that every z spells another melody."""
    torch.manual_seed(0)
    sizes = {"latent_dim": 4, "embedding_dim": 5, "encoder_hidden_dim": 6, "hidden_dim": 7, "num_layers": 2}
    encoder, decoder = lstm(**(codec or MelodyTokenizer()).spec, **{**sizes, **options})
    vae = VAE(encoder, decoder, StandardNormal(encoder.latent_dim)).eval()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.normal_(std=2.0 * parameter.shape[-1] ** -0.5)
        for name, buffer in vae.named_buffers():
            buffer.uniform_(0.1 if "variance" in name else -1.0, 1.0)
    return vae


def windows(vocab_size: int, count: int = 3, steps: int = 32) -> Tensor:
    return torch.randint(0, vocab_size, (count, steps), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def answers(vae: VAE, x: Tensor) -> tuple[NDArray[np.float32], Tensor, Tensor]:
    """Return the posterior means of windows, latents (the means and as many draws), and what they spell greedily."""
    mean = vae.encoder(x).mean
    z = torch.cat([mean, torch.randn(mean.shape, generator=torch.Generator().manual_seed(2))])
    spelt = vae.decoder.sample(z, strategy=Greedy())
    return mean.numpy(), z, spelt


class Magenta:
    """The formulas of Magenta's MusicVAE in float64, on the files of an export."""

    def __init__(self, folder: Path) -> None:
        (group,) = json.loads((folder / "weights_manifest.json").read_text())
        values = np.frombuffer(b"".join((folder / name).read_bytes() for name in group["paths"]), "<f4")
        self.weights: dict[str, NDArray[np.float64]] = {}
        start = 0
        for entry in group["weights"]:
            assert entry["dtype"] == "float32"
            size = int(np.prod(entry["shape"]))
            self.weights[entry["name"]] = values[start : start + size].reshape(entry["shape"]).astype(np.float64)
            start += size
        assert start == len(values)

    def dense(self, name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return x @ self.weights[f"{name}/kernel"] + self.weights[f"{name}/bias"]

    def cell(self, name: str, x: Any, c: Any, h: Any) -> tuple[Any, Any]:
        i, j, f, o = np.split(self.dense(f"{name}/lstm_cell", np.concatenate([x, h], 1)), 4, axis=1)
        c = c * sigmoid(f + 1.0) + sigmoid(i) * np.tanh(j)
        return c, np.tanh(c) * sigmoid(o)

    def encode(self, x: NDArray[np.int64]) -> NDArray[np.float64]:
        last = []
        for direction, tokens in (("fw", x.T), ("bw", x.T[::-1])):
            name = f"encoder/cell_0/bidirectional_rnn/{direction}/multi_rnn_cell/cell_0"
            width, units = (
                self.weights[f"{name}/lstm_cell/kernel"].shape[0],
                len(self.weights[f"{name}/lstm_cell/bias"]) // 4,
            )
            c = h = np.zeros((len(x), units))
            for token in tokens:
                c, h = self.cell(name, np.eye(width - units)[token], c, h)
            last.append(h)
        return self.dense("encoder/mu", np.concatenate(last, 1))

    def decode(self, z: NDArray[np.float64], steps: int) -> NDArray[np.int64]:
        layers = sum(name.startswith("decoder/multi_rnn_cell") for name in self.weights) // 2
        states = np.split(np.tanh(self.dense("decoder/z_to_initial_state", z)), 2 * layers, axis=1)
        vocab = len(self.weights["decoder/output_projection/bias"])
        fed, spelt = np.zeros((len(z), vocab)), []
        for _ in range(steps):
            x = np.concatenate([fed, z], 1)
            for layer in range(layers):
                name = f"decoder/multi_rnn_cell/cell_{layer}"
                states[2 * layer : 2 * layer + 2] = self.cell(name, x, *states[2 * layer : 2 * layer + 2])
                x = states[2 * layer + 1]
            token = self.dense("decoder/output_projection", x).argmax(1)
            fed = np.eye(vocab)[token]
            spelt.append(token)
        return np.stack(spelt, 1)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 1}, {"num_layers": 3}, {"tie_embeddings": True}, {"posterior_gamma": 0.6}, {"dropout": 0.5}],
    ids=str,
)
def test_magentas_formulas_give_the_models_answers(options: dict[str, Any], tmp_path: Path) -> None:
    vae, x = flat(**options), windows(90)
    mean, z, spelt = answers(vae, x)
    export_magenta(vae, MelodyTokenizer(), tmp_path)
    magenta = Magenta(tmp_path)
    assert np.abs(magenta.encode(x.numpy()) - mean).max() < 1e-5
    assert (magenta.decode(z.double().numpy(), 32) == spelt.numpy()).all()
    assert len({*map(tuple, spelt.tolist())}) > len(z) / 2  # z says something


def test_magentas_formulas_need_every_weight_as_it_is(tmp_path: Path) -> None:
    vae, x = flat(), windows(90)
    mean, z, spelt = answers(vae, x)
    export_magenta(vae, MelodyTokenizer(), tmp_path)
    for name in Magenta(tmp_path).weights:
        magenta = Magenta(tmp_path)
        magenta.weights[name] = magenta.weights[name][..., ::-1]
        same_mean = np.abs(magenta.encode(x.numpy()) - mean).max() < 1e-5
        assert not (same_mean and (magenta.decode(z.double().numpy(), 32) == spelt.numpy()).all()), name


def test_the_weights_are_cut_into_shards(tmp_path: Path) -> None:
    export_magenta(flat(**NORMAL), MelodyTokenizer(), tmp_path)
    (group,) = json.loads((tmp_path / "weights_manifest.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "weights_manifest.json", *group["paths"]}
    sizes = [(tmp_path / name).stat().st_size for name in group["paths"]]
    assert len(sizes) > 1
    assert {*sizes[:-1]} == {2**22}
    assert sum(sizes) == 4 * sum(int(np.prod(entry["shape"])) for entry in group["weights"])


@pytest.fixture(scope="module")
def node(request: pytest.FixtureRequest) -> Path:
    assert request.config.cache is not None
    return magenta_music(Path(request.config.cache.mkdir("magenta-music")))


MODELS: dict[str, tuple[Codec[Any], dict[str, Any]]] = {
    "tiny": (MelodyTokenizer(), {}),
    "normal": (MelodyTokenizer(), NORMAL),
    "one bar": (MelodyTokenizer(bars=1), {}),
    "drums": (DrumTokenizer(), {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_magenta_music_gives_the_models_answers(name: str, node: Path, tmp_path: Path) -> None:
    codec, options = MODELS[name]
    vae, drums = flat(codec, **options), codec.spec["vocab_size"] == 512
    steps = codec.spec["max_length"]
    x = windows(codec.spec["vocab_size"], steps=steps)
    if not drums:
        x[:, 0] = 40  # a note off in silence would not come through a NoteSequence
        x[1:, 1:][x[1:, :-1] == 1] = 0
    (tmp_path / "model").mkdir()
    export_magenta(vae, codec, tmp_path / "model")
    mean, z, spelt = answers(vae, x)
    notes_of = hits if drums else melody
    answer = ask(node, tmp_path / "model", tmp_path, [sequence(notes_of(row), steps, drums) for row in x], z.tolist())
    assert np.abs(np.array(answer["mean"]) - mean).max() < 1e-5
    assert answer["notes"] == [[list(note) for note in notes_of(row)] for row in spelt]
    assert [answer["interpolated"][0], answer["interpolated"][-1]] == answer["notes"][:2]
    assert len(answer["sampled"]) == 2


@pytest.mark.slow
def test_magenta_music_plays_a_run_that_the_command_exported(get_run: GetRun, node: Path, tmp_path: Path) -> None:
    assert main(["export", str(get_run("melody").path), "--format", "magenta-js", "-o", str(tmp_path / "model")]) == 0
    vae = load(get_run("melody").path).vae
    x = torch.tensor([[40, 0, 1, 0, 45, 47, 0, 0] * 4, [60, 62, 64, 1] * 8])
    mean, z, spelt = answers(vae, x)
    answer = ask(node, tmp_path / "model", tmp_path, [sequence(melody(row), 32) for row in x], z.tolist())
    assert np.abs(np.array(answer["mean"]) - mean).max() < 1e-5
    assert answer["notes"] == [[list(note) for note in melody(row)] for row in spelt]


def melody(row: Tensor) -> list[tuple[int, int, int]]:
    return [(note.start, note.end, note.pitch) for note in to_notes(row.numpy())]


def hits(row: Tensor) -> list[tuple[int, int, int]]:
    """Return the hits of each step's combination as (start, end, the first pitch of the drum in Magenta's table)."""
    pitches = (36, 38, 42, 46, 45, 48, 50, 49, 51)
    return [
        (step, step + 1, pitch)
        for step, token in enumerate(row.tolist())
        for bit, pitch in enumerate(pitches)
        if token >> bit & 1
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "model.pooling is max; .* only models with model.pooling final"),
        ({"encoder_layers": 2}, "model.encoder_layers is 2; .* only models with model.encoder_layers 1"),
        ({"bidirectional": False}, "model.bidirectional is false; .* model.bidirectional true"),
        ({"z_to_output": True}, "model.z_to_output is true; .* model.z_to_output false"),
    ],
    ids=str,
)
def test_what_magenta_music_cannot_run_is_named(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export_magenta(flat(**options), MelodyTokenizer(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_windows_of_several_lengths_have_no_converter_of_magenta_music(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="meter is any; @magenta/music runs models of windows of one length"):
        export_magenta(flat(), MelodyTokenizer(meter="any"), tmp_path)


def test_a_prior_that_magenta_music_does_not_draw_from_is_named(tmp_path: Path) -> None:
    vae = flat()
    vae.prior = MixtureOfGaussians(4, components=2)
    with pytest.raises(ValueError, match=r"prior is MixtureOfGaussians; .* only models with prior StandardNormal"):
        export_magenta(vae, MelodyTokenizer(), tmp_path)


def test_a_network_that_no_format_knows_is_named(tmp_path: Path) -> None:
    picture, tune = conv(image_shape=(1, 8, 8), levels=2, latent_dim=4), flat()
    odd = VAE(picture[0], tune.decoder, StandardNormal(4))
    with pytest.raises(ValueError, match="model is made of ConvEncoder and LSTMDecoder; @magenta/music runs the flat"):
        export_magenta(odd, MelodyTokenizer(), tmp_path)
    pytest.importorskip("onnxscript")
    with pytest.raises(ValueError, match="model is made of ConvEncoder and LSTMDecoder; --format onnx knows lstm and"):
        export_onnx(odd, MelodyTokenizer(), tmp_path)


@pytest.mark.parametrize(("name", "codec"), [("text", "SentencePieceTokenizer"), ("fashion", "PixelCodec")])
def test_what_is_no_music_is_refused_and_leaves_nothing(
    name: str, codec: str, get_run: GetRun, tmp_path: Path, capsys: Capture
) -> None:
    command = ["export", str(get_run(name).path), "--format", "magenta-js", "-o", str(tmp_path / "out")]
    assert main(command) == 2
    assert capsys.readouterr().err == (
        f"seqvae export: {codec}: @magenta/music has no data converter for its windows\n"
    )
    assert not list(tmp_path.iterdir())


def test_a_directory_that_holds_something_stays_as_it_is(get_run: GetRun, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine").write_text("precious")
    for place in (tmp_path, tmp_path / "mine"):
        command = ["export", str(get_run("melody").path), "--format", "magenta-js", "-o", str(place)]
        assert main(command) == 2
        assert capsys.readouterr().err == f"seqvae export: {place} is there already; name a new directory\n"
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "new" / "deep", tmp_path / "empty"):
        with pytest.raises(ValueError, match="half"):
            write_half(place)
        assert not place.exists() or not any(place.iterdir())
        with whole_folder(place) as folder:
            (folder / "part").write_text("whole")
            assert not (place / "part").exists()
        assert (place / "part").read_text() == "whole"
        assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match="is there already"), whole_folder(Path()):
        pass


def write_half(place: Path) -> None:
    with whole_folder(place) as folder:
        (folder / "part").write_text("half")
        raise ValueError("only half of it was written")


def test_onnx_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"--format onnx needs onnx and onnxscript: pip install 'seqvae\[onnx\]'"):
        export_onnx(flat(), MelodyTokenizer(), tmp_path)


class Exported:
    """A tiny run as ONNX files, beside its model."""

    def __init__(self, run: Run, folder: Path) -> None:
        ort = pytest.importorskip("onnxruntime")
        assert main(["export", str(run.path), "--format", "onnx", "-o", str(folder)]) == 0
        self.folder, self.vae, self.codec = folder, load(run.path).vae, load(run.path).codec
        self.sessions = {path.stem: ort.InferenceSession(path) for path in folder.glob("*.onnx")}
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())

    def run(self, name: str, *inputs: Tensor) -> list[NDArray[Any]]:
        """Return the outputs of a graph in the order that config.json has them in."""
        told = self.config["graphs"][name]
        fed = {key: value.numpy() for key, value in zip(told["inputs"], inputs, strict=True)}
        outputs: list[NDArray[Any]] = self.sessions[name].run(list(told["outputs"]), fed)
        return outputs


@pytest.fixture(scope="module")
def get_exported(get_run: GetRun, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    made: dict[str, Exported] = {}

    def get(name: str) -> Exported:
        if name not in made:
            made[name] = Exported(get_run(name), tmp_path_factory.mktemp("onnx") / name)
        return made[name]

    return get


GetExported = Callable[[str], Exported]


def same(outputs: list[NDArray[Any]], expected: tuple[Tensor, ...]) -> bool:
    return all(
        output.shape == tensor.shape and np.abs(output - tensor.detach().numpy()).max() < 1e-5
        for output, tensor in zip(outputs, expected, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["melody", "text"])
def test_onnx_graphs_of_sequences_give_the_models_answers(name: str, get_exported: GetExported) -> None:
    exported = get_exported(name)
    encoder, decoder = exported.vae.encoder, exported.vae.decoder
    for batch, time in ((1, 1), (1, 24), (2, 7), (5, 2)):
        x = windows(exported.codec.spec["vocab_size"], batch, time)
        posterior = encoder(x)
        assert same(exported.run("encoder", x), (posterior.mean, posterior.log_variance))
        z = torch.randn(batch, exported.vae.latent_dim)
        state = decoder.start(z)  # type: ignore[operator]
        assert same(exported.run("start", z), (state.hidden, state.cell))
        for token in (torch.full((batch,), -1), x[:, 0]):
            logits, after = decoder.step(token, state)  # type: ignore[operator]
            outputs = exported.run("step", token, state.hidden.detach(), state.cell.detach(), z)
            assert same(outputs, (logits, after.hidden, after.cell))
            assert not same(outputs, (logits, state.hidden, state.cell))
            state = after


@pytest.mark.slow
def test_onnx_graphs_of_pictures_give_the_models_answers(get_exported: GetExported) -> None:
    exported = get_exported("fashion")
    for batch in (1, 2, 5):
        pixels = torch.rand(batch, *exported.codec.spec["image_shape"])
        posterior = exported.vae.encoder(pixels)
        assert same(exported.run("encoder", pixels), (posterior.mean, posterior.log_variance))
        z = torch.randn(batch, exported.vae.latent_dim)
        assert same(exported.run("decoder", z), (exported.vae.decoder.sample(z),))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["melody", "text", "fashion"])
def test_an_onnx_export_brings_its_codec_and_nothing_of_this_machine(name: str, get_exported: GetExported) -> None:
    exported = get_exported(name)
    again = type(exported.codec).load(exported.folder)
    assert again.options == exported.codec.options
    assert exported.config.items() >= json.loads(json.dumps(exported.codec.spec)).items()
    assert sorted(exported.config["graphs"]) == sorted(exported.sessions)
    for path in exported.folder.glob("*.onnx"):
        content = path.read_bytes()
        for trace in (str(Path(__file__).parents[1]), "site-packages", ".py"):
            assert trace.encode() not in content


@pytest.mark.slow
@pytest.mark.parametrize("name", ["melody", "text"])
def test_the_documented_loop_spells_what_the_model_does(name: str, get_exported: GetExported) -> None:
    exported = get_exported(name)
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENTED.read_text(encoding="utf-8"), re.S)
    assert len(code.splitlines()) <= 18
    space: dict[str, Any] = {}
    exec(code, space)
    z = torch.randn(4, exported.vae.latent_dim, generator=torch.Generator().manual_seed(3))
    spelt = exported.vae.decoder.sample(z, strategy=Greedy())
    tokens = space["sample"](exported.folder, z.numpy(), temperature=1e-6)
    assert tokens.shape == (4, exported.codec.spec["max_length"])
    there = spelt.numpy() >= 0
    assert (tokens[:, : spelt.shape[1]] == spelt.numpy())[there].all()
    drawn = [space["sample"](exported.folder, z.numpy(), temperature=5.0, seed=seed) for seed in (0, 0, 1)]
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()
