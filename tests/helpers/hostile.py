"""Names that would do harm if a configuration could call them, and what shows that they would."""

import importlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = tuple[Any, dict[str, Any]]  # a _target_ and its arguments; {marker} is a file whose existence is the harm

HARMFUL: list[Row] = [
    ("os.system", {"command": "touch {marker}"}),
    ("posix.system", {"command": "touch {marker}"}),
    ("logging.os.system", {"command": "touch {marker}"}),
    ("os.popen", {"cmd": "touch {marker}"}),
    ("os.mkdir", {"path": "{marker}"}),
    ("os.symlink", {"src": "/", "dst": "{marker}"}),
    ("subprocess.run", {"args": ["touch", "{marker}"]}),
    ("subprocess.Popen", {"args": ["touch", "{marker}"]}),
    ("subprocess.check_output", {"args": "touch {marker}", "shell": True}),
    ("subprocess.getoutput", {"cmd": "touch {marker}"}),
    ("torch.utils.collect_env.run", {"command": "touch {marker}"}),
    ("builtins.open", {"file": "{marker}", "mode": "w"}),
    ("io.open", {"file": "{marker}", "mode": "w"}),
    ("codecs.open", {"filename": "{marker}", "mode": "w"}),
    ("builtins.eval", {"_args_": ["open('{marker}', 'w')"]}),
    ("builtins.exec", {"_args_": ["open('{marker}', 'w')"]}),
    ("timeit.timeit", {"stmt": "open('{marker}', 'w')", "number": 1}),
    ("runpy.run_path", {"path_name": "{folder}/hubconf.py"}),
    ("torch.load", {"f": "{folder}/bomb.pickle", "weights_only": False}),
    ("torch.serialization.load", {"f": "{folder}/bomb.pickle", "weights_only": False}),
    ("seqvae.harness.config.torch.load", {"f": "{folder}/bomb.pickle", "weights_only": False}),
    ("seqvae.models.lstm.__globals__", {}),
    ("numpy.load", {"file": "{folder}/bomb.pickle", "allow_pickle": True}),
    ("torch.hub.load", {"repo_or_dir": "{folder}", "model": "anything", "source": "local"}),
    ("torch.save", {"obj": 1, "f": "{marker}"}),
    ("safetensors.torch.save_file", {"tensors": {}, "filename": "{marker}"}),
    ("numpy.save", {"file": "{marker}.npy", "arr": [1]}),
    ("pathlib.Path.touch", {"_args_": ["{path}"]}),
    ("shutil.copyfile", {"src": "{folder}/hubconf.py", "dst": "{marker}"}),
    ("shutil.os.mkdir", {"path": "{marker}"}),
    ("logging.FileHandler", {"filename": "{marker}"}),
    ("zipfile.ZipFile", {"file": "{marker}", "mode": "w"}),
    ("sqlite3.connect", {"database": "{marker}"}),
    ("hydra.utils.instantiate", {"config": {"_target_": "builtins.open", "file": "{marker}", "mode": "w"}}),
    ("hydra.utils.call", {"config": {"_target_": "builtins.open", "file": "{marker}", "mode": "w"}}),
    ("seqvae.data.codec.Path.touch", {"_args_": ["{path}"]}),
]

FOREIGN: list[Row] = [
    ("hydra.utils.get_method", {"path": "os.system"}),
    ("importlib.import_module", {"name": "antigravity"}),
    ("builtins.__import__", {"name": "antigravity"}),
    ("builtins.getattr", {"_args_": ["os", "system"]}),
    ("pip._internal.main", {"args": ["--version"]}),
    ("shutil.rmtree", {"path": "{marker}"}),
    ("seqvae.harness.checkpoint.shutil.rmtree", {"path": "{marker}"}),
    ("seqvae.harness.run.train", {"config": {}}),
    ("seqvae.harness.config.load", {"name": "{marker}"}),
    ("seqvae.data.dataset.sha256", {"path": "{marker}"}),
    ("seqvae.data.load_codec", {"directory": "{marker}"}),
    ("seqvae.models.torch.load", {"f": "{marker}"}),
    ("seqvae.models", {}),
    ("seqvae.models.lstm.lstm", {}),
    ("seqvae.schedules.math.exp", {"_args_": [1]}),
    ("seqvae.schedules.Linear.__init__", {}),
    ("seqvae.schedules.Linear.__class__", {}),
    ("seqvae.schedules", {}),
    ("torch.optim.LBFGS", {"params": []}),
    ("torch.optim", {}),
    ("torch.nn.Linear", {"in_features": 1, "out_features": 1}),
    ("open", {"file": "{marker}", "mode": "w"}),
    (" seqvae.schedules.Linear", {}),
    ("seqvae.schedules.Linear ", {}),
    ("seqvae.schedules.Linear\n", {}),
    ("seqvae.schedules.linear", {}),
    ("seqvae.schedules..Linear", {}),
    ("seqvae.schedules:Linear", {}),
    ("seqvae/schedules/Linear", {}),
    ("seqvae.schedules.Line\u0430r", {}),  # a Cyrillic letter
    ("seqvae.schedules.Linear\u200b", {}),  # a space without width
    ("\uff53eqvae.schedules.Linear", {}),  # NFKC would make it ours
    ("", {}),
    (None, {}),
    (7, {}),
    (1.5, {}),
    (True, {}),
    (["seqvae.schedules.Linear"], {}),
    ({"_target_": "os.system", "command": "touch {marker}"}, {}),
]

HOSTILE = HARMFUL + FOREIGN

SPECIAL: list[dict[str, Any]] = [
    {"_partial_": True},
    {"_args_": [1.0]},
    {"_recursive_": False},
    {"_convert_": "all"},
    {"_mode_": "eager"},
    {"__class__": "x"},
    {"__init__": "x"},
    {"self": 1},
    {"strat": 0.0},
]
"""What Hydra's own door, or Python's, would take for an instruction."""


class Bomb:
    """Unpickling it touches the marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def lay(folder: Path) -> Path:
    """Write the files that the rows speak of; return the marker that no test may find."""
    marker = folder / "marker"
    (folder / "bomb.pickle").write_bytes(pickle.dumps(Bomb(marker)))
    lines = f"from pathlib import Path\nPath({str(marker)!r}).touch()\ndependencies = []\ndef anything(): pass\n"
    (folder / "hubconf.py").write_text(lines, encoding="utf-8")
    return marker


def fill(value: Any, marker: Path) -> Any:
    """Return a row's value with its paths filled in."""
    if isinstance(value, str):
        return (
            value.replace("{marker}", str(marker))
            .replace("{path}", str(marker))
            .replace("{folder}", str(marker.parent))
        )
    if isinstance(value, list):
        return [fill(part, marker) for part in value]
    return {name: fill(part, marker) for name, part in value.items()} if isinstance(value, dict) else value


def node(row: Row, marker: Path) -> dict[str, Any]:
    """Return a row as a configuration's node."""
    target, arguments = row
    filled: dict[str, Any] = fill({"_target_": target, **arguments}, marker)
    return filled


def call(row: Row, marker: Path) -> Any:
    """Do what a door without a list would do: find whatever the name means, and call it."""
    target, arguments = row
    arguments = fill(arguments, marker)
    positional = [Path(value) if "{path}" in arguments else value for value in arguments.pop("_args_", [])]
    return _locate(target)(*positional, **arguments)


def _locate(target: str) -> Any:
    parts = target.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ImportError(target)


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value within a JSON value, leaves and branches."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from nodes(part, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    """Replace the value at a path."""
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new
