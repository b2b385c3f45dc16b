"""`seqvae plot`, its figures and what TensorBoard shows of latents: what is drawn is what was computed."""

import builtins
import io
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from seqvae import latent
from seqvae.cli import main
from seqvae.data.batching import valid_loader
from seqvae.data.captions import MARGIN, SIZE, caption, labelled
from seqvae.data.codec import Preview
from seqvae.data.dataset import WindowDataset, read_manifest
from seqvae.data.image import write_gif
from seqvae.evaluation import Use, mean_kl_by_dimension
from seqvae.gaussian import DiagonalGaussian
from seqvae.harness import plots
from seqvae.harness.aggregate import read_aggregate
from seqvae.harness.config import load
from seqvae.priors import StandardNormal
from seqvae.traversals import largest, quantile_grid, traverse
from tests.helpers.commands import ok, refused
from tests.helpers.worlds import Run, World, train_tiny

GetRun = Callable[[str], Run]
GetWorld = Callable[[str], World]
Capture = pytest.CaptureFixture[str]
ENDING = {"melody": ".png", "fashion": ".png", "text": ".txt"}


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def picture(path: str | Path | io.BytesIO) -> Any:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    monkeypatch.setattr(builtins, "__import__", absent)


@pytest.mark.usefixtures("no_matplotlib")
@pytest.mark.parametrize("kind", ["reconstructions", "samples", "manifold", "traversals"])
def test_grids_of_items_are_drawn_in_every_modality_without_matplotlib(kind: str, run: Run) -> None:
    path = Path(f"view{ENDING[run.world.experiment]}")
    ok("plot", run.path, kind, "-n", 2, "-o", path)
    count = {"reconstructions": 4, "samples": 2, "manifold": 4, "traversals": 14}[kind]
    if path.suffix == ".txt":
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) == count
        assert all("\t" in line for line in lines)
    else:
        assert min(picture(path).shape[:2]) > 50


@pytest.mark.parametrize("law", ["prior", "aggregate"])
def test_the_manifold_is_the_preview_of_the_decoded_quantiles(law: str, get_run: GetRun) -> None:
    run = get_run("fashion")
    ok("plot", run.path, "manifold", "-n", 3, "--from", law, "-o", "m.png")
    trained = load(run.path)
    test = WindowDataset(run.world.root, "test")
    posterior = latent.posterior(trained.vae, trained.codec, [test[place] for place in range(len(test))])
    prior, aggregate = trained.vae.prior(trained.vae.encoder), read_aggregate(trained)
    assert aggregate is not None
    first, second = largest(mean_kl_by_dimension(posterior, prior), 2)
    z = quantile_grid(prior if law == "prior" else aggregate, (first, second), 3)
    expected = trained.codec.preview([trained.codec.join([window]) for window in latent.decode(trained.vae, z)], 3)
    np.testing.assert_array_equal(picture("m.png"), expected.image)


@pytest.mark.parametrize("law", ["prior", "aggregate"])
def test_traversals_start_from_an_input_and_have_the_largest_kl_on_top(law: str, get_run: GetRun) -> None:
    run = get_run("fashion")
    arguments = ("--inputs", run.world.inputs[0], "--from", law, "--range", -2, 1, "--steps", 4)
    ok("plot", run.path, "traversals", "-n", 2, *arguments, "-o", "t.png")
    trained = load(run.path)
    codec, vae = trained.codec, trained.vae
    test = WindowDataset(run.world.root, "test")
    kl = latent.posterior(vae, codec, [test[place] for place in range(len(test))]).kl_to_standard_normal().mean(0)
    centre = latent.encode(vae, codec, codec.windows(codec.read(run.world.inputs[0])[0]))[0]
    reach = vae.prior(vae.encoder) if law == "prior" else read_aggregate(trained)
    assert reach is not None
    windows = latent.decode(vae, traverse(reach, centre, largest(kl, 2), [-2.0, -1.0, 0.0, 1.0]))
    expected = codec.preview([codec.join([window]) for window in windows], 4).image
    assert expected is not None
    drawn = picture("t.png")
    np.testing.assert_array_equal(drawn[-expected.shape[0] :, -expected.shape[1] :], expected)
    assert (drawn[: SIZE + MARGIN].min(), drawn[:, :20].min()) < (128, 128)  # words


