"""How fast a text VAE trains and samples, beside the same model written plainly and the machine's peak.

    python -m benchmarks.text_speed                      about two minutes
    python -m benchmarks.text_speed --checkpoint RUN     sampling from a trained text VAE

The model has the size that papers use for Penn Treebank: embedding and hidden 256, latent 32, 10,000 words, an untied
softmax, batches of 32. Both see the same sentences, of 12 to 30 tokens: seqvae in batches of equal length, the plain
one, with PyTorch's defaults, in the same and in random ones. All rows take turns step by step, and the peak of a matrix
product is measured among them; the share is 2 x 3 x the multiply-adds of a token's forward pass, times tokens/s, over
the peak.
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks import cli
from benchmarks.speed import forward_multiply_adds
from benchmarks.timing import OPTIMIZER, sampling_speeds, training_step, where_time_goes
from seqvae.data import SentencePieceTokenizer
from seqvae.data.batching import BatchOrder, stack
from seqvae.harness.machine import gemm_peak
from seqvae.models import lstm
from seqvae.models.decoding import Temperature
from seqvae.objectives import BetaELBO
from seqvae.priors import StandardNormal
from seqvae.schedules import Constant
from seqvae.vae import VAE

VOCAB, EMBEDDING, HIDDEN, LATENT, BATCH = 10_000, 256, 256, 32, 32
LENGTHS = (12, 30)  # of the sentences, 21 on average
MAX_LENGTH = 60
CLIP_NORM = 5.0
SAMPLED = 21  # tokens of each sentence that an untrained model writes
PROFILED = 5  # steps

PARTS = {
    "matrix products": ("mm", "addmm", "addmm_", "addmv", "addmv_", "bmm"),
    "LSTM layers": ("mkldnn_rnn_layer", "mkldnn_rnn_layer_backward"),
    **OPTIMIZER,
    "passes over logits": ("exp_", "sub_", "div_", "amax", "logsumexp", "_log_softmax", "_log_softmax_backward_data"),
}
"""What a step's operators are for."""


class Plain(nn.Module):
    """The model as tutorials write it: pad, pack, cross_entropy. Its mathematics is that of `seqvae.models.lstm`."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder_embedding = nn.Embedding(VOCAB + 1, EMBEDDING, padding_idx=VOCAB)
        self.encoder = nn.LSTM(EMBEDDING, HIDDEN, batch_first=True)
        self.mean, self.log_variance = nn.Linear(HIDDEN, LATENT), nn.Linear(HIDDEN, LATENT)
        self.decoder_embedding = nn.Embedding(VOCAB + 1, EMBEDDING, padding_idx=VOCAB)
        self.initial_state = nn.Linear(LATENT, 2 * HIDDEN)
        self.decoder = nn.LSTM(EMBEDDING + LATENT, HIDDEN, batch_first=True)
        self.output = nn.Linear(HIDDEN, VOCAB)

    def forward(self, x: Tensor) -> Tensor:
        lengths = (x >= 0).sum(1)
        tokens = x.masked_fill(x < 0, VOCAB)
        packed = pack_padded_sequence(self.encoder_embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
        _, (final, _) = self.encoder(packed)
        mean, log_variance = self.mean(final[-1]), 8 * torch.tanh(self.log_variance(final[-1]) / 8)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        cell, hidden = torch.tanh(self.initial_state(z)).unsqueeze(0).chunk(2, dim=-1)
        past = self.decoder_embedding(F.pad(tokens[:, :-1], (1, 0), value=VOCAB))
        inputs = torch.cat([past, z.unsqueeze(1).expand(-1, x.shape[1], -1)], dim=-1)
        packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
        outputs, _ = self.decoder(packed, (hidden.contiguous(), cell.contiguous()))
        logits = self.output(pad_packed_sequence(outputs, batch_first=True)[0])
        nats = F.cross_entropy(logits.flatten(0, 1), x.flatten(), ignore_index=-1, reduction="sum")
        kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum()
        loss: Tensor = (nats + kl) / len(x)
        return loss


def model(max_length: int = MAX_LENGTH) -> VAE:
    """Return the same model made of seqvae's parts."""
    encoder, decoder = lstm(
        vocab_size=VOCAB,
        max_length=max_length,
        end_id=1,
        unk_id=0,
        latent_dim=LATENT,
        embedding_dim=EMBEDDING,
        encoder_hidden_dim=HIDDEN,
        hidden_dim=HIDDEN,
        bidirectional=False,
    )
    return VAE(encoder, decoder, StandardNormal(LATENT))


