"""Fashion-MNIST (Xiao et al., 2017; MIT): 50,000 / 10,000 / 10,000 grey pictures of clothes, 28 x 28, 10 classes.

    python -m data_prep.fashion_mnist --root data/fashion_mnist

The four files come from --source, else from the Debian package dataset-fashion-mnist, else from the internet.
"""

import sys
from functools import partial
from pathlib import Path

from data_prep import idx

CORPUS = idx.Corpus(
    name="fashion_mnist",
    title=__doc__.splitlines()[0],
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    carrier="the Debian package dataset-fashion-mnist",
    installed=Path("/usr/share/datasets/fashion-mnist"),
    files={
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    label_names=(
        *("t-shirt", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
)
main = partial(idx.main, CORPUS)

if __name__ == "__main__":
    sys.exit(main())
