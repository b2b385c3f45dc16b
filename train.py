"""Train from a checkout: python train.py experiment=melody (the same as `seqvae train`)."""

from seqvae.harness.launch import main

if __name__ == "__main__":
    raise SystemExit(main())
