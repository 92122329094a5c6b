"""The sources compile, without a warning, on every Python version that the project supports."""

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest


def matrix_of(repository: Path) -> ModuleType:
    """Return the script of the version matrix as a module."""
    spec = importlib.util.spec_from_file_location("matrix", repository / "scripts" / "test_matrix.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_sources_compile(version: str, repository: Path, tmp_path: Path) -> None:
    matrix = matrix_of(repository)
    assert version in matrix.PYTHONS
    interpreter = matrix.find_interpreter(version)
    if interpreter is None:
        pytest.skip(f"there is no Python {version}")
    (tmp_path / "wrong.py").write_text('"\\d"\n')
    arguments = ["-W", "error", "-X", f"pycache_prefix={tmp_path / 'cache'}", "-m", "compileall", "-q"]
    sources = [repository / name for name in ("main.py", "tc_clip", "video_datasets", "trainers", "scripts", "tests")]
    done = subprocess.run([interpreter, *arguments, *sources], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert subprocess.run([interpreter, *arguments, tmp_path / "wrong.py"], capture_output=True).returncode == 1
