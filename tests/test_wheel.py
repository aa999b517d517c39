"""The built wheel carries the configuration, and runs from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("metarun-*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_every_setting_and_nothing_else(wheel: Path) -> None:
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "metarun").rglob("*.py")}
    page = ROOT / "metarun/report/page"
    files = {str(p.relative_to(ROOT)) for name in ("templates", "uplot") for p in (page / name).iterdir()}
    settings = {f"metarun/{p.relative_to(ROOT)}" for p in (ROOT / "conf").rglob("*.yaml") if "local" not in p.parts}
    assert modules | files | settings | {"metarun/conf/__init__.py"} == names


@pytest.mark.slow
def test_an_installed_wheel_runs_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    """In a fresh environment that sees the installed dependencies, but not this checkout."""
    environment, elsewhere = tmp_path / "env", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=120)
    scheme = {"base": str(environment), "platbase": str(environment)}
    site = Path(sysconfig.get_path("purelib", vars=scheme))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    binaries = Path(sysconfig.get_path("scripts", vars=scheme))
    install = [binaries / "python", "-m", "pip", "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    tiny = ["train.steps=2", "val.tasks=2", "test.tasks=2", "device.compile=false"]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [binaries / "metarun", *tiny], cwd=elsewhere, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert list((elsewhere / "outputs").glob("*/*/summary.json"))
    assert list((elsewhere / "outputs").glob("*/*/report.html"))  # its template is in the wheel
    where = [binaries / "python", "-c", "import metarun; print(metarun.__file__)"]
    found = subprocess.run(where, cwd=elsewhere, env=env, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(site))
