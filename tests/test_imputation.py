"""Gaps in sentences: filled as the exact posterior has it, and nothing else touched."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqvae.cli import main
from seqvae.data import SentencePieceTokenizer
from seqvae.data.codec import Gapped
from seqvae.data.text.tokenizer import MODEL_TYPES
from seqvae.evaluation import importance_weighted_bound
from seqvae.latent import imputation, impute
from seqvae.models import lstm
from seqvae.models.lstm import LSTMDecoder
from seqvae.priors import StandardNormal
from seqvae.vae import VAE
from tests.helpers.worlds import Run, World

VOCABULARY, LENGTH = 6, 5
GAPPED = Gapped(
    known=[torch.tensor([2]), torch.tensor([3, 1])],
    first=[torch.tensor([False, False, True, True, True, False])],
    inside=torch.tensor([False, False, True, True, True, True]),
)
FILLINGS = [(a,) for a in (2, 3, 4)] + list(itertools.product((2, 3, 4), (2, 3, 4, 5)))

SENTENCES = ["the cow eats grass .", "the cat eats fish .", "the dog eats bones .", "a bird sings songs ."]


def small_vae() -> VAE:
    """Return an untrained VAE whose tokens depend a good deal on z and on each other."""
    torch.manual_seed(0)
    encoder, decoder = lstm(
        vocab_size=VOCABULARY,
        max_length=LENGTH,
        end_id=1,
        unk_id=0,
        latent_dim=2,
        embedding_dim=6,
        encoder_hidden_dim=6,
        hidden_dim=8,
    )
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.mul_(2.5)
    return VAE(encoder, decoder, StandardNormal(2)).eval()


def window(filling: tuple[int, ...]) -> torch.Tensor:
    return torch.cat([GAPPED.known[0], torch.tensor(filling), GAPPED.known[1]])


def log_evidence(vae: VAE, x: torch.Tensor) -> float:
    """Return log p(x) by a sum over a grid of z."""
    line = torch.linspace(-5, 5, 61)
    z = torch.cartesian_prod(line, line)
    log_prior = -0.5 * z.square().sum(1) - math.log(2 * math.pi) + 2 * math.log(float(line[1] - line[0]))
    with torch.no_grad():
        return float((vae.decoder.log_prob(x.expand(len(z), -1), z) + log_prior).logsumexp(0))


def searching(vae: VAE, gapped: Gapped = GAPPED, longest: int = 2) -> imputation._Search:
    assert isinstance(vae.decoder, LSTMDecoder)
    return imputation._Search(vae, vae.decoder, gapped, longest, torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_chains_visit_fillings_as_often_as_the_exact_posterior_has_them() -> None:
    vae = small_vae()
    exact = torch.tensor([log_evidence(vae, window(filling)) for filling in FILLINGS]).softmax(0)
    assert exact.max() > 3 * exact.median()  # being uniform would not do
    search = searching(vae)
    visits: Counter[tuple[int, ...]] = Counter()
    for _ in range(250):
        search._refill(0, "resample")
        search._redraw()
        visits.update(tuple(fills[0].tolist()) for fills in search.fills)
    shares = torch.tensor([visits[filling] for filling in FILLINGS]) / visits.total()
    assert float(shares.sum()) == pytest.approx(1.0)
    assert float((shares - exact).abs().sum()) / 2 < 0.05


@pytest.mark.parametrize("longest", [1, 2])  # with 2, some windows are as long as can be: their end costs nothing
def test_the_likelihood_of_a_pool_is_the_decoders_own(longest: int) -> None:
    vae, chains = small_vae(), list(range(imputation.CHAINS))
    search = searching(vae, longest=longest)
    search._refill(0, "resample")
    with torch.no_grad():
        pool = search._propose(chains, 0)
        for chain in chains:
            windows = [window(tuple(fill.tolist())) for fill in pool.fills[chain]]
            own = torch.stack([vae.decoder.log_prob(x.unsqueeze(0), search.z[chain : chain + 1])[0] for x in windows])
            torch.testing.assert_close(pool.log_likelihood[chain].diff(), own.diff(), atol=1e-4, rtol=1e-4)


def test_an_estimate_of_what_a_window_is_worth_is_its_log_evidence() -> None:
    vae = small_vae()
    search = searching(vae)
    worth: dict[imputation.Fills, list[float]] = {}
    for place, (fills, nats) in enumerate(search.run(120, "resample")):
        if place % 2 == 0:  # where a chain stands; between come the likeliest of its pool
            worth.setdefault(fills, []).append(nats)
    for (filling,), estimates in worth.items():
        if len(estimates) > 30:
            mean = float(torch.tensor(estimates).logsumexp(0)) - math.log(len(estimates))
            assert mean == pytest.approx(log_evidence(vae, window(filling)), abs=0.1)


@pytest.fixture(scope="module")
def words() -> tuple[VAE, SentencePieceTokenizer]:
    """Return a VAE that knows four sentences by heart, and its words."""
    codec = SentencePieceTokenizer.fit(SENTENCES, vocab_size=100, max_length=8, model_type="word")
    torch.manual_seed(0)
    encoder, decoder = lstm(
        **codec.spec, latent_dim=4, embedding_dim=16, encoder_hidden_dim=16, hidden_dim=32, word_dropout=0.3
    )
    vae = VAE(encoder, decoder, StandardNormal(4))
    x = torch.cat([codec.windows(sentence)[0].unsqueeze(0) for sentence in SENTENCES])
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        (-vae.terms(x, 4).elbo.mean()).backward()
        optimizer.step()
    return vae.eval(), codec


@pytest.mark.parametrize("method", imputation.METHODS)
@pytest.mark.parametrize(
    ("gapped", "answer"),
    [
        ("the ___ eats fish .", "the cat eats fish ."),  # what comes later says it
        ("the cat eats ___ .", "the cat eats fish ."),
        ("___ ___ sings songs .", "a bird sings songs ."),
        ("a bird sings [...]", "a bird sings songs ."),
    ],
)
def test_a_gap_gets_what_the_corpus_determines(
    gapped: str, answer: str, method: str, words: tuple[VAE, SentencePieceTokenizer]
) -> None:
    torch.manual_seed(0)
    assert impute(*words, gapped, 1, method=method, longest=2)[0].item == answer


def test_the_best_filling_beats_every_other_word_and_its_score_is_that_of_an_evaluation(
    words: tuple[VAE, SentencePieceTokenizer],
) -> None:
    vae, codec = words
    torch.manual_seed(0)
    best = impute(vae, codec, "the ___ eats fish .", 1, longest=1, samples=1000)[0]
    scores = {}
    for word in {word for sentence in SENTENCES for word in sentence.split()}:
        x = codec.windows(f"the {word} eats fish .")[0].unsqueeze(0)
        scores[word] = float(importance_weighted_bound(vae, x, 1000).log_prob)
    assert best.log_prob == pytest.approx(scores["cat"], abs=0.1)
    assert scores.pop("cat") > max(scores.values()) + 2


def test_candidates_are_different_and_the_likeliest_comes_first(words: tuple[VAE, SentencePieceTokenizer]) -> None:
    torch.manual_seed(0)
    found = impute(*words, "the ___ eats ___ .", 6, longest=1)
    assert len({one.item for one in found}) == len(found) > 1
    assert [one.log_prob for one in found] == sorted((one.log_prob for one in found), reverse=True)


@pytest.fixture(scope="module", params=[*MODEL_TYPES, "bytes", "exact"])
def codec(request: pytest.FixtureRequest) -> SentencePieceTokenizer:
    sentences = ["the cat saw the red house.", "a dog (my dog) ate the bread.", "the old king took a ring and a stone"]
    if request.param in ("bytes", "exact"):
        normalization = "identity" if request.param == "exact" else "nfkc"
        return SentencePieceTokenizer.fit(
            sentences * 3, vocab_size=310, max_length=60, byte_fallback=True, normalization=normalization
        )
    return SentencePieceTokenizer.fit(sentences * 3, vocab_size=60, max_length=60, model_type=request.param)


def test_tokens_taken_out_and_put_back_are_the_sentence_and_its_tokens(codec: SentencePieceTokenizer) -> None:
    sentence = "the old king took the red ring"
    for place, word in enumerate(sentence.split()):
        item = " ".join([*sentence.split()[:place], "___", *sentence.split()[place + 1 :]])
        gapped = codec.gapped(item)
        whole = codec.windows(sentence)[0]
        start, end = len(gapped.known[0]), len(whole) - len(gapped.known[1])
        assert torch.equal(torch.cat([gapped.known[0], whole[start:end], gapped.known[1]]), whole)
        assert gapped.first[0][whole[start]]
        assert codec.join([whole[start:end]]) == word
        assert codec.filled(item, [whole[start:end]]) == sentence


@pytest.mark.parametrize("text", ["\u03a9mega", "\u03a9\u03a9 house", "house", "."])
def test_what_touches_a_gap_is_known_though_it_is_unknown_to_the_vocabulary(
    text: str, codec: SentencePieceTokenizer
) -> None:
    if codec.model_type == "word":
        pytest.skip("words are apart from their gaps")
    assert codec.join([codec.gapped(f"the ___{text}").known[1]]) == codec.join(codec.windows(text))


PARTS = st.sampled_from(["the cat", "Ωmega", "  a  dog ", "house.", ".", ", and", " ate", "", " ", "re", "(my"])


@pytest.mark.slow
@settings(deadline=None, max_examples=8)
@given(parts=st.lists(PARTS, min_size=2, max_size=4), seed=st.integers(0, 5))
def test_what_is_known_comes_back_untouched_character_by_character_and_token_by_token(
    codec: SentencePieceTokenizer, parts: list[str], seed: int
) -> None:
    if codec.model_type == "word":
        parts = [f" {part} " for part in parts]
    torch.manual_seed(seed)
    encoder, decoder = lstm(**codec.spec, latent_dim=2, embedding_dim=4, encoder_hidden_dim=4, hidden_dim=4)
    with torch.no_grad():  # or an untrained model would spell no character whole
        decoder.output.bias[[codec._processor.is_byte(index) for index in range(codec.vocab_size)]] = -10.0
    item = "<>".join(parts)
    gapped = codec.gapped(item, "<>")
    tokens = "(.{1,2})".join(re.escape(_spelt(part)) for part in gapped.known)
    text = "(.+)".join(re.escape(part) for part in parts)
    vae = VAE(encoder, decoder, StandardNormal(2)).eval()
    for one in impute(vae, codec, item, 3, marker="<>", longest=2, steps=2, samples=1):
        assert re.fullmatch(tokens, _spelt(one.window))
        assert re.fullmatch(text, one.item)
        assert all(fill.strip() and not {"⁇", "\ufffd"} & set(fill) for fill in _fills(text, one.item))


def _spelt(tokens: torch.Tensor) -> str:
    """Return a character a token, so that patterns can be told of them."""
    return "".join(chr(0x4E00 + index) for index in tokens.tolist())


def _fills(pattern: str, item: str) -> tuple[str, ...]:
    match = re.fullmatch(pattern, item)
    assert match is not None
    return match.groups()


@pytest.mark.parametrize(
    ("item", "options", "told"),
    [
        ("the cat", {}, "'the cat' has no gap; mark one with ___ or"),
        ("the ___", {"marker": "<>"}, "'the ___' has no gap; mark one with <>"),
        ("the ___", {"marker": " "}, "the marker of a gap must be visible, got ' '"),
        ("the c___", {}, "has a gap that touches a word, and this model's tokens are words"),
        ("the cat eats fish . the ___ .", {}, "8 known tokens and 1 gaps are more than a window's 8 tokens"),
        ("the ___", {"longest": 0}, "longest gap must be positive, got 0"),
        ("the ___", {"n": 0}, "n must be positive, got 0"),
        ("the ___", {"method": "guess"}, "method must be one of resample, optimise, got 'guess'"),
    ],
)
def test_what_cannot_be_filled_is_refused(
    item: str, options: dict[str, object], told: str, words: tuple[VAE, SentencePieceTokenizer]
) -> None:
    with pytest.raises(ValueError, match=told):
        impute(*words, item, **options)  # type: ignore[arg-type]


def test_a_gap_takes_no_more_than_the_window_has_room_for(words: tuple[VAE, SentencePieceTokenizer]) -> None:
    torch.manual_seed(0)
    found = impute(*words, "the cat ___ eats ___ .", 3, longest=5)
    assert found
    assert all(len(one.window) <= 8 for one in found)


def test_a_gap_that_no_token_can_begin_is_refused(
    words: tuple[VAE, SentencePieceTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, codec = words
    gapped = codec.gapped("the ___")
    nothing = gapped._replace(first=[torch.zeros_like(gapped.inside)])
    monkeypatch.setattr(codec, "gapped", lambda item, marker: nothing)
    with pytest.raises(ValueError, match="no token of this model can begin"):
        impute(vae, codec, "the ___")


def test_bytes_fill_a_gap_only_where_they_spell_text() -> None:
    codec = SentencePieceTokenizer.fit(
        SENTENCES, vocab_size=300, max_length=30, normalization="identity", byte_fallback=True
    )

    def spelt(text: bytes) -> torch.Tensor:
        pieces = [f"<0x{byte:02X}>" for byte in text]
        return torch.tensor([codec._processor.piece_to_id(piece) for piece in pieces])

    for text in ("\u00e9", "\U0001f600", "\u0645\u06cc\u200c\u062e", "a b"):
        assert imputation._readable(codec, spelt(text.encode()))
    for broken in (b"\xc3", b"a\n", b"\t", b"  ", b"a\xf0\x9f"):
        assert not imputation._readable(codec, spelt(broken))


def test_a_language_model_is_refused(words: tuple[VAE, SentencePieceTokenizer]) -> None:
    encoder, decoder = lstm(**words[1].spec, language_model=True)
    with pytest.raises(ValueError, match="no latent to search: a language model"):
        impute(VAE(encoder, decoder, StandardNormal(0)), words[1], "the ___")


def test_the_command_writes_a_candidate_a_line_and_the_same_for_the_same_seed(
    get_run: Callable[[str], Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(get_run("text").path)
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("the cat saw ___\n\n[...] ate the bread\n", encoding="utf-8")
    command = ["impute", path, f"@{sentences}", "-n", "2", "--steps", "2", "--gap-length", "2"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert [bool(re.fullmatch(r"-\d+\.\d\d  the cat saw .+", line)) for line in lines] == [True, True, False, False]
    assert main([*command, "-o", str(tmp_path / "filled.txt")]) == 0
    assert (tmp_path / "filled.txt").read_text(encoding="utf-8").splitlines() == lines


@pytest.mark.parametrize("name", ["melody", "fashion"])
def test_the_command_refuses_items_without_gaps(
    name: str, get_run: Callable[[str], Run], get_world: Callable[[str], World], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["impute", str(get_run(name).path), get_world(name).inputs[0]]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch("seqvae impute: .*: its items have no gaps to fill, only sentences do\n", error)
