"""The decoder without a latent: an exact language model, and what cannot be asked of it."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from seqvae.cli import main
from seqvae.evaluation import importance_weighted_bound
from seqvae.models import lstm
from seqvae.priors import StandardNormal
from seqvae.vae import VAE
from tests.helpers.worlds import Run, World, configuration, train_tiny

GetWorld = Callable[[str], World]
Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("tied", [True, False])
def test_elbo_bound_and_log_likelihood_are_one_number_and_sum_to_one(tied: bool) -> None:
    torch.manual_seed(0)
    facts: dict[str, Any] = {"vocab_size": 4, "max_length": 4, "end_id": 1, "unk_id": 0}
    parts = lstm(**facts, embedding_dim=5, hidden_dim=6, num_layers=2, tie_embeddings=tied, language_model=True)
    vae = VAE(*parts, StandardNormal(0)).double().eval()
    rows = [torch.tensor([*words, 1]) for n in range(4) for words in itertools.product((0, 2, 3), repeat=n)]
    x = pad_sequence(rows, batch_first=True, padding_value=-1)
    with torch.no_grad():
        exact = torch.stack([one_token_at_a_time(vae, row) for row in rows])
        terms = vae.terms(x, samples=3)
        bound = importance_weighted_bound(vae, x, samples=7)
    torch.testing.assert_close(terms.elbo, exact)
    torch.testing.assert_close(bound.log_prob, exact)
    assert not terms.total_kl.any()
    assert exact.exp().sum().item() == pytest.approx(1.0, abs=1e-12)


def one_token_at_a_time(vae: VAE, row: torch.Tensor) -> torch.Tensor:
    """Return log p of a sequence as the product of p of each token given those before it."""
    decoder = vae.decoder
    state, token, total = decoder.start(torch.zeros(1, 0).double()), torch.tensor([-1]), torch.zeros(()).double()  # type: ignore[operator]
    for place, following in enumerate(row):
        logits, state = decoder.step(token, state)  # type: ignore[operator]
        if place < 3:  # at the greatest length the end is certain
            total = total + logits.log_softmax(-1)[0, following]
        token = following.unsqueeze(0)
    return total


@pytest.fixture(scope="module")
def model(get_world: GetWorld, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny language model, trained on sentences."""
    return train_tiny(get_world("text"), tmp_path_factory.mktemp("model") / "run", "model.language_model=true")


LATENT = {
    "encode": ["{a}", "-o", "z.npy"],
    "reconstruct": ["{a}", "-o", "-"],
    "interpolate": ["{a}", "{b}", "-o", "-"],
    "attribute": ["--with", "{a}", "--without", "{b}", "-o", "v.safetensors"],
    "edit": ["{a}", "--attribute", "v.safetensors"],
    "similar": ["{a}"],
    "neighbors": ["{a}"],
}


@pytest.mark.parametrize("command", LATENT)
def test_a_command_that_needs_a_latent_says_so_in_one_line(
    command: str, model: Run, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    a, b = model.world.inputs
    assert main([command, str(model.path), *(word.format(a=a, b=b) for word in LATENT[command])]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"seqvae {command}: {model.path} is a language model, without a latent to {command} with; "
        "sample and evaluate take it"
    )
    assert not list(tmp_path.iterdir())


def test_a_language_model_is_sampled_and_evaluated(model: Run, tmp_path: Path, capsys: Capture) -> None:
    assert main(["sample", str(model.path), "-n", "3", "-o", str(tmp_path / "out.txt")]) == 0
    assert main(["info", str(model.path)]) == 0
    capsys.readouterr()
    arguments = ["--importance-samples", "3", "--scores", str(tmp_path / "scores"), "--json"]
    assert main(["evaluate", str(model.path), *arguments]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["nll"] == pytest.approx(-metrics["elbo"], rel=1e-6)
    assert metrics["kl"] == metrics["mutual_information"] == metrics["active_units"] == metrics["latent_dim"] == 0
    assert not list((model.path / "tensorboard").rglob("*tensors.tsv"))  # there is nothing to project


@pytest.mark.parametrize(("objective", "name"), [("target_rate", "target_rate"), ("capacity", "capacity")])
def test_an_objective_that_holds_a_rate_is_refused_before_the_run_begins(
    objective: str, name: str, get_world: GetWorld, tmp_path: Path, capsys: Capture
) -> None:
    overrides = [*get_world("text").overrides, "debug=smoke", "model=lstm_lm", f"objective={objective}"]
    assert main(["train", *overrides, f"run_dir={tmp_path / 'run'}"]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("seqvae train:"))
    assert line == (
        f"seqvae train: {name} holds a rate, and a language model has no latent to hold it with; use beta_elbo"
    )
    assert not (tmp_path / "run").exists()


def test_the_language_model_of_an_experiment_is_one_override() -> None:
    assert configuration(["experiment=text", "model=lstm_lm"]).model.language_model
