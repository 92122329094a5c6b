#!/usr/bin/env python3
"""Install the package into new environments and run a quick part of the tests: each Python x oldest, newest versions.

    python scripts/test_matrix.py                                   # every combination, one after the other
    python scripts/test_matrix.py --cells 3.11:oldest 3.13:newest   # some of them

`oldest` takes the lower bounds of pyproject.toml, `newest` what pip finds within its bounds. An interpreter is looked
for on the PATH and among pyenv's; a combination without one is skipped. An environment takes about 6 GB of disk and is
deleted afterwards. With --borrow the oldest versions of PyTorch and others are taken from an environment that has them.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
VERSIONS = ("oldest", "newest")
TESTS = (
    "tests/tc_clip/test_golden.py::test_train_step",
    "tests/tc_clip/test_golden.py::test_prompts_of_class_names",
    "tests/tc_clip/test_clip_libraries.py",
    "tests/test_configs.py",
    "tests/video_datasets/test_decoding.py",
    "tests/test_install.py",
)
SHOWN = ("torch", "numpy", "omegaconf", "hydra-core", "av", "timm", "transformers")


class Result(NamedTuple):
    """What happened to one combination of Python and versions."""

    python: str
    versions: str
    outcome: str  # passed, failed or skipped
    note: str
    seconds: float = 0.0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    cells = [f"{python}:{versions}" for python in PYTHONS for versions in VERSIONS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=cells, default=cells, metavar="PYTHON:VERSIONS", help="(all)")
    parser.add_argument("--borrow", type=Path, help="an environment with packages to use, as .venv")
    parser.add_argument("--folder", type=Path, help="where the environments are made (a temporary folder)")
    parser.add_argument("tests", nargs="*", default=TESTS, help="arguments of pytest (a quick part of the tests)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Test every combination; return 0, or 1 if one failed."""
    args = parse(argv)
    results = []
    for cell in args.cells:
        python, versions = cell.split(":")
        with tempfile.TemporaryDirectory(prefix="matrix_", dir=args.folder) as folder:
            results.append(test(python, versions, Path(folder), args.tests, args.borrow))
        result = results[-1]
        print(
            f"python {python}, {versions} versions: {result.outcome} ({result.note}), {result.seconds:.0f} s",
            flush=True,
        )
    return int(any(result.outcome == "failed" for result in results))


def test(python: str, versions: str, folder: Path, tests: list[str], borrow: Path | None) -> Result:
    """Install one combination into a folder, and run tests with it."""
    interpreter = find_interpreter(python)
    if interpreter is None:
        return Result(python, versions, "skipped", "no such interpreter")
    started = time.monotonic()
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run([interpreter, "-m", "venv", folder / "venv"], check=True)
    command = folder / "venv" / "bin" / "python"
    if borrow is not None and versions == "oldest":  # pip keeps what it finds: the newest versions would not come
        borrow_packages(command, borrow)
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{line}\n" for line in lower_bounds()) if versions == "oldest" else "")
    install = [str(command), "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    install += ["--constraint", str(constraints), f"{copy_of_sources(folder)}[test]"]
    if subprocess.run(install, env=environment, check=False).returncode:
        return Result(python, versions, "failed", "installing failed", time.monotonic() - started)
    shown = ", ".join(f"{name} {version}" for name, version in versions_of(command))
    pytest = [str(command), "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    failed = subprocess.run(pytest, cwd=REPOSITORY, env=environment, check=False).returncode
    return Result(python, versions, "failed" if failed else "passed", shown, time.monotonic() - started)


def find_interpreter(python: str) -> str | None:
    """Return the path of an interpreter of a version such as `3.11`."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python{python}"), *sorted(map(str, pyenv.glob(f"{python}.*/bin/python")))]
    return next((path for path in found if path is not None and version_of(path) == python), None)


def version_of(python: str | Path) -> str | None:
    """Return the version of an interpreter as `3.11`, None for a program that does not run."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def borrow_packages(python: Path, borrow: Path) -> None:
    """Let an environment find the packages of another one, behind its own, if both have the same Python."""
    lender = borrow.resolve() / "bin" / "python"
    if lender.exists() and version_of(lender) == version_of(python):
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        own, borrowed = (
            subprocess.run([each, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
            for each in (python, lender)
        )
        Path(own, "borrowed.pth").write_text(f"{borrowed}\n")


def copy_of_sources(folder: Path) -> Path:
    """Copy what the wheel is built from, so that building leaves nothing in the checkout."""
    sources = folder / "sources"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("tc_clip", "video_datasets", "trainers", "configs", "labels"):
        shutil.copytree(REPOSITORY / name, sources / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(REPOSITORY / name, sources)
    return sources


def lower_bounds() -> Iterator[str]:
    """Yield the oldest versions that pyproject.toml allows as constraints: `numpy==1.26.*; python_version < '3.13'`."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for line in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        requirement, _, marker = line.partition(";")
        found = re.fullmatch(r"([\w-]+)(>=|==)([\d.]+).*", requirement.strip())
        if found is None:
            raise ValueError(f"pyproject.toml: {line} has no lower bound")
        name, kind, version = found.groups()
        exact = (
            version
            if kind == "==" or version.count(".") > 1
            else f"{version}.*"
            if "." in version
            else f"{version}.0.*"
        )
        yield f"{name}=={exact}" + (f";{marker}" if marker else "")


def versions_of(python: Path) -> list[list[str]]:
    """Return name and version of the packages that decide most."""
    code = f"from importlib.metadata import version\nfor name in {SHOWN}: print(name, version(name))"
    done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    return [line.split() for line in done.stdout.splitlines()]


if __name__ == "__main__":
    sys.exit(main())
