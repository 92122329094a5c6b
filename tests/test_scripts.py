"""The scripts of the paper's table rows: their commands compose, and cover every row."""

import os
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


FAKE_SSH = """#!/bin/bash
[ -t 0 ] && echo "$1 has a terminal" >>"$FAKE_LOG"
read -r && echo "$1 has input" >>"$FAKE_LOG"
printf '%s\\0' "$@" >"$FAKE_LOG.$1"
exit "$(sed -n "s/^$1 //p" <<<"$FAKE_STATUS")"
"""


def ssh_train(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run scripts/ssh_train.sh with an ssh that records its arguments, and ends with the status of its machine."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "ssh").write_text(FAKE_SSH)
    (programs / "ssh").chmod(0o755)
    facts = {"PATH": f"{programs}:{os.environ['PATH']}", "FAKE_LOG": str(folder / "log"), **environment}
    command = ["bash", str(REPOSITORY / "scripts" / "ssh_train.sh"), *arguments]
    return subprocess.run(command, env=facts, input="typed", capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (75, 3), (3, 0)])
def test_every_machine_gets_the_same_command_by_ssh(tmp_path: Path, first: int, second: int) -> None:
    """The rendezvous is on the first machine, whose status is that of the script; arguments arrive as they are."""
    words = ["-cn", "zero_shot", "output=/shared/a b", "data.name=it's $HOME `x`"]
    facts = {"NODES": "alpha beta", "GPUS": "4", "PORT": "2345", "FAKE_STATUS": f"alpha {first}\nbeta {second}"}
    done = ssh_train(tmp_path, *words, **facts)
    assert (done.returncode, done.stdout, done.stderr) == (first, "", "")
    sent = {}
    for node in ("alpha", "beta"):
        host, sent[node], rest = (tmp_path / f"log.{node}").read_text().split("\0")
        assert (host, rest) == (node, "")
    assert sent["alpha"] == sent["beta"] and not (tmp_path / "log").exists(), "ssh reads nothing of what is typed"
    # The shell of the machine reads the command, with a launcher that records its arguments.
    remote = sent["alpha"].replace("exec bash scripts/torchrun.sh", "printf '%s\\0' $PWD")
    done = subprocess.run(
        ["bash", "-c", remote], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    folder, *flags = done.stdout.removesuffix("\0").split("\0")
    assert folder == str(REPOSITORY)
    assert flags[flags.index("main.py") + 1 :] == words
    expected = {"--nnodes=2", "--nproc_per_node=4", "--max_restarts=3", "--rdzv_backend=c10d"}
    assert expected | {"--rdzv_endpoint=alpha:2345"} < set(flags[: flags.index("main.py")])
    (run,) = [flag for flag in flags if flag.startswith("--rdzv_id=")]
    assert re.fullmatch(r"--rdzv_id=tc_clip_\d+", run), "its own, so that two runs do not meet"


@pytest.mark.parametrize(
    ("given", "missing"), [({"GPUS": "1"}, "list the machines"), ({"NODES": "a"}, "set the number of GPUs")]
)
def test_missing_facts_of_machines_are_an_error(tmp_path: Path, given: dict[str, str], missing: str) -> None:
    done = ssh_train(tmp_path, "-cn", "zero_shot", **given)
    assert done.returncode != 0 and missing in done.stderr
    assert not list(tmp_path.glob("log*")), "no machine was asked"
