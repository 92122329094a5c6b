"""What `pip install .` brings: the wheel's files, its commands outside a checkout, the ranges of versions."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

import tc_clip

Call = Callable[..., subprocess.CompletedProcess[str]]
SOURCES = ("tc_clip", "video_datasets", "trainers", "configs", "labels")
SHAPES = ["--train-clips", "2", "--val-clips", "1", "--shots", "2", "--base2novel-shots", "2"]
TRAIN = ["-cn", "few_shot", "data=few_shot_shapes", "shot=2", "trainer=tc_clip_tiny", "num_workers=0"]
TRAIN += ["epochs=1", "warmup_epochs=0", "batch_size=8", "total_batch_size=8", "test_batch_size=48"]


def python_environment() -> dict[str, str]:
    """Return the environment without what would make Python find the checkout."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "TC_CLIP_LOCAL")}


@pytest.fixture(scope="session")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel of a copy of the checkout, in which the user has files of their own."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copytree(repository / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(repository / name, folder / "source")
    (folder / "source" / "configs" / "local.yaml").write_text("data_root: /private\n")
    (folder / "source" / "labels" / "froster").mkdir(exist_ok=True)
    (folder / "source" / "labels" / "froster" / "mine.csv").write_text("id,name\n0,private\n")
    # With a recent setuptools here the build downloads nothing.
    is_recent = importlib.util.find_spec("setuptools") and int(metadata.version("setuptools").split(".")[0]) >= 77
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-input", "--no-deps", "--wheel-dir", str(folder)]
    command += ["--no-build-isolation"] if is_recent else []
    done = subprocess.run([*command, str(folder / "source")], capture_output=True, text=True, env=python_environment())
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the commands of a new environment, which borrows all packages but this project's."""
    environment = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip())
    # A folder named in a .pth file is searched; the .pth files in it, as that of an editable install, are not read.
    folders = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "borrowed.pth").write_text("\n".join(folders) + "\n")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--ignore-installed", str(wheel)]
    subprocess.run(command, check=True, env=python_environment())
    return environment / "bin"


@pytest.fixture
def call(installed: Path, tmp_path: Path) -> Call:
    """Return a function that runs an installed command in an empty folder."""

    def run(*words: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(installed / words[0]), *words[1:]]
        variables = python_environment() | environment
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300)
        assert done.returncode == status, done.stdout + done.stderr
        return done

    return run


def files_of(repository: Path) -> Iterator[str]:
    """Yield what the wheel must hold, as paths in the wheel."""
    for name in SOURCES:
        for path in (repository / name).rglob("*"):
            relative = path.relative_to(repository)
            is_private = relative.name == "local.yaml" or {"local", "froster", "__pycache__"} & set(relative.parts[:-1])
            if path.is_file() and not is_private:
                yield f"trainers/{relative}" if name in ("configs", "labels") else str(relative)


def test_the_wheel_holds_every_file_and_no_private_one(wheel: Path, repository: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == set(files_of(repository))
    # A name that is common, such as `datasets`, would share its folder with another project's package.
    assert {name.split("/")[0] for name in packed} == {"tc_clip", "video_datasets", "trainers"}


@pytest.mark.slow
def test_commands_outside_a_checkout(call: Call, tmp_path: Path) -> None:
    assert "make-shapes" in call("tc-clip", "--help").stdout
    help_text = call("tc-clip-train", "--help").stdout
    assert "usage: tc-clip-train -cn" in help_text and "few_shot_shapes" in help_text
    assert "tc-clip-train --help" in call("tc-clip-train", status=2).stderr
    call("tc-clip", "make-shapes", "--output", "data/shapes", *SHAPES)
    assert "dry run" in call("tc-clip-train", *TRAIN, "output=runs/dry", "dry_run=true").stdout
    call("tc-clip-train", *TRAIN, "output=runs/first", "logging.report=false", "logging.pictures=false")
    video = next((tmp_path / "data" / "shapes" / "videos").iterdir())
    command = ["tc-clip", "predict", str(video), "--checkpoint", "runs/first/best.pth", "--classes", "hmdb51"]
    assert "51 classes" in call(*command, "--top", "1").stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "runs"]


def test_configurations_of_the_working_folder(call: Call, tmp_path: Path) -> None:
    (tmp_path / "configs" / "data").mkdir(parents=True)
    (tmp_path / "configs" / "local.yaml").write_text("data_root: /fast\n")
    (tmp_path / "configs" / "other.yaml").write_text("data_root: /other\n")
    own = "# @package _global_\ndefaults: [few_shot_ucf101]\ndata: {name: few_shot_mine}\n"
    (tmp_path / "configs" / "data" / "few_shot_mine.yaml").write_text(own)
    command = ["tc-clip-train", "-cn", "few_shot", "data=few_shot_mine", "output=x", "--cfg", "job", "--resolve"]
    printed = call(*command).stdout
    assert "root: /fast/ucf101" in printed and "name: few_shot_mine" in printed
    assert "root: /other/ucf101" in call(*command, TC_CLIP_LOCAL="other").stdout
    assert "few_shot_mine" in call("tc-clip-train", "--help").stdout


