"""The scripts of the paper's table rows: their commands compose, and cover every row."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.documents import REPOSITORY, compose_config
from trainers.config.resolve import resolve

SCRIPTS = sorted(path for kind in ("train", "eval") for path in (REPOSITORY / "scripts" / kind).glob("*.sh"))
TRAINED = {"zero_shot": 2, "fully_supervised": 1, "few_shot": 12 + 8 + 12, "base2novel": 12 + 9 + 9}


def commands(script: Path, *arguments: str, **environment: str) -> list[list[str]]:
    """Return the arguments of main.py in every command that a script would run."""
    done = subprocess.run(
        ["bash", str(script), "--dry-run", *arguments],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    for line in lines:
        assert line[0] == "torchrun" and "main.py" in line
    return [line[line.index("main.py") + 1 :] for line in lines]


@pytest.fixture(scope="module")
def by_script() -> dict[Path, list[list[str]]]:
    return {script: commands(script) for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_commands_compose(by_script: dict[Path, list[list[str]]], script: Path) -> None:
    seen = set()
    for arguments in by_script[script]:
        assert arguments[0] == "-cn"
        protocol, overrides = arguments[1], arguments[2:]
        # The number of shots or of the list only changes a file name.
        shape = (protocol, *(re.sub(r"\d+$", "", item) for item in overrides if "=runs" not in item))
        if shape in seen:
            continue
        seen.add(shape)
        settings = resolve(compose_config(protocol, *overrides))
        assert settings.trainer.name == "tc_clip"
        assert (settings.eval == "test") == (script.parent.name == "eval")
        assert (settings.resume is not None) == (script.parent.name == "eval" or "pretrained" in script.stem)


def test_every_row_of_the_tables_is_covered(by_script: dict[Path, list[list[str]]]) -> None:
    for kind in ("train", "eval"):
        runs = [arguments for script in SCRIPTS if script.parent.name == kind for arguments in by_script[script]]
        counts = {protocol: sum(arguments[1] == protocol for arguments in runs) for protocol in TRAINED}
        assert counts == TRAINED
        outputs = [item for arguments in runs for item in arguments if item.startswith("output=")]
        assert len(outputs) == len(set(outputs)) == len(runs)


def test_every_trained_checkpoint_is_tested(by_script: dict[Path, list[list[str]]]) -> None:
    def values(kind: str, key: str) -> set[str]:
        found = {
            item for script in SCRIPTS if script.parent.name == kind for line in by_script[script] for item in line
        }
        return {item.removeprefix(key) for item in found if item.startswith(key)}

    trained = values("train", "output=")
    assert values("eval", "resume=") == {f"{run}/best.pth" for run in trained}
    assert values("eval", "output=") == {f"{run}/eval" for run in trained}


def test_environment_and_arguments_reach_the_command() -> None:
    script = REPOSITORY / "scripts" / "train" / "few_shot_pretrained.sh"
    done = subprocess.run(
        ["bash", str(script), "--dry-run", "num_workers=3", "seed=7"],
        env={"PATH": "/usr/bin:/bin", "GPUS": "2", "RUNS": "here", "DATA": "ucf101", "SHOTS": "4"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "torchrun --standalone --local-addr=127.0.0.1 --nproc_per_node=2 main.py -cn few_shot data=few_shot_ucf101 "
        "shot=4 resume=here/zero_shot/k400/best.pth output=here/few_shot_pretrained/ucf101/shot4 num_workers=3 seed=7"
    ]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_scripts_are_short_and_stop_on_errors(script: Path) -> None:
    text = script.read_text()
    assert "set -euo pipefail" in text and len(text.splitlines()) < 20
    assert text.splitlines()[1].startswith("# ")
