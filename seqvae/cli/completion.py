"""Tab completion: small scripts for three shells, which ask `seqvae __complete` for what could stand next."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from seqvae.cli.arguments import Commands
from seqvae.harness import conf_dir

QUESTION = "__complete"

# Bash also breaks words at = and @, so that it replaces only what follows the last of them: $2
BASH = f"""\
_seqvae() {{
    local line=${{COMP_LINE:0:COMP_POINT}} word words
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    word=${{words[-1]}}
    local IFS=$'\\n'
    COMPREPLY=($("${{words[0]}}" {QUESTION} "${{words[@]:1}}" 2> /dev/null))
    COMPREPLY=("${{COMPREPLY[@]#"${{word%"$2"}}"}}")
    if [[ ${{#COMPREPLY[@]}} -eq 1 && ${{COMPREPLY[0]}} == *[=./] ]]; then compopt -o nospace; fi
}}
complete -o default -F _seqvae seqvae
"""

ZSH = f"""\
#compdef seqvae
_seqvae() {{
    local -a found
    found=(${{(f)"$("${{words[1]}}" {QUESTION} "${{(@)words[2,CURRENT-1]}}" "$PREFIX" 2> /dev/null)"}})
    if (( $#found )); then
        compadd -S '' -- ${{(M)found:#*[=./]}}
        compadd -- ${{found:#*[=./]}}
    else
        compset -P '*='
        _files
    fi
}}
compdef _seqvae seqvae
"""

FISH = f"""\
function __seqvae_complete
    set -l words (commandline -opc)
    set -l word (commandline -ct)
    set -l found ($words[1] {QUESTION} $words[2..-1] "$word" 2> /dev/null)
    if set -q found[1]
        printf '%s\\n' $found
    else
        set -l key (string match -r '^[^=]*=' -- "$word")
        for path in (__fish_complete_path (string replace -- "$key" '' "$word"))
            echo "$key$path"
        end
    end
end
complete -c seqvae -f -a '(__seqvae_complete)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}

CONFIG_DIR = ("--config-dir", "-cd")

HYDRA_OPTIONS = ("--cfg", "--config-dir", "--help", "--info", "--multirun")


def add(commands: Commands) -> None:
    """Add `completion`."""
    help = 'a script that completes commands, experiments and keys: eval "$(seqvae completion bash)"'
    parser = commands.add_parser("completion", help=help, description=help)
    parser.add_argument("shell", choices=list(SCRIPTS))
    parser.set_defaults(run=lambda options: print(SCRIPTS[options.shell], end=""))


def candidates(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """Return what the last word could become, given those before it; nothing where it is a file's name.

    What ends in = or . or / is not yet the whole word.
    """
    *before, current = words or [""]
    found = _training(before[1:], current) if before[:1] == ["train"] else _command(parser, before, current)
    return sorted({word for word in found if word.startswith(current)})


def _command(parser: argparse.ArgumentParser, before: Sequence[str], current: str) -> list[str]:
    option: argparse.Action | None = None
    for word in before:
        actions = parser._actions
        option = next((action for action in actions if word in action.option_strings and action.nargs != 0), None)
        branch = next((action for action in actions if isinstance(action, argparse._SubParsersAction)), None)
        if branch is not None and word in branch.choices:
            parser = branch.choices[word]
    if option is not None:
        return [str(choice) for choice in option.choices or ()]
    if current.startswith("-"):
        return [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
    found: list[str] = []
    for action in parser._actions:
        if not action.option_strings:
            found += [str(choice) for choice in action.choices or ()]
            if action.metavar in ("CKPT", "RUN"):
                found += _runs(current)
    return found


def _runs(current: str) -> Iterator[str]:
    """Yield the run directories below what is typed; those in runs/ where nothing is."""
    run, at, _ = current.rpartition("@")
    if at:
        yield from (f"{run}@best", f"{run}@last")
        return
    typed = Path(current.rpartition("/")[0]) if "/" in current else Path("runs")
    for pattern in ("*/checkpoints", "*/*/checkpoints"):
        yield from (path.parent.as_posix() for path in typed.glob(pattern))


def _training(before: Sequence[str], current: str) -> Iterator[str]:
    """Yield Hydra's options, the keys one dot further, or the values of a key."""
    if current.startswith("-"):
        yield from HYDRA_OPTIONS
        return
    if before and before[-1] in CONFIG_DIR:
        return
    if before and before[-1] == "--cfg":
        yield from ("all", "hydra", "job")
        return
    folders = [conf_dir(), *(Path(value) for name, value in pairwise(before) if name in CONFIG_DIR)]
    keys = _keys(folders, dict(word.split("=", 1) for word in before if "=" in word))
    key, equals, value = current.partition("=")
    if equals:
        several, comma, _ = value.rpartition(",")  # model=lstm,conv sweeps
        yield from (f"{key}={several}{comma}{choice}" for choice in _values(folders, keys, key, value))
        return
    yield from (f"{group}=" for group in keys.groups)
    typed = current[: current.rfind(".") + 1]
    for name in keys.values:
        if name.startswith(typed):
            part, dot, _ = name.removeprefix(typed).partition(".")
            yield f"{typed}{part}{dot or '='}"


class _Keys(NamedTuple):
    """What `seqvae train` takes: keys with a value each, and keys that choose one of the files of a folder."""

    values: dict[str, Any]
    groups: set[str]  # model, schedule@learning_rate


def _values(folders: Sequence[Path], keys: _Keys, key: str, value: str) -> list[str]:
    if key in keys.groups:
        return _options(folders, key.partition("@")[0])
    if key == "resume":
        return ["auto", *_runs(value)]
    return ["true", "false"] if isinstance(keys.values.get(key), bool) else []


def _keys(folders: Sequence[Path], chosen: dict[str, str]) -> _Keys:
    """Return the keys of train.yaml and of the groups it names: of those `chosen`, else of all their files."""
    keys = _Keys({}, set())

    def collect(name: str, package: str, told: bool) -> None:
        import yaml

        for path in (folder / f"{name}.yaml" for folder in folders):
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
            if "@package _global_" in text:  # an experiment: its keys are those of the parts it chooses, or its own
                if not told:
                    continue
                package = ""
            node = yaml.safe_load(text) or {}
            for entry in node.pop("defaults", []):
                if isinstance(entry, dict):
                    descend(next(iter(entry)), package)
            node.pop("hydra", None)
            keys.values.update(_leaves(node, package))

    def descend(entry: str, package: str) -> None:
        if entry.startswith("override "):
            return
        group, _, at = entry.removeprefix("/").partition("@")
        inner = ".".join(part for part in (package, at or group) if part)
        key = group if inner == group else f"{group}@{inner}"
        keys.groups.add(key)
        for option in chosen[key].split(",") if key in chosen else _options(folders, group):
            collect(f"{group}/{option}", inner, key in chosen)

    collect("train", "", told=True)
    return keys


def _leaves(node: Any, package: str) -> dict[str, Any]:
    if not isinstance(node, dict):
        return {package: node}
    return {
        key: value
        for name, child in node.items()
        if name != "_target_"
        for key, value in _leaves(child, f"{package}.{name}" if package else str(name)).items()
    }


def _options(folders: Sequence[Path], group: str) -> list[str]:
    """Return the names that a group can have."""
    return [
        path.relative_to(folder / group).with_suffix("").as_posix()
        for folder in folders
        for path in (folder / group).rglob("*.yaml")
    ]