def test_reconstructions_stand_below_their_originals(get_run: GetRun) -> None:
    run = get_run("fashion")
    inputs = [*run.world.inputs, "test:0"]
    ok("plot", run.path, "reconstructions", "--inputs", *inputs, "-o", "r.png")
    ok("reconstruct", run.path, *inputs, "-o", "out")
    np.testing.assert_array_equal(picture("r.png"), picture("out/reconstruction.png"))


def test_samples_of_text_are_those_that_sample_draws(get_run: GetRun, capsys: Capture) -> None:
    run = get_run("text")
    ok("sample", run.path, "-n", 3, "--seed", 5)
    drawn = capsys.readouterr().out.splitlines()
    ok("plot", run.path, "samples", "-n", 3, "--seed", 5)
    shown = capsys.readouterr().out.splitlines()
    assert [line.partition("\t")[2] for line in shown] == drawn


def test_below_each_sample_are_the_training_pictures_nearest_in_pixels(
    get_run: GetRun, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = get_run("fashion")
    codec, train = load(run.path).codec, WindowDataset(run.world.root, "train")
    ok("sample", run.path, "-n", 3, "--seed", 5, "-o", "out")
    samples = [codec.read(str(path))[0] for path in sorted(Path("out").glob("sample-*.png"))]
    known = np.stack([codec.join([train[place]]) for place in range(len(train))])
    order = [((known - sample.astype(float)) ** 2).sum((1, 2, 3)).argsort() for sample in samples]
    ok("plot", run.path, "nearest", "-n", 3, "-k", 2, "--seed", 5, "-o", "n.png")
    below = [known[places[rank]] for rank in range(2) for places in order]
    np.testing.assert_array_equal(picture("n.png"), codec.preview([*samples, *below], 3).image)
    (told,) = (message for message in caplog.messages if "median: " in message)
    pairs = zip(samples, order, strict=True)
    distance = [np.sqrt(((one - known[places[0]].astype(float)) ** 2).mean()) for one, places in pairs]
    assert f"samples {np.median(distance) / 255:.3f}" in told


def test_a_page_of_melodies_names_the_dimension_and_its_value(get_run: GetRun) -> None:
    ok("plot", get_run("melody").path, "traversals", "-n", 1, "--steps", 2, "-o", "t.html")
    page = Path("t.html").read_text(encoding="utf-8")
    assert ": -3" in page
    assert ": +3" in page


def test_a_scatter_takes_several_checkpoints(get_run: GetRun) -> None:
    pytest.importorskip("matplotlib")
    run = get_run("fashion")
    ok("plot", run.path, "scatter", "-o", "one.png")
    ok("plot", run.path, f"{run.path}@last", "scatter", "--principal", "-o", "two.png")
    assert picture("two.png").shape[1] > 1.5 * picture("one.png").shape[1]


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> list[plots.Cloud]:
    """What scatters have shown, those of trainings among them."""
    pytest.importorskip("matplotlib")
    shown: list[plots.Cloud] = []
    draw = plots.scatter

    def watched(clouds: Any, names: Any) -> Any:
        shown.extend(clouds)
        return draw(clouds, names)

    monkeypatch.setattr(plots, "scatter", watched)
    return shown


def test_the_panels_of_a_scatter_are_named_apart_and_share_their_labels(
    get_run: GetRun, panels: list[plots.Cloud], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    path = get_run("fashion").path
    ok("plot", f"{path}@best", f"{path}@last", "scatter", "-n", 1, "--principal", "-o", "x.png")
    assert [panel.title for panel in panels[-2:]] == [f"{path.name}@best", f"{path.name}@last"]
    calls = itertools.count()

    def named_anew(root: Path) -> dict[str, Any]:
        manifest = read_manifest(root)
        return {**manifest, "options": {**manifest["options"], "label_names": [f"name {next(calls)}"]}}

    monkeypatch.setattr("seqvae.data.dataset.read_manifest", named_anew)
    assert "has other labels than" in refused(capsys, "plot", path, f"{path}@last", "scatter", "-o", "y.png")


def test_a_scatter_puts_an_autoencoder_beside_a_vae(get_run: GetRun, panels: list[plots.Cloud], tmp_path: Path) -> None:
    vae = get_run("fashion")
    autoencoder = train_tiny(vae.world, tmp_path / "autoencoder", "objective=autoencoder", "~objective.beta")
    ok("plot", vae.path, autoencoder.path, "scatter", "-o", "x.png")
    test = WindowDataset(vae.world.root, "test")
    windows = [test[place] for place in range(len(test))]
    for panel, run in zip(panels[-2:], (vae, autoencoder), strict=True):
        trained = load(run.path)
        assert panel.title == run.path.name
        torch.testing.assert_close(panel.points, latent.encode(trained.vae, trained.codec, windows) @ panel.axes)
        assert panel.labels is not None
        assert panel.labels.tolist() == test.column("label").tolist()


def test_figures_are_drawn_in_every_modality(run: Run) -> None:
    pytest.importorskip("matplotlib")
    for kind in ("scatter", "prior"):
        ok("plot", run.path, kind, "-n", 5, "-o", f"{kind}.png")
        assert min(picture(f"{kind}.png").shape[:2]) > 200


def test_every_point_of_a_scatter_is_drawn_in_the_colour_of_its_label() -> None:
    to_rgb = pytest.importorskip("matplotlib.colors").to_rgb
    means, labels = 5 * torch.randn(60, 4), torch.arange(60) % 3 - 1
    prior = StandardNormal(4)(nn.Identity())
    cloud = plots.cloud("title", means, labels, Use(torch.tensor([0.0, 2.0, 1.0, 5.0])), prior)
    figure = plots.scatter([cloud], ["a", "b"])
    (axes,) = figure.axes
    dots: Any = axes.collections[-1]
    points, colours = np.asarray(dots.get_offsets()), dots.get_facecolor()
    legend: Any = figure.legends[0]
    inks = ["lightgrey", *(handle.get_color() for handle in legend.legend_handles)]
    places = np.abs(points[:, None] - means[:, [3, 1]].numpy()).sum(2).argmin(1)
    np.testing.assert_allclose(points, means[places][:, [3, 1]].numpy(), rtol=1e-6)
    for label, ink in zip((-1, 0, 1), inks, strict=True):
        np.testing.assert_allclose(colours[labels[places] == label, :3], np.tile(to_rgb(ink), (20, 1)))
    assert sorted(places) == [*range(60)] != [*places]
    assert len({*labels[places][-9:].tolist()}) > 1  # no label lies above all others
    assert axes.get_xlabel() == "z3, KL 5.00 nats"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    assert right - left == pytest.approx(high - low)
    assert plots.pixels(figure).shape[2] == 3


def test_a_label_has_one_colour_of_its_own_in_every_panel() -> None:
    pytest.importorskip("matplotlib")
    prior = StandardNormal(2)(nn.Identity())
    panels = [[0, 3], [3, 20], [20, -1]]
    clouds = [plots.cloud("", torch.randn(2, 2), torch.tensor(labels), Use(torch.ones(2)), prior) for labels in panels]
    colours: dict[int, set[tuple[float, ...]]] = {}
    for axes, one, labels in zip(plots.scatter(clouds).axes, clouds, panels, strict=True):
        dots: Any = axes.collections[-1]
        for point, colour in zip(np.asarray(dots.get_offsets()), dots.get_facecolor(), strict=True):
            place = int(np.abs(one.points.numpy() - point).sum(1).argmin())
            colours.setdefault(labels[place], set()).add(tuple(colour))
    assert all(len(seen) == 1 for seen in colours.values())
    assert len(set.union(*colours.values())) == 4


def test_contours_of_a_normal_prior_are_circles_of_radius_one_two_and_three() -> None:
    pytest.importorskip("matplotlib")
    prior = StandardNormal(2)(nn.Identity())
    figure = plots.scatter([plots.cloud("", torch.randn(50, 2), None, Use(torch.ones(2)), prior)])
    paths = figure.axes[0].collections[0].get_paths()
    radii = [np.linalg.norm(path.vertices, axis=1) for path in paths]
    assert [round(float(radius.mean()), 1) for radius in radii] == [3.0, 2.0, 1.0]
    assert all(radius.std() < 0.02 for radius in radii)


def test_histograms_are_those_of_means_and_draws_over_the_priors_density() -> None:
    pytest.importorskip("matplotlib")
    prior, use = StandardNormal(8)(nn.Identity()), Use(torch.arange(8.0))
    q = DiagonalGaussian(torch.randn(500, 8), torch.full((500, 8), -1.0))
    figure = plots.against_prior(q, use, prior, generator=torch.Generator().manual_seed(0))
    titles = [axes.get_title() for axes in figure.axes]
    assert [title.partition(",")[0] for title in titles] == ["z7", "z6", "z5", "z2", "z1", "z0", "|z|"]
    axes = figure.axes[0]
    edges, density = axes.lines[0].get_data()
    np.testing.assert_allclose(density, np.exp(-0.5 * edges**2) / np.sqrt(2 * np.pi), rtol=1e-4)
    heights, _ = np.histogram(q.mean[:, 7].numpy(), edges, density=True)
    bars: Any = axes.patches[: len(heights)]
    np.testing.assert_allclose([bar.get_height() for bar in bars], heights, rtol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_histograms_of_a_single_window_hold_it(seed: int) -> None:
    pytest.importorskip("matplotlib")
    generator = torch.Generator().manual_seed(seed)
    q = DiagonalGaussian(torch.randn(1, 1, generator=generator), torch.zeros(1, 1))
    figure = plots.against_prior(q, Use(torch.ones(1)), StandardNormal(1)(nn.Identity()), generator=generator)
    bars: Any = figure.axes[0].patches[:-1]  # the last is the outline of draws
    assert sum(bar.get_height() > 0 for bar in bars) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["samples", "--principal", "-o", "x.png"], "--principal is for scatter, not for samples"),
        (["prior", "--top-k", "3", "-o", "x.png"], "--top-k is for "),
        (["scatter", "--from", "aggregate", "-o", "x.png"], "--from is for samples and nearest and manifold and trav"),
        (["samples", "-n", "0", "-o", "x.png"], "n must be positive, got 0"),
        (["nearest", "-k", "0", "-o", "x.png"], "k must be between 1 and the "),
        (["samples"], "-o FILE.png is needed, got nothing"),
        (["samples", "-n", "1", "-o", "x.jpg"], "-o FILE.png is needed, got x.jpg"),
        (["traversals", "-n", "1", "-o", "x.html"], "-o FILE.png is needed, got x.html"),
        (["scatter", "-o", "x.jpg"], "-o FILE.png is needed, got x.jpg"),
        (["scatter", "--seed", "-1", "-o", "x.png"], "seed must be from 0 to "),
        (["traversals", "--range", "1", "1", "-o", "x.png"], "range must go from a number to a larger one"),
        (["traversals", "--range", "0", "7", "-o", "x.png"], "a larger one, between -6 and 6, got 0 7"),
        (["traversals", "--steps", "1", "-o", "x.png"], "steps must be at least 2 (both ends count), got 1"),
        (["traversals", "--inputs", "test:0", "test:1", "-o", "x.png"], "traversals are about one INPUT, got 2"),
        (["reconstructions", "--inputs", "test:0", "--split", "test", "-o", "x.png"], "leave out --split"),
        (["traversals", "--data", "nowhere", "-o", "x.png"], "the dataset is not at nowhere"),
    ],
)
def test_a_mistake_with_plots_is_one_line(arguments: list[str], message: str, get_run: GetRun, capsys: Capture) -> None:
    assert message in refused(capsys, "plot", get_run("fashion").path, *arguments)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("kind", ["reconstructions", "samples", "manifold", "traversals"])
