# make demo: from nothing to melodies; make text: from nothing to sentences; make test: everything that continuous integration runs.
# All need Python 3.11 or newer with pip and venv, and make. PYTHON=... chooses the interpreter, VENV=... the environment.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
TUNES := data/folk_tunes
RUN := runs/melody
OUT := out/demo
DEMO := trainer.max_steps=1800 trainer.max_minutes=10 trainer.valid_every=450 trainer.save_every=450 # of 13,000; for all, 59 minutes: make demo DEMO= RUN=runs/melody_hour
VERSES := data/bible_bbe
BENCH := # options of benchmarks/text.py: --rows lm,pretrained --seeds 0,1 --frontier --jobs 2 --steps 1000

.PHONY: help demo text bench-text test clean

help:
	@echo "make demo        install, prepare the folk tunes, train the melody VAE, evaluate, sample, interpolate (about 10 minutes)"
	@echo "make text        install, prepare the sentences, train an autoencoder, then the VAE that takes its encoder, evaluate, sample"
	@echo "make bench-text  what keeps a text VAE from collapsing, beside its language model (hours; BENCH='--rows lm,pretrained' for less)"
	@echo "make test        install what tests need; ruff, mypy, pytest"
	@echo "make clean       remove the environment, not the data and not the runs"

$(BIN)/.users: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[examples]'
	@touch $@

$(BIN)/.developers: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[examples,dev]'
	@touch $@

$(TUNES)/dataset.json: | $(BIN)/.users
	$(BIN)/python -m data_prep.folk_tunes --root $(TUNES)

demo: $(BIN)/.users $(TUNES)/dataset.json
	$(BIN)/seqvae train experiment=melody run_dir=$(RUN) resume=auto trainer.devices=2 $(DEMO)
	$(BIN)/seqvae evaluate $(RUN) --split test
	$(BIN)/seqvae sample $(RUN) -n 8 -o $(OUT)/samples
	$(BIN)/seqvae interpolate $(RUN) test:100 test:1500 --steps 7 -o $(OUT)/interpolation
	@echo
	@echo "Checkpoints and TensorBoard:  $(BIN)/tensorboard --logdir $(RUN)"
	@echo "Melodies, pictures and sound: $(OUT)/samples and $(OUT)/interpolation (listed above)"

$(VERSES)/dataset.json: | $(BIN)/.users
	$(BIN)/python -m data_prep.bible_bbe --root $(VERSES)

text: $(BIN)/.users $(VERSES)/dataset.json
	$(BIN)/seqvae train experiment=text_autoencoder resume=auto
	$(BIN)/seqvae train experiment=text_pretrained resume=auto
	$(BIN)/seqvae evaluate runs/text_pretrained --split test
	$(BIN)/seqvae sample runs/text_pretrained -n 8

bench-text: $(BIN)/.users $(VERSES)/dataset.json
	$(BIN)/python -m benchmarks.text --root $(VERSES) -o docs/text-results.md --json runs/bench_text/results.json $(BENCH)

test: $(BIN)/.developers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal

clean:
	rm -rf $(VENV)
