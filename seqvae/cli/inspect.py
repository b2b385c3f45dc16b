"""Commands that show what there is: list, info, doctor."""

from __future__ import annotations

import argparse
import json

from seqvae.cli.arguments import Commands, add_command, open_checkpoint


def add(commands: Commands) -> None:
    """Add the commands of this file."""
    listing = commands.add_parser("list", help="show the experiments and what they promise")
    listing.set_defaults(run=lambda options: print_experiments())

    info = add_command(commands, "info", "what a checkpoint holds; verifies every file of it", _info)
    info.add_argument("--json", action="store_true", help="print JSON instead of lines")

    help = "versions, devices, the precisions that work here, and the speed of this machine"
    doctor = commands.add_parser("doctor", help=help, description=help)
    doctor.add_argument("--json", action="store_true", help="print JSON instead of lines")
    doctor.set_defaults(run=_doctor)


def print_experiments() -> None:
    """Print every shipped experiment and the header of its file."""
    from seqvae.harness import conf_dir

    experiments = conf_dir() / "experiment"
    for path in sorted(experiments.rglob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        header = [line.removeprefix("#").strip() for line in lines if line.startswith("#") and "@package" not in line]
        print("\n    ".join([path.relative_to(experiments).with_suffix("").as_posix(), *header]))


def _info(options: argparse.Namespace) -> None:
    trained = open_checkpoint(options)
    sizes = {
        part: sum(parameter.numel() for parameter in getattr(trained.vae, part).parameters())
        for part in ("encoder", "decoder", "prior")
    }
    facts = {
        "checkpoint": str(trained.path),
        **{name: value for name, value in trained.config.items() if name not in ("format",)},
        "codec": type(trained.codec).__name__,
        "codec_options": trained.codec.options,
        "parameters": sizes,
        "verified": True,
    }
    if options.json:
        print(json.dumps(facts, indent=1))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {part}" for key, part in value.items())
        print(f"{name:<14} {value}")


def _doctor(options: argparse.Namespace) -> None:
    import torch

    from seqvae.harness import machine

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    # small products, for a processor that has to imitate bfloat16
    peaks = {name: machine.gemm_peak(512, dtype=dtype) for name, dtype in dtypes.items()}
    found = {**machine.facts(), "precisions": machine.precisions(), "gemm_peak_gflops": peaks}
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, version in found["versions"].items():
        print(f"{name:<18} {version or 'not installed'}")
    for name, value in found["system"].items():
        print(f"{name:<18} {'not set' if value is None else value}")
    print(f"{'devices':<18} {', '.join(found['devices'])}")
    print(f"{'gloo':<18} {'available' if found['gloo'] else 'missing'} (trainer.devices=2 on a CPU)")
    for name, works in found["precisions"].items():
        print(f"{name:<18} " + "; ".join(f"{network}: {answer}" for network, answer in works.items()))
    for name, installed in found["extras"].items():
        state = "installed" if installed else f"missing: pip install 'seqvae[{name}]'"
        print(f"{'[' + name + ']':<18} {state} ({machine.EXTRAS[name]})")
    rates = ", ".join(f"{peak:.1f} in {name}" for name, peak in peaks.items())
    print(f"{'gemm_peak':<18} {rates} GFLOP/s with torch_threads {found['system']['torch_threads']}")