def test_a_file_that_is_no_view_of_the_items_is_refused_before_anything_is_encoded_or_decoded(
    kind: str, get_run: GetRun, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("this is work")

    for name in ("decode", "encode", "posterior", "reconstruct", "stream"):
        monkeypatch.setattr(latent, name, work)
    path = get_run("melody").path
    error = refused(capsys, "plot", path, kind, "-o", "x.txt")
    assert "-o FILE.png or FILE.html or FILE.abc is needed, got x.txt" in error
    with pytest.raises(AssertionError, match="this is work"):  # another file would have come to it
        main(["plot", str(path), kind, "-o", "x.abc"])


def test_rows_that_the_model_cannot_have_are_told(get_run: GetRun, caplog: pytest.LogCaptureFixture) -> None:
    run = get_run("fashion")
    for asked, told in ((4, []), (5, ["all 4 dimensions are drawn: the model has no more"])):
        caplog.clear()
        with caplog.at_level("INFO", "seqvae.cli.plot"):
            ok("plot", run.path, "traversals", "-n", asked, "--steps", 2, "-o", "t.png")
        assert caplog.messages == told


def test_a_split_says_nothing_of_a_manifold_of_two_dimensions(
    get_world: GetWorld, tmp_path: Path, capsys: Capture
) -> None:
    path = train_tiny(get_world("fashion"), tmp_path / "run", "model.latent_dim=2").path
    error = refused(capsys, "plot", path, "manifold", "--split", "test", "-o", "m.png")
    assert "--split is for a manifold of more than two dimensions, this model has 2" in error
    ok("plot", path, "manifold", "-n", 2, "-o", "m.png")


def test_pictures_of_sentences_and_of_several_checkpoints_are_refused(get_run: GetRun, capsys: Capture) -> None:
    path = get_run("text").path
    assert "sentences are lines of text" in refused(capsys, "plot", path, "samples", "-o", "x.png")
    assert "nearest compares pixels" in refused(capsys, "plot", path, "nearest", "-o", "x.png")
    assert "samples shows one checkpoint, got 2" in refused(capsys, "plot", path, path, "samples")


@pytest.mark.usefixtures("no_matplotlib")
def test_a_figure_without_matplotlib_says_how_to_get_it(get_run: GetRun, capsys: Capture) -> None:
    for kind in ("scatter", "prior"):
        error = refused(capsys, "plot", get_run("fashion").path, kind, "-o", "x.png")
        assert 'pip install "seqvae[plots]"' in error


def test_words_stand_beside_an_unchanged_picture() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    np.testing.assert_array_equal(caption(image), image)
    drawn = caption(image, ["one", "a longer one"], ["x", "y", "z"])
    np.testing.assert_array_equal(drawn[-60:, -90:], image)
    left = drawn[-60:, :-90].min(axis=(1, 2)) < 128  # rows of pixels that have ink
    assert left[10:20].any()
    assert left[40:50].any()
    assert not left[25:35].any()
    assert labelled(Preview(text="p\x0bs\nq"), ["r"], ["1", "2"]).text == "r: 1  p\x0bs\nr: 2  q"


def test_an_animation_goes_there_and_back(tmp_path: Path) -> None:
    frames = [np.full((8, 8, 1), value, np.uint8) for value in (0, 100, 200)]
    write_gif(tmp_path / "a.gif", frames, 0.25)
    with Image.open(tmp_path / "a.gif") as shown:
        seen, times = [], []
        for frame in ImageSequence.Iterator(shown):
            seen.append(int(np.asarray(frame.convert("L"))[0, 0]))
            times.append(frame.info["duration"])
        assert shown.info["loop"] == 0
    assert seen == [0, 100, 200, 100]
    assert times == [250] * 4
    write_gif(tmp_path / "one.gif", frames[:1], 0.25)
    assert (picture(tmp_path / "one.gif") == 0).all()


def test_an_interpolation_of_pictures_is_one_strip_however_long(get_run: GetRun) -> None:
    run = get_run("fashion")
    ok("interpolate", run.path, *run.world.inputs, "--steps", 20, "-o", "out")
    height, width, _ = picture("out/interpolation.png").shape
    assert width > 21 * height


def test_an_interpolation_of_pictures_can_be_animated(get_run: GetRun, capsys: Capture) -> None:
    run = get_run("fashion")
    ok("interpolate", run.path, *run.world.inputs, "--steps", 5, "--gif", "--duration", 0.1, "-o", "out")
    with Image.open("out/interpolation.gif") as shown, Image.open("out/interpolation-1.png") as first:
        frame = np.asarray(shown.convert("L").resize(first.size, Image.Resampling.NEAREST))
        np.testing.assert_array_equal(frame, np.asarray(first))
    shutil.rmtree("out")
    for arguments, message in (
        (["--gif", "--duration", "0"], "duration must be between 0.02 and 60.0 seconds, got 0.0"),
        (["--duration", "1"], "--duration is for --gif"),
    ):
        assert message in refused(capsys, "interpolate", run.path, *run.world.inputs, *arguments, "-o", "out")
    ends = (*run.world.inputs, *run.world.inputs)
    assert "leave out --grid" in refused(capsys, "interpolate", run.path, *ends, "--grid", "2x2", "--gif", "-o", "out")
    melody = get_run("melody")
    error = refused(capsys, "interpolate", melody.path, *melody.world.inputs, "--gif", "-o", "out")
    assert "only pictures can be animated" in error
    assert not Path("out").exists()


def events(run_dir: Path) -> EventAccumulator:
    found = EventAccumulator(str(run_dir / "tensorboard"))
    found.Reload()
    return found


def tags(run_dir: Path) -> Any:
    return events(run_dir).Tags()


def test_tensorboard_shows_latents_in_every_modality(run: Run) -> None:
    pytest.importorskip("matplotlib")
    found = tags(run.path)
    for name in ("traversal", "interpolation"):
        if run.world.experiment == "text":
            assert f"valid/{name}_text/text_summary" in found["tensors"]
        else:
            assert f"valid/{name}" in found["images"]
    assert {"valid/prior", "valid/latents"} <= {*found["images"]}
    assert not {"valid/traversal_audio", "valid/interpolation_audio"} & {*found["audio"]}
    assert "valid/kl_per_dimension" in found["histograms"]


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_tensorboard_shows_an_interpolation_and_the_manifold_of_two_dimensions(
    latent_dim: int, get_world: GetWorld, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    run = train_tiny(get_world("fashion"), tmp_path / "run", f"model.latent_dim={latent_dim}")
    found = tags(run.path)["images"]
    assert "valid/prior" in found
    assert ("valid/manifold" in found) == ("valid/latents" in found) == (latent_dim == 2)
    trained, valid = load(f"{run.path}@last"), WindowDataset(run.world.root, "valid")
    (batch,) = valid_loader(valid, trained.codec, batch_size=len(valid))
    with torch.no_grad():
        a, *_, b = trained.vae.encoder(batch.x[batch.index.argsort()]).mean[: len(valid) // 2 + 1]
    expected = {"interpolation": (latent.interpolation.path(a, b, 8), 8)}
    if latent_dim == 2:
        expected["manifold"] = quantile_grid(trained.vae.prior(trained.vae.encoder), (0, 1), 10), 10
    for name, (z, columns) in expected.items():
        items = [trained.codec.join([window]) for window in latent.decode(trained.vae, z)]
        drawn = picture(io.BytesIO(events(run.path).Images(f"valid/{name}")[-1].encoded_image_string))
        np.testing.assert_array_equal(drawn, trained.codec.preview(items, columns).image)


@pytest.mark.usefixtures("no_matplotlib")
def test_a_training_without_matplotlib_shows_everything_else(get_world: GetWorld, tmp_path: Path) -> None:
    path = train_tiny(get_world("fashion"), tmp_path / "run", "prior=vamp", "prior.components=3").path
    found = tags(path)
    assert "valid/traversal" in found["images"]
    assert "valid/latents" not in found["images"]
    assert "valid/kl_per_dimension" in found["histograms"]  # of a prior without a closed form, too
