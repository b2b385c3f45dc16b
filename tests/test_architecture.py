"""The import table: who may import whom."""

import ast
from pathlib import Path

import pytest

import seqvae

PACKAGE = Path(seqvae.__file__).parent
MATHEMATICS = ("torch", "jaxtyping")
MODALITY_LIBRARIES = ("sentencepiece", "pretty_midi", "mido", "PIL", "symusic")

# module (or package, ending in a dot) -> what of seqvae it may import; the longest entry that fits counts
ALLOWED: dict[str, tuple[str, ...]] = {
    "schedules": (),
    "gaussian": (),
    "priors": ("gaussian",),
    "aggregate": ("gaussian", "priors"),
    "traversals": ("priors",),
    "vae": ("gaussian", "priors"),
    "objectives.": ("vae", "gaussian", "schedules", "objectives."),
    "evaluation": ("vae", "gaussian", "priors"),
    "models.": ("vae", "gaussian", "models."),
    "models.layers": (),
    "models.decoding": (),
    "models.softmax": (),
    "models.likelihoods.": ("gaussian", "models.likelihoods."),
    "models.lstm": ("vae", "models.layers", "models.lstm_encoder", "models.decoding", "models.softmax"),
    "models.hierarchical": ("vae", "models.layers", "models.lstm", "models.lstm_encoder", "models.decoding"),
    "models.lstm_encoder": ("vae", "gaussian", "models.layers"),
    "models.conv": ("vae", "gaussian", "models.layers", "models.decoding", "models.likelihoods"),
    "data.": ("data.",),
    "data.codec": (),
    "data.dataset": (),
    "data.batching": ("data.codec", "data.dataset"),
    "data.captions": ("data.codec",),
    "data.sources": (),
    "data.shards": (),
    "data.preparation": ("data.codec", "data.dataset", "data.shards", "data.sources", ""),
    "data.ngrams": (),
    "data.text.": ("data.codec", "data.dataset", "data.ngrams", "data.preparation", "data.text."),
    "data.text.fitting": (),
    "data.text.sentences": (),
    "data.image.": ("data.codec", "data.preparation", "data.image."),
    "data.midi.": ("data.codec", "data.dataset", "data.preparation", "data.midi."),
    "latent.": ("vae", "gaussian", "priors", "evaluation", "data.codec", "data.dataset", "data.batching", "latent."),
    # another program's terms for a network: the one room that knows a network's parts from outside
    "export.": ("vae", "gaussian", "priors", "models.", "data.codec", "export."),
    "harness.": (
        "vae",
        "gaussian",
        "aggregate",
        "traversals",
        "objectives",
        "schedules",
        "evaluation",
        "data.captions",
        "data.codec",
        "data.dataset",
        "data.batching",
        "latent.interpolation",
        "harness.",
    ),
    "harness.plots": ("gaussian", "priors", "traversals", "evaluation"),
    "harness.machine": ("", "harness.engine"),
    "harness.config": ("", "vae", "models.", "objectives", "priors", "schedules", "data.", "harness."),
    "harness.quality": ("vae", "evaluation", "data.", "harness."),
    "harness.run": ("", "vae", "priors", "data.", "harness."),
    "cli.": (
        "",
        "gaussian",
        "priors",
        "evaluation",
        "traversals",
        "models.decoding",
        "data.",
        "harness.",
        "latent.",
        "export.",
        "cli.",
    ),
    "": ("harness.config",),
}

# who may import which library; everything else may not
LIBRARIES: dict[str, tuple[str, ...]] = {
    "hydra": ("harness.launch", "harness.run"),
    "omegaconf": ("harness.launch", "harness.run", "harness.comparison"),
    "lightning_fabric": ("harness.engine",),
    "safetensors": ("harness.checkpoint", "harness.vectors"),
    "tensorboard": ("harness.tracking",),
    "rich": ("harness.tracking",),
    "sentencepiece": ("data.text.fitting", "data.text.tokenizer"),
    "pretty_midi": ("data.midi.",),
    "mido": ("data.midi.",),
    "PIL": ("data.image.pictures", "data.captions"),
    "sacrebleu": ("data.ngrams",),
    "matplotlib": ("harness.plots",),
    "mir_eval": (),
    "joblib": ("data.shards",),
    "dask": ("data.shards",),
    "distributed": ("data.shards",),
    "symusic": ("data.midi.notes",),
    "onnx": ("export.onnx",),
    "onnxscript": ("export.onnx",),
    "onnxruntime": (),
    "torchvision": (),
    "data_prep": (),
    "tests": (),
    "train": (),
}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        found[".".join(parts[:-1]) + "." * (is_package and len(parts) > 1) if is_package else ".".join(parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """Return every absolute name that a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            base = node.module or ""
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def fits(name: str, rule: str) -> bool:
    return name == rule or name.startswith(rule if rule.endswith(".") else f"{rule}.") or f"{name}." == rule


def rule_for(module: str) -> tuple[str, ...]:
    entries = [entry for entry in ALLOWED if (fits(module, entry) if entry else module == "")]
    return ALLOWED[max(entries, key=len)]


def own_module(name: str, known: set[str]) -> str:
    """Return the module of seqvae that an imported name means: itself, or the one that holds it."""
    parts = name.split(".")[1:]
    for length in range(len(parts), 0, -1):
        candidate = ".".join(parts[:length])
        if candidate in known:
            return candidate
        if f"{candidate}." in known:
            return f"{candidate}."
    return ""


def offences(module: str, path: Path) -> list[str]:
    known = set(modules())
    found = []
    for name in sorted(imports(path)):
        top = name.split(".")[0]
        if top == "seqvae":
            target = own_module(name, known)
            allowed = rule_for(module)
            if target != module and not any(fits(target, rule) if rule else target == "" for rule in allowed):
                found.append(f"seqvae.{module} imports {name}")
        elif top in LIBRARIES and not any(fits(module, rule) for rule in LIBRARIES[top]):
            found.append(f"seqvae.{module} imports {name}")
    return found


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_only_what_the_table_allows(module: str) -> None:
    assert offences(module, modules()[module]) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("vae", "from seqvae.models import lstm"),
        ("models.lstm", "import seqvae.harness.trainer"),
        ("models.lstm", "from seqvae.models.conv import conv"),
        ("data.text.tokenizer", "from seqvae.data.midi import read_midi"),
        ("data.text.preparing", "from seqvae.vae import VAE"),
        ("data.text.reading", "import sentencepiece"),
        ("latent.sampling", "from seqvae.harness.config import load"),
        ("harness.trainer", "import pretty_midi"),
        ("harness.trainer", "from omegaconf import OmegaConf"),
        ("objectives.elbo", "def f():\n    import tests.helpers"),
        ("data.image.codec", "import data_prep.fashion_mnist"),
        ("data.image.codec", "import PIL"),
    ],
)
def test_the_table_can_fail(module: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "offender.py"
    path.write_text(line)
    assert len(offences(module, path)) == 1


@pytest.mark.parametrize(
    "name", ["schedules", "gaussian", "priors", "aggregate", "traversals", "vae", "objectives.", "evaluation"]
)
def test_the_mathematics_needs_torch_alone(name: str) -> None:
    paths = [path for module, path in modules().items() if fits(module, name)]
    assert paths
    others = {imported.split(".")[0] for path in paths for imported in imports(path)}
    assert others <= {*MATHEMATICS, "seqvae", "abc", "collections", "dataclasses", "math", "typing"}