def test_class_names_of_the_configurations_are_found(installed: Path, tmp_path: Path) -> None:
    code = (
        "from trainers.config.compose import compose_config; from trainers.paths import find_labels\n"
        "settings = compose_config('zero_shot', ['data=zero_shot_k400', 'output=x'])\n"
        "print(*(find_labels(entry['class_names']) for entry in settings.data.test))\n"
        "print(find_labels('labels/mine.csv'))"
    )
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "mine.csv").write_text("id,name\n")
    done = subprocess.run(
        [installed / "python", "-c", code], cwd=tmp_path, env=python_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found, mine = done.stdout.splitlines()
    assert len(found.split()) > 3 and all(Path(path).is_file() for path in found.split())
    assert mine == "labels/mine.csv", "a file of the working folder comes first"


@pytest.mark.slow
def test_new_data_sets_are_made_in_the_working_folder(call: Call, tmp_path: Path, shape_clips: list[Path]) -> None:
    for number, clip in enumerate(shape_clips[:4] * 2):
        folder = tmp_path / "videos" / ("red", "blue")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, folder / f"{number}.mp4")
    printed = call("tc-clip", "data", "new_dataset", "colours", "--videos", "videos", "--shots", "2").stdout
    assert "try: tc-clip-train -cn few_shot data=few_shot_colours shot=2" in printed
    call("tc-clip-train", *TRAIN, "data=few_shot_colours", "output=runs/dry", "dry_run=true")


def test_one_list_of_requirements(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    for name, installs in (("", "-e ."), ("-extra", "-e .[web,export,siglip]"), ("-dev", "-e .[dev]")):
        lines = (repository / f"requirements{name}.txt").read_text().splitlines()
        assert [line for line in lines if not line.startswith("#")] == ["-c constraints.txt", installs]
    wanted = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    names = {re.match(r"[\w-]+", line)[0].lower().replace("_", "-") for line in wanted} - {"tc-clip"}
    pinned = [line for line in (repository / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert sorted({line.split("==")[0].lower().replace("_", "-") for line in pinned}) == sorted(names)
    assert pinned == sorted(pinned, key=str.lower)


def test_constraints_lie_in_the_ranges(repository: Path) -> None:
    requirements = pytest.importorskip("packaging.requirements")
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    lines = (repository / "constraints.txt").read_text().splitlines()
    versions = dict(line.lower().replace("_", "-").split("==") for line in lines if not line.startswith("#"))
    extras = project["optional-dependencies"].values()
    for line in [*project["dependencies"], *(line for extra in extras for line in extra)]:
        requirement = requirements.Requirement(line)
        if requirement.name != "tc-clip":
            version = versions[requirement.name.lower().replace("_", "-")]
            assert requirement.specifier.contains(version), f"{line}: {version}"


def test_the_version_has_one_source(call: Call, wheel: Path) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", tc_clip.__version__)
    assert call("tc-clip", "--version").stdout.strip() == tc_clip.__version__ == wheel.name.split("-")[1]


def test_hugging_face_datasets_is_another_package() -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")
    import video_datasets

    assert datasets.Dataset.from_dict({"a": [1]})[0] == {"a": 1}
    assert video_datasets.decode.__module__.startswith("video_datasets.")


@pytest.fixture
def scripts(repository: Path, tmp_path: Path) -> Path:
    """Return a copy of the scripts in a folder without an environment."""
    return shutil.copytree(repository / "scripts", tmp_path / "checkout" / "scripts")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("quickstart.sh", ["--help"]), ("quickstart.sh", ["seed=1", "-h"]), ("test.sh", ["--help"])],
)
def test_help_of_scripts_installs_nothing(scripts: Path, name: str, arguments: list[str]) -> None:
    command = ["bash", str(scripts / name), *arguments]
    done = subprocess.run(command, env={"PATH": "/usr/bin:/bin", "PYTHON": "/nowhere"}, capture_output=True, text=True)
    assert done.returncode == 0 and f"bash scripts/{name} [" in done.stdout
    assert [path.name for path in scripts.parent.iterdir()] == ["scripts"]


def test_the_quickstart_refuses_other_arguments_before_it_installs(scripts: Path) -> None:
    command = ["bash", str(scripts / "quickstart.sh"), "seed=1", "--epochs"]
    done = subprocess.run(command, env={"PATH": "/usr/bin:/bin", "PYTHON": "/nowhere"}, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "quickstart.sh: --epochs: the form is key=value; --help explains\n"
    assert [path.name for path in scripts.parent.iterdir()] == ["scripts"]


@pytest.mark.parametrize(("version", "is_accepted"), [("10", False), ("11", True), ("13", True), ("14", False)])
def test_versions_of_python_that_are_accepted(
    scripts: Path, repository: Path, tmp_path: Path, version: str, is_accepted: bool
) -> None:
    python = tmp_path / "python"
    patched = f"import sys; sys.version_info = (3, {version}, 0); exec(sys.argv[1])"
    python.write_text(
        f'#!/bin/bash\n[[ "$1" != --version ]] || exec echo Python 3.{version}.0\n'
        f'[[ "$1" != -m ]] || exit 3\nexec {sys.executable} -c \'{patched}\' "$2"\n'
    )
    python.chmod(0o755)
    code = "source scripts/environment.sh; prepare_environment requirements.txt"
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(python)}
    done = subprocess.run(
        ["bash", "-c", code], cwd=scripts.parent, env=environment, capture_output=True, text=True, check=False
    )
    # An accepted interpreter is asked for a virtual environment, which this one cannot create.
    message = "-m venv' failed" if is_accepted else f"is Python 3.{version}.0; Python 3.11, 3.12 or 3.13 is needed"
    assert done.returncode == 1 and message in done.stderr
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    specifiers = pytest.importorskip("packaging.specifiers")
    assert specifiers.SpecifierSet(project["requires-python"]).contains(f"3.{version}.0") == is_accepted
