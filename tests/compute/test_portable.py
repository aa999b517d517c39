"""device.deterministic=portable: the bits of ten short runs, and what is refused."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import metarun
from metarun.compute.portable import ENVIRONMENT, pin_arithmetic
from metarun.errors import SettingError

TESTS = Path(__file__).resolve().parents[1]
BITS = json.loads((TESTS / "fixtures/portable_bits.json").read_text())
HERE = torch.__version__.partition("+")[0]
LACKS_AVX2 = platform.machine().lower() not in ("x86_64", "amd64") or not torch.cpu._is_avx2_supported()


def run_all(folder: Path, *overrides: str, ranks: int = 1, **environment: str) -> dict[str, str]:
    """The sha256 of the meta-parameters of each run, in processes of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    kept |= {"PYTHONPATH": str(TESTS.parent), "METARUN_CACHE": str(folder / "cache"), **environment}
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, str(TESTS / "helpers/portable_runs.py"), str(folder), *overrides]
    done = subprocess.run(command, env=kept, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.skipif(LACKS_AVX2, reason="portable bits need an x86-64 processor with AVX2")
def test_ten_runs_have_the_stored_bits(tmp_path: Path) -> None:
    """Another torch may have others: then the test names the runs that moved and is skipped."""
    stored = BITS["runs"]
    found = run_all(tmp_path, "device.deterministic=portable")
    moved = [name for name in stored if found[name] != stored[name]]
    if BITS["torch"] != HERE:
        pytest.skip(f"the bits are those of torch {BITS['torch']}; with {HERE} moved: {', '.join(moved) or 'none'}")
    assert not moved
    assert found.keys() == stored.keys()


def test_the_bits_are_those_of_the_torch_that_is_installed_by_make() -> None:
    """Who raises torch in constraints.txt renews the bits, and so sees which of them moved."""
    pinned = (TESTS.parent / "constraints.txt").read_text()
    assert f"torch=={BITS['torch']}\n" in pinned


@pytest.mark.long
@pytest.mark.skipif(LACKS_AVX2, reason="portable bits need an x86-64 processor with AVX2")
def test_they_do_not_depend_on_the_sines_of_the_system(tmp_path: Path) -> None:
    """glibc has its own kernels for processors with FMA, which GLIBC_TUNABLES switches off."""
    without = run_all(tmp_path, "device.deterministic=portable", GLIBC_TUNABLES="glibc.cpu.hwcaps=-AVX512F,-AVX2,-FMA")
    assert without == BITS["runs"] or BITS["torch"] != HERE


@pytest.mark.long
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.skipif(LACKS_AVX2, reason="portable bits need an x86-64 processor with AVX2")
def test_they_do_not_depend_on_the_number_of_ranks(ranks: int, tmp_path: Path) -> None:
    """Four tasks a step: two and two, or one, one and two."""
    assert run_all(tmp_path, "device.deterministic=portable", ranks=ranks) == BITS["runs"] or BITS["torch"] != HERE


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("device.compile=on", r"device.compile=.*: device.deterministic=portable needs off"),
        ("device.threads=2", "device.threads=2: device.deterministic=portable needs 1"),
        ("device.chunk_size=4", "device.chunk_size=4: device.deterministic=portable needs 1"),
        ("device.name=mps", "device.name=mps: device.deterministic=portable needs device=cpu"),
        ("device.deterministic=maybe", "device.deterministic=maybe: choices: true, false, portable"),
    ],
)
def test_settings_with_which_the_machine_counts_are_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        metarun.run(metarun.compose(["device.deterministic=portable", override]), tmp_path / "run")


def test_a_process_that_has_loaded_torch_without_the_variables_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        SettingError, match="torch is loaded already; start the process with ATEN_CPU_CAPABILITY='avx2'"
    ):
        pin_arithmetic()
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    pin_arithmetic()
