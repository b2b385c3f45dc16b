"""The codec: items people know (a sentence, a MIDI file, a picture) <-> tensors a network sees."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Item = TypeVar("Item")

CODEC_FILE = "codec.json"
MOST_JSON = 4 << 20  # bytes; what we write ourselves has a few hundred
MOST_LEVELS = 32  # of lists and objects in one another; what we write ourselves has five


class Preview(NamedTuple):
    """Items as people meet them; a part that a modality does not have is None."""

    text: str | None = None
    image: NDArray[np.uint8] | None = None  # [height, width, 3]
    audio: NDArray[np.float32] | None = None  # mono, within [-1, 1]
    sample_rate: int = 22050


class Gapped(NamedTuple):
    """A window with gaps: what is known of it, and which tokens may fill the gaps."""

    known: list[Tensor]  # tokens [time] before each gap, and last those behind them all
    first: list[Tensor]  # bool [vocab]: what each gap may begin with
    inside: Tensor  # bool [vocab]: what may follow in a gap


class Codec(ABC, Generic[Item]):
    """Both directions between items and windows; a window is the one tensor that a VAE encodes.

    Token windows are int64 [time], or [time parts] where several stand side by side, without any -1; image windows
    are uint8 [channels height width].
    `options` are the constructor's keyword arguments: they are all that `save` needs to keep, save for
    files of a codec's own. `view_options` names those of them that a training may choose anew,
    because they change what the model sees of a stored window and not the window itself.
    """

    view_options: ClassVar[frozenset[str]] = frozenset()
    suffix: ClassVar[str | None] = None
    """The ending of the file that holds one item; None where items are lines of one text file."""
    endings: ClassVar[tuple[str, ...]] = ()
    """Of the files that `read` understands, where a folder of them stands for all; none where items are lines."""
    document_endings: ClassVar[tuple[str, ...]] = ()
    """Of the files that `documents` makes of items that were decoded."""
    strips: ClassVar[bool] = False
    """Whether items are shown side by side however many they are: piano rolls are too wide for that."""
    joins: ClassVar[bool] = False
    """Whether an item may be made of several windows, one after another."""

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The keyword arguments that make this codec again; plain JSON values."""

    @property
    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """The facts a network needs, as keyword arguments of a model builder.

        Token codecs: vocab_size (one number, or a list of one for each part), max_length, end_id, unk_id (ids or
        None). Image codecs: image_shape, levels.
        """

    @abstractmethod
    def windows(self, item: Item) -> list[Tensor]:
        """Return the item's windows in order. Raises ValueError when the item cannot be encoded."""

    @abstractmethod
    def join(self, tensors: Sequence[Tensor], like: Item | None = None) -> Item:
        """Return the item that the windows spell; tempo, program or size come from `like` when it is given.

        A token window may end in -1 ("nothing here"), as batched samples do.
        """

    def view(self, tensor: Tensor, rng: np.random.Generator, augment: bool = False) -> Tensor:
        """Return what the model sees of a window in one epoch (binarized, and transposed where it may be augmented).

        The default is the window. Only training windows are augmented.
        """
        return tensor

    def listed(self, tensor: Tensor) -> dict[str, Any]:
        """Return a window as plain JSON values, in the signs that people know of its modality; by default as it is."""
        return {"values": tensor.tolist()}

    @abstractmethod
    def sizes(self, tensor: Tensor) -> dict[str, int]:
        """Return how many units a window holds, by the unit's name: what nats are divided by."""

    @abstractmethod
    def score(self, truth: Sequence[Tensor], predicted: Sequence[Tensor]) -> dict[str, float]:
        """Return how well `predicted` matches `truth`, window by window, by the name of the metric (1 is perfect)."""

    def evaluation_score(self, truth: Sequence[Tensor], predicted: Sequence[Tensor]) -> dict[str, float]:
        """Return `score` and what else an evaluation may take its time for; by default nothing."""
        return self.score(truth, predicted)

    def attributes(self, window: Tensor) -> dict[str, float]:
        """Return qualities of a window that people have a word for, by name; one that it lacks is not there.

        The default is none. A window is one of the data's, or one that a decoder drew.
        """
        return {}

    def sample_score(
        self, windows: Sequence[Tensor], test: Sequence[Tensor], known: Iterable[Tensor] | None
    ) -> dict[str, float]:
        """Return how windows compare with the test split's and (unless it is None) what nearly stands among known ones.

        The default is nothing: attributes, repeats and exact copies are counted for every modality.
        """
        return {}

    @abstractmethod
    def read(self, source: str) -> list[Item]:
        """Return the items that a command's INPUT names. Raises ValueError with the input and the reason."""

    @abstractmethod
    def write(self, item: Item, path: Path) -> None:
        """Write one item to a file of its own."""

    def chain(self, items: Sequence[Item]) -> Item | None:
        """Return the items one after another as one item, or None where there is no such thing (the default)."""
        return None

    def gapped(self, item: Item, marker: str | None = None) -> Gapped:
        """Return the window of an item with marked gaps. Raises ValueError where there are none (the default)."""
        raise ValueError(f"{type(self).__name__}: its items have no gaps to fill, only sentences do")

    def filled(self, item: Item, fills: Sequence[Tensor], marker: str | None = None) -> Item:
        """Return the item with tokens in its gaps, all else as it was: the inverse of `gapped`."""
        raise ValueError(f"{type(self).__name__}: its items have no gaps to fill, only sentences do")

    def magenta_converter(self) -> dict[str, Any]:
        """Return the data converter of @magenta/music that makes the same windows, as its config.json spells it.

        Raises ValueError where there is none (the default).
        """
        raise ValueError(f"{type(self).__name__}: @magenta/music has no data converter for its windows")

    @abstractmethod
    def preview(self, items: Sequence[Item], columns: int | None = None, sound: bool = True) -> Preview:
        """Return the items together, as text, picture and, unless it is not wanted, sound.

        The picture is in so many columns where it is said.
        """

    def frames(self, items: Sequence[Item]) -> list[NDArray[np.uint8]]:
        """Return a picture [height width 1 or 3] of each item, all of one size, to be shown one after another.

        Raises ValueError where items are no pictures (the default).
        """
        raise ValueError(f"{type(self).__name__}: only pictures can be animated")

    def documents(
        self, items: Sequence[Item], title: str, captions: Sequence[str], columns: int | None = None
    ) -> dict[str, str]:
        """Return texts that show the items together, by the endings of their files: a page, notation; here none."""
        return {}

    def replace(self, **view: Any) -> Self:
        """Return this codec with other view options. Raises ValueError for a name that is none of them."""
        for name in view:
            if name not in self.view_options:
                known = ", ".join(sorted(self.view_options)) or "none"
                raise ValueError(f"{type(self).__name__} has no view option {name!r}; it has: {known}")
        return type(self)(**{**self.options, **view}) if view else self

    def save(self, directory: Path) -> None:
        """Write the codec's files into an existing directory."""
        text = json.dumps({"codec": type(self).__name__, "options": self.options}, indent=2)
        (directory / CODEC_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read a codec that `save` wrote. Raises ValueError when the file is damaged or another codec's."""
        saved = read_json(directory / CODEC_FILE)
        if saved.get("codec") != cls.__name__:
            raise ValueError(f"{directory / CODEC_FILE} holds a {saved.get('codec')!r}, not a {cls.__name__}")
        try:
            return cls(**saved["options"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{directory / CODEC_FILE} cannot be used ({error})") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds. Raises ValueError, with the file and the reason, when it holds none."""
    try:
        with path.open("rb") as file:
            return parse_json(file.read(MOST_JSON + 1))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None


def parse_json(content: bytes) -> dict[str, Any]:
    """Return the object that JSON text spells. Raises ValueError when it spells none, or is no size of ours."""
    if len(content) > MOST_JSON:
        raise ValueError(f"more than {MOST_JSON:,} bytes")
    try:
        value = json.loads(content.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"nested more than {MOST_LEVELS} levels deep") from None
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    level: list[Any] = [value]
    for _ in range(MOST_LEVELS):
        level = [part for one in level for part in (one.values() if isinstance(one, dict) else one)]
        level = [part for part in level if isinstance(part, dict | list)]
    if level:
        raise ValueError(f"nested more than {MOST_LEVELS} levels deep")
    return value


def encoded_again(codec: Codec[Any], window: Tensor) -> Tensor | None:
    """Return the one window that a window's item gives when it is encoded; None where it gives none or several."""
    try:
        windows = codec.windows(codec.join([window]))
    except ValueError:  # no text, no notes, too long when cut into the likeliest tokens
        return None
    return windows[0] if len(windows) == 1 else None


def strip(window: Tensor) -> Tensor:
    """Return a token window without the -1 that fills a batch's rows; pixels have none."""
    if window.dtype != torch.int64:
        return window
    return window[window >= 0 if window.ndim == 1 else (window >= 0).all(-1)]
