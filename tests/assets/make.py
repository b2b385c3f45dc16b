"""Make the tiny checkpoints of format 1 that must load for ever, and write down what they answer.

    python -m tests.assets.make DIRECTORY

made tests/assets/format-1, once, and is kept to show how. What is there is never made again: a later format gets a
directory of its own beside it.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from seqvae.data.dataset import WindowDataset
from seqvae.data.text import prepare_text
from seqvae.harness.checkpoint import resolve
from seqvae.harness.config import Trained, load
from tests.helpers.damage import replace, rewrite
from tests.helpers.worlds import OBJECTS, SUBJECTS, VERBS, WORLDS, World, train_tiny

OVERRIDES = {
    "melody": ("latent_dim=2", "embedding_dim=3", "encoder_hidden_dim=4", "hidden_dim=6", "num_layers=1"),
    "text": ("latent_dim=2", "embedding_dim=4", "encoder_hidden_dim=4", "hidden_dim=6", "tie_embeddings=true"),
    "fashion": ("latent_dim=2", "width=2", "stages=2", "features=4"),
}
TRAINING = ("trainer.max_steps=800", "trainer.valid_every=800", "trainer.save_every=800", "optimizer.lr=0.03")
FREE = ("objective.beta.start=0", "objective.beta.end=0", "objective.free_nats=0")  # so that z tells windows apart


def small_text_world(folder: Path) -> World:
    """Make a dataset whose tokenizer takes half a kilobyte: without the tables that normalise Unicode."""
    folder.mkdir()
    sentences = [f"{subject} {verb} {thing}" for subject in SUBJECTS for verb in VERBS for thing in OBJECTS]
    (folder / "sentences.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    prepare_text(folder / "sentences.txt", folder / "data", vocab_size=40, max_length=24, normalization="identity")
    return World("text", folder / "data", (sentences[0], sentences[1]), "@nowhere")


def answers(trained: Trained, windows: list[Tensor]) -> dict[str, list[object]]:
    """Return what a checkpoint answers for windows: posteriors, log p(x|z) and the most likely x at their means."""
    rows = []
    with torch.no_grad():
        for window in windows:
            posterior = trained.vae.encoder(window[None])
            log_likelihood = trained.vae.decoder.log_prob(window[None], posterior.mean)
            greedy = trained.vae.decoder.sample(posterior.mean)
            rows.append(
                [tensor[0].tolist() for tensor in (posterior.mean, posterior.log_variance, log_likelihood, greedy)]
            )
    names = ("means", "log_variances", "log_likelihoods", "greedy")
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def slim(path: Path, name: str) -> None:
    """Leave out the optimizer's moments, which no answer needs, and the paths of the machine it was made on."""
    rewrite(path, lambda config: config["data"].update(root=f"data/{name}"))
    tensors = load_file(path / "training.safetensors")
    kept = {key: tensor for key, tensor in tensors.items() if key.startswith("rng.")}
    replace(path, "training.safetensors", save(kept))


def main(target: Path) -> None:
    for name, sizes in OVERRIDES.items():
        with tempfile.TemporaryDirectory() as folder:
            world = {**WORLDS, "text": small_text_world}[name](Path(folder) / "world")
            run = train_tiny(world, Path(folder) / "run", *(f"model.{size}" for size in sizes), *TRAINING, *FREE)
            path = Path(shutil.copytree(resolve(f"{run.path}@last"), target / name))
            slim(path, name)
            dataset = WindowDataset(world.root, "test")
            windows = [dataset[index] for index in (0, len(dataset) // 2, len(dataset) - 1)]
            windows = [(window > 127).byte() if name == "fashion" else window for window in windows]
            content = {"windows": [window.tolist() for window in windows], **answers(load(path), windows)}
            (target / f"{name}.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
