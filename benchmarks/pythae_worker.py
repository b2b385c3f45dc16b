"""pythae's side of `benchmarks.pythae`: trains in an environment of its own, as a request there says.

python -m benchmarks.pythae_worker FOLDER
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from safetensors.torch import save_file
from torch import Tensor

from seqvae.harness.config import build


class Encoder(BaseEncoder):  # type: ignore[misc]
    """Our encoder as pythae calls one."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        posterior = self.network(x)
        return ModelOutput(embedding=posterior.mean, log_covariance=posterior.log_variance)


class Decoder(BaseDecoder):  # type: ignore[misc]
    """The network of our decoder as pythae calls one."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> Any:
        return ModelOutput(reconstruction=torch.sigmoid(self.network(z)))


class Trainer(BaseTrainer):  # type: ignore[misc]
    """pythae's trainer, which counts the seconds that it trains."""

    seconds = 0.0

    def train_step(self, epoch: int) -> Any:
        started = time.perf_counter()
        loss = super().train_step(epoch)
        self.seconds += time.perf_counter() - started
        return loss


def model(request: dict[str, Any]) -> VAE:
    """Return pythae's VAE of the networks that a request names."""
    torch.manual_seed(request["seed"])
    encoder, decoder = build(request["model"], **request["spec"])
    shape = tuple(request["spec"]["image_shape"])
    config = VAEConfig(input_dim=shape, latent_dim=encoder.latent_dim, reconstruction_loss="bce")
    return VAE(config, Encoder(encoder), Decoder(decoder))


def train(folder: Path) -> None:
    """Train as the request says; leave the weights by our names, and the speed."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    with np.load(folder / "pixels.npz") as pixels:
        splits = {name: torch.from_numpy(pixels[name]) for name in ("train", "valid")}
    sets = {name: BaseDataset(x, torch.zeros(len(x))) for name, x in splits.items()}
    trainer = Trainer(
        model=model(request),
        train_dataset=sets["train"],
        eval_dataset=sets["valid"],
        training_config=BaseTrainerConfig(
            output_dir=str(folder / "theirs"),
            per_device_train_batch_size=request["batch_size"],
            per_device_eval_batch_size=request["batch_size"],
            num_epochs=request["epochs"],
            learning_rate=request["lr"],
            optimizer_cls="Adam",
            seed=request["seed"],
            no_cuda=True,
        ),
    )
    seconds = time.process_time()
    trainer.train()
    seconds = time.process_time() - seconds
    weights = {
        name.replace(".network.", ".", 1): tensor.contiguous()
        for name, tensor in trainer._best_model.state_dict().items()
    }
    save_file(weights, folder / "theirs.safetensors")
    seen = request["epochs"] * len(sets["train"])
    speeds = {"images/s": seen / trainer.seconds, "images a CPU second": seen / seconds}
    (folder / "theirs.json").write_text(json.dumps(speeds), encoding="utf-8")


if __name__ == "__main__":
    train(Path(sys.argv[1]))
