"""What `seqvae doctor` says of a machine is what the machine does."""

import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import seqvae
from seqvae.cli import main
from seqvae.harness import machine
from seqvae.harness.engine import Engine

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def test_doctor_prints_the_facts_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["seqvae"] == seqvae.__version__
    assert found["system"]["torch_threads"] == torch.get_num_threads()
    assert found["devices"][0] == "cpu"
    assert found["gloo"] == torch.distributed.is_gloo_available()
    assert found["precisions"]["32-true"] == {"lstm": "ok", "conv": "ok"}
    assert found["precisions"]["64-true"] == {"lstm": "ok", "conv": "ok"}
    assert found["gemm_peak_gflops"].keys() == {"float32", "bfloat16"}
    assert min(found["gemm_peak_gflops"].values()) > 0


def test_doctor_prints_lines_for_people(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gemm_peak", lambda size, dtype: 12.34 * dtype.itemsize)
    monkeypatch.setattr(machine, "extras", lambda: {"sweep": False})
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert f"torch              {torch.__version__}\n" in out
    assert "32-true            lstm: ok; conv: ok\n" in out
    assert "[sweep]            missing: pip install 'seqvae[sweep]' (" in out
    assert "gemm_peak          49.4 in float32, 24.7 in bfloat16 GFLOP/s with torch_threads" in out
    assert err == ""


def test_a_precision_that_cannot_train_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("could not create a primitive descriptor\nand a second line")

    assert machine.precisions()["32-true"] == {"lstm": "ok", "conv": "ok"}
    monkeypatch.setattr(Engine, "backward", broken)
    assert machine.precisions()["32-true"] == dict.fromkeys(("lstm", "conv"), "could not create a primitive descriptor")


def test_the_gemm_peak_is_the_median_rate_of_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 9.0, 9.0, 11.0, 11.0, 13.0, 13.0, 18.0, 18.0])
    monkeypatch.setattr(machine, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert machine.gemm_peak(size=100, seconds=1.0) == 2 * 100**3 / 2.0 / 1e9  # 9 s to set up, then 2, 2 and 5 s


@pytest.mark.parametrize(("size", "seconds"), [(0, 1.0), (8, 0.0), (8, float("nan"))])
def test_the_gemm_peak_needs_a_size_and_a_time(size: int, seconds: float) -> None:
    with pytest.raises(ValueError, match=f"must be positive, got {size} and {seconds}"):
        machine.gemm_peak(size, seconds)


def test_every_extra_of_the_package_is_explained() -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    assert machine.EXTRAS.keys() == project["optional-dependencies"].keys()


def test_an_extra_counts_as_installed_when_all_of_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["torch>=2", "symusic; extra == 'examples'", "torch; extra == 'sweep'", "no-such-thing; extra == 'sweep'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: wanted)
    monkeypatch.setattr(machine, "_version", lambda name: None if name == "no-such-thing" else "1")
    assert machine.extras() == {name: name != "sweep" for name in machine.EXTRAS}
