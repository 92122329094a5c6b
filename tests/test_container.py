"""The Dockerfile and the development container, without Docker: pinned, without rights, secrets or missing files."""

import json
import re
import shlex
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

SECRET = re.compile(r"token|secret|passw|credential|api_?key|private_?key", re.IGNORECASE)


def instructions(repository: Path) -> list[tuple[str, str]]:
    """Return (instruction, arguments) of the Dockerfile; lines that continue are joined, comments left out."""
    lines = [line for line in (repository / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    found = [tuple(line.split(None, 1)) for line in joined if line.strip()]
    known = {"FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "CMD"}
    assert {name for name, _ in found} <= known, "another instruction needs a check here (ADD, ARG, VOLUME, ...)"
    return found


def stages(repository: Path) -> dict[str, list[tuple[str, str]]]:
    """Return the instructions of each stage, with those of the stages that it starts from, by name."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, arguments in instructions(repository):
        if name == "FROM":
            base, _, stage = arguments.split()
            found[stage] = list(found.get(base, []))
        found[stage].append((name, arguments))
    return found


@pytest.fixture(scope="module")
def tracked(repository: Path) -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no git checkout")
    return done.stdout.splitlines()


def test_the_base_is_pinned_and_its_python_supported(repository: Path) -> None:
    specifiers = pytest.importorskip("packaging.specifiers")
    bases = [arguments.split()[0] for name, arguments in instructions(repository) if name == "FROM"]
    outside = [base for base in bases if base not in stages(repository)]
    assert outside, "a stage starts from an image"
    for base in outside:
        found = re.fullmatch(r"python:(\d+\.\d+\.\d+)-slim-[a-z]+", base)
        assert found, f"{base}: give a version of three numbers"
        project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
        assert specifiers.SpecifierSet(project["requires-python"]).contains(found[1])


@pytest.mark.parametrize("stage", ["development", "runtime"])
def test_a_stage_ends_as_a_user_without_rights(repository: Path, stage: str) -> None:
    found = stages(repository)[stage]
    users = [arguments for name, arguments in found if name == "USER"]
    assert users and users[-1].split(":")[0] not in ("root", "0")
    made = [arguments for name, arguments in found if name == "RUN" and "useradd" in arguments]
    assert any(users[-1] in shlex.split(line) for line in made), "the user exists"
    last = max(index for index, (name, _) in enumerate(found) if name == "USER")
    assert all(name == "CMD" for name, _ in found[last + 1 :]), "nothing is installed as the user, or after it"


def test_no_secrets_and_no_package_lists(repository: Path) -> None:
    for name, arguments in instructions(repository):
        assert not SECRET.search(arguments), f"{name} {arguments}"
        assert "apt-get install" not in arguments or (
            "--no-install-recommends" in arguments and arguments.endswith("rm -rf /var/lib/apt/lists/*")
        )
        assert not re.search(r"curl|wget|https?://", arguments), "packages come from package managers alone"


def test_what_is_copied_exists_and_nothing_else_is_sent(repository: Path, tracked: list[str]) -> None:
    ignored = [line for line in (repository / ".dockerignore").read_text().splitlines() if line[:1] not in ("#", "")]
    assert ignored[0] == "*", "nothing is sent unless it is named"
    kept = {line[1:] for line in ignored if line.startswith("!")}
    copied = set()
    for name, arguments in instructions(repository):
        if name == "COPY":
            *sources, _ = arguments.split()
            copied |= set(sources)
    assert copied == kept
    for source in copied:
        files = [file for file in tracked if file == source or file.startswith(f"{source}/")]
        assert files, f"{source} is not part of the repository"
    for private in ("configs/local.yaml", "labels/froster"):
        assert any(fnmatch(private, pattern) for pattern in ignored[1:] if not pattern.startswith("!"))


def test_the_packages_are_those_of_the_project(repository: Path) -> None:
    (line,) = [arguments for name, arguments in instructions(repository) if name == "RUN" and "tomllib" in arguments]
    code = shlex.split(line.split(">")[0])
    done = subprocess.run(["python3", *code[1:]], cwd=repository, capture_output=True, text=True, check=True)
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert done.stdout.splitlines() == project["dependencies"] and "--constraint constraints.txt" in line


def test_the_command_is_one_of_the_project(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    (command,) = [json.loads(arguments) for name, arguments in instructions(repository) if name == "CMD"]
    assert command[0] in project["scripts"]


def test_the_development_container(repository: Path) -> None:
    content = json.loads((repository / ".devcontainer" / "devcontainer.json").read_text())
    folder = repository / ".devcontainer"
    assert (folder / content["build"]["dockerfile"]).resolve() == repository / "Dockerfile"
    assert (folder / content["build"]["context"]).resolve() == repository
    stage = stages(repository)[content["build"]["target"]]
    assert content["remoteUser"] == [arguments for name, arguments in stage if name == "USER"][-1]
    assert any(argument.startswith("--shm-size=") for argument in content["runArgs"]), "workers need /dev/shm"
    command = shlex.split(content["postCreateCommand"])
    assert subprocess.run(["bash", "-n", "-c", command[-1]], check=False).returncode == 0
    for name in re.findall(r"[\w./-]+\.(?:sh|txt)", command[-1]):
        assert (repository / name).is_file(), name