def batches(steps: int, equal_lengths: bool) -> list[Tensor]:
    """Return `steps` batches of one and the same corpus of random words."""
    rng = np.random.default_rng(0)
    lengths = np.sort(LENGTHS[0] + rng.binomial(LENGTHS[1] - LENGTHS[0], 0.5, BATCH * steps))
    sentences = [torch.from_numpy(rng.integers(2, VOCAB, length)) for length in lengths]
    if equal_lengths:
        return [stack([sentences[index] for index in batch]) for batch in BatchOrder(lengths, BATCH).epoch(0)]
    order = rng.permutation(len(sentences)).reshape(steps, BATCH)
    return [stack([sentences[index] for index in batch]) for batch in order]


def seqvae_step() -> Callable[[Tensor], None]:
    """Return what takes an optimizer step as the trainer does."""
    vae = model()
    return training_step(vae, BetaELBO(Constant(1.0)), torch.optim.AdamW(vae.parameters(), fused=True), CLIP_NORM)


def plain_step() -> Callable[[Tensor], None]:
    module = Plain()
    optimizer = torch.optim.AdamW(module.parameters())

    def step(x: Tensor) -> None:
        module(x).backward()
        nn.utils.clip_grad_norm_(module.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_training(steps: int) -> list[str]:
    """Return the rows of the table of training."""
    fast, plain = seqvae_step(), plain_step()
    equal, random = batches(steps, equal_lengths=True), batches(steps, equal_lengths=False)
    rows = {"seqvae": (fast, equal), "plain, equal lengths": (plain, equal), "plain, padded": (plain, random)}
    for step, xs in rows.values():
        step(xs[0])
    speeds: dict[str, list[float]] = defaultdict(list)
    peaks = []
    for place in range(steps):
        peaks.append(gemm_peak(seconds=0.05))
        for name, (step, xs) in rows.items():
            x = xs[place % len(xs)]
            started = time.perf_counter()
            step(x)
            speeds[name].append(int((x >= 0).sum()) / (time.perf_counter() - started))
    peak, work = statistics.median(peaks), 6 * forward_multiply_adds(model(), equal[:1]) / equal[0].shape[1] / 1e9
    ours = statistics.median(speeds["seqvae"])
    table = ["training                tokens/s   share of the peak   seqvae is faster"]
    for name, values in speeds.items():
        speed = statistics.median(values)
        table.append(f"{name:<22}{speed:>10,.0f}{speed * work / peak:>20.2f}{ours / speed:>19.2f}")
    table.append(f"{'the peak':<22}{peak / work:>10,.0f}   ({peak:.0f} GFLOP/s, {work * 1e3:.1f} MFLOP a token)")
    shares = where_time_goes(fast, equal[:PROFILED], PARTS)
    return [*table, "", "seqvae's step        share of time", *(f"{part:<24}{shares[part]:>10.2f}" for part in shares)]


def measure_sampling(vae: VAE, seconds: float) -> list[str]:
    """Return the rows of the table of sampling."""
    vae.eval()
    generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def draw(batch: int) -> int:
        z = vae.prior(vae.encoder).sample(batch, generator)
        return int((vae.decoder.sample(z, strategy=Temperature(), generator=generator) >= 0).sum())

    table = ["sampling, batch of    sentences/s      tokens/s"]
    for batch, speed, tokens in sampling_speeds(draw, seconds):
        table.append(f"{batch:<20}{speed:>13,.1f}{speed * tokens:>14,.0f}")
    return table


def bench(options: argparse.Namespace) -> None:
    """Print the table of training and that of sampling."""
    cli.check_positive(options, "steps", "seconds")
    trained = cli.load_run(options.checkpoint, SentencePieceTokenizer, "sentences") if options.checkpoint else None
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads")
    print("\n".join(measure_training(options.steps)))
    print()
    print("\n".join(measure_sampling(model(SAMPLED) if trained is None else trained.vae, options.seconds)))


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser("text_speed", __doc__)
    parser.add_argument("--steps", type=int, default=100, help="that each model trains")
    parser.add_argument("--seconds", type=float, default=10.0, help="of sampling for each batch size, at least")
    parser.add_argument("--checkpoint", help="a trained text VAE to sample from, instead of one of the size above")
    return cli.run(parser, bench, argv)


if __name__ == "__main__":
    sys.exit(main())
