"""Train from a checkout: python train.py experiment=melody (the same as `seqvae train`)."""

import sys

from seqvae.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
