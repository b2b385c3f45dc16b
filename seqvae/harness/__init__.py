"""The common training harness: configuration, trainer, engine, checkpoints, tracking, scoring."""

from pathlib import Path


def conf_dir() -> Path:
    """Return the folder of the configuration: inside an installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"
