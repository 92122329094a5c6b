"""torchrun, the launchers and the SLURM scripts: lost processes restart, signals save, exit statuses are passed on."""

import importlib.util
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fault_drill import OVERRIDES, family_of, still_running

from video_datasets.shapes.classes import Settings
from video_datasets.shapes.making import make_shapes

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs bash, setsid and /proc")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
PATIENCE_S = 240
PARTING_S = 60.0  # for an update and a checkpoint, also on a busy machine


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cluster")
    small = Settings(train_clips=2, val_clips=1, side=32, shots=(2,), base2novel_shots=2)
    make_shapes(root / "shapes", small, progress=False)
    return root


@pytest.fixture
def arguments(data_root: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that gives the arguments of main.py for a tiny run."""

    def made(epochs: int, output: Path | None = None) -> list[str]:
        kept = [word for word in OVERRIDES.split() if not word.startswith("num_workers=")]
        paths = [f"data_root={data_root}", f"output={output or tmp_path / 'run'}", f"epochs={epochs}", "num_workers=0"]
        return ["-cn", "few_shot", "data=few_shot_shapes", *kept, *paths]

    return made


@pytest.fixture
def start(repository: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Return a function that starts a command in the repository; its processes are killed at the end."""
    started: list[subprocess.Popen] = []

    def run(command: list[str], **environment: str) -> subprocess.Popen:
        inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        process = subprocess.Popen(
            command,
            cwd=repository,
            env={**inherited, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        for child in family_of(process.pid):
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.communicate()


def ranks_below(pid: int) -> dict[int, int]:
    """Return the training processes below a launcher: rank -> pid."""
    ranks = {}
    for child in family_of(pid)[1:]:
        try:
            words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
            environment = Path(f"/proc/{child}/environ").read_bytes().decode().split("\0")
        except OSError:
            continue
        if "main.py" in words and "torch.distributed.run" not in words and not any("torchrun" in w for w in words):
            ranks |= {int(entry[5:]): child for entry in environment if entry.startswith("RANK=")}
    return ranks


def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def ranks_of(launchers: list[subprocess.Popen], number: int) -> dict[int, int]:
    """Return the training processes of some launchers: rank -> pid.

    The kernel's lists of children can be incomplete while processes start or end.
    """
    found: dict[int, int] = {}

    def all_seen() -> bool:
        for launcher in launchers:
            found.update(ranks_below(launcher.pid))
        return len(found) == number

    wait_for(all_seen, launchers[0])
    return found


def finish(process: subprocess.Popen) -> tuple[int, str]:
    output, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, output


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def load(output: Path) -> dict:
    return torch.load(output / "last.pth", weights_only=True)


def test_a_killed_rank_restarts_and_resumes(start, arguments, tmp_path: Path) -> None:
    """torchrun --max_restarts: losing one process costs seconds, and the weights are those of an uninterrupted run."""
    output = tmp_path / "run"
    torchrun = [*TORCHRUN, "--standalone", "--nproc_per_node=2", "--max_restarts=2", "main.py"]
    process = start([*torchrun, *arguments(3)])
    wait_for((output / "last_2.pth").exists, process)
    os.kill(ranks_of([process], 2)[1], signal.SIGKILL)
    status, printed = finish(process)
    assert status == 0, printed
    text = (output / "log.txt").read_text()
    assert len(re.findall(r"start +resumes at epoch", text)) == 1 and load(output)["epoch"] == 3
    whole = start([*TORCHRUN, "--standalone", "--nproc_per_node=2", "main.py", *arguments(3, tmp_path / "whole")])
    assert finish(whole)[0] == 0
    expected = load(tmp_path / "whole")
    assert all(torch.equal(value, load(output)["model"][name]) for name, value in expected["model"].items())


def test_ranks_save_and_end_if_torchrun_is_killed(start, arguments, tmp_path: Path) -> None:
    """Nobody restarts them: they are asked to stop. The next start resumes, to the same weights."""
    output = tmp_path / "run"
    torchrun = [*TORCHRUN, "--standalone", "--nproc_per_node=2", "main.py"]
    process = start([*torchrun, *arguments(3)])
    wait_for((output / "last_1.pth").exists, process)
    ranks = ranks_of([process], 2)
    family = family_of(process.pid)[1:]
    process.kill()
    killed = time.monotonic()
    assert still_running(ranks.values(), PARTING_S) == [], "the ranks train on without their launcher"
    assert still_running(family, PARTING_S) == []
    seconds = time.monotonic() - killed
    status, printed = finish(process)
    assert status == -signal.SIGKILL and seconds < PARTING_S
    log = (output / "log.txt").read_text()
    (stopped,) = re.findall(r"stopped \((?:SIGTERM|by another process)\).*", log)
    position = load(output)
    assert position["epoch"] < 3, f"it was done before: {printed}"
    status, printed = finish(start([*torchrun, *arguments(3)]))
    assert status == 0 and "resumes at epoch" in printed, (stopped, printed)
    whole = start([*torchrun, *arguments(3, tmp_path / "whole")])
    assert finish(whole)[0] == 0
    expected = load(tmp_path / "whole")
    assert load(output)["epoch"] == expected["epoch"] == 3
    assert all(torch.equal(value, load(output)["model"][name]) for name, value in expected["model"].items())


def test_two_nodes_train_together(start, arguments, tmp_path: Path, repository: Path) -> None:
    """Two launchers connect by c10d rendezvous, as on two machines; a signal to one of them saves and stops both."""
    port = free_port()
    launch = ["bash", "scripts/torchrun.sh", "--nnodes=2", "--nproc_per_node=1", "--max_restarts=1"]
    launch += ["--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=test", "main.py", *arguments(200)]
    environment = {"TORCHRUN": str(torchrun_program(tmp_path))}
    nodes = [start(launch, **environment) for _ in range(2)]
    wait_for((tmp_path / "run" / "last.pth").exists, nodes[0])
    assert set(ranks_of(nodes, 2)) == {0, 1}
    os.kill(nodes[1].pid, signal.SIGTERM)
    for node in nodes:
        status, printed = finish(node)
        assert status == 75, printed
        assert "Traceback" not in printed
    text = (tmp_path / "run" / "log.txt").read_text()
    assert "processes        2 (CPU" in text or re.search(r"processes +2 \(CPU", text)
    # Either node can have become rank 0, which writes this log: scripts/torchrun.sh passes SIGTERM on as SIGUSR1 to its
    # own processes, and they inform the others.
    assert re.search(r"stopped \((SIGTERM|SIGUSR1|by another process)\)", text), text
    position = load(tmp_path / "run")
    assert position["epoch"] * 24 + position["micro_batch"] > 0


def torchrun_program(folder: Path) -> Path:
    """Write a torchrun that works without an activated environment."""
    program = folder / "torchrun"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m torch.distributed.run "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


FAKE_SLURM = {
    "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "requeued $2" >>"$FAKE_LOG"; fi',
    # srun runs the command of its tasks, and passes SIGUSR1 on.
    "srun": """
while [ "${1#--}" != "$1" ]; do echo "srun $1" >>"$FAKE_LOG"; shift; done
"$@" & task=$!
trap 'kill -USR1 $task' USR1
while kill -0 $task 2>/dev/null; do wait $task; status=$?; done
exit $status
""",
}


@pytest.fixture
def slurm(tmp_path: Path, repository: Path) -> dict[str, str]:
    """Return the environment of a SLURM job; small scripts stand for SLURM's commands."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in FAKE_SLURM.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    torchrun_program(programs)
    return {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "FAKE_LOG": str(tmp_path / "slurm.log"),
        "SLURM_SUBMIT_DIR": str(repository),
        "SLURM_JOB_ID": str(10_000 + os.getpid() % 5000),
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_GPUS_ON_NODE": "1",
    }


def test_a_preempted_task_of_an_array_is_requeued(start, arguments, slurm, tmp_path: Path) -> None:
    runs = tmp_path / "runs.txt"
    runs.write_text("-cn wrong\n" + " ".join(arguments(200)) + "\n" + " ".join(arguments(2)) + "\n")
    job = ["bash", "scripts/slurm/array.sh", str(runs)]
    process = start(job, SLURM_ARRAY_TASK_ID="2", **slurm)
    wait_for((tmp_path / "run" / "last.pth").exists, process)
    os.kill(process.pid, signal.SIGUSR1)
    status, printed = finish(process)
    assert status == 0 and "stopped and saved: requeued" in printed, printed
    assert f"requeued {slurm['SLURM_JOB_ID']}" in (tmp_path / "slurm.log").read_text()
    done = load(tmp_path / "run")["epoch"]
    runs.write_text("\n\n" + " ".join(arguments(done + 1)) + "\n")
    status, printed = finish(start(job, SLURM_ARRAY_TASK_ID="3", **slurm))
    assert status == 0 and "resumes at epoch" in printed, printed
    assert (tmp_path / "slurm.log").read_text().count("requeued") == 1
    status, printed = finish(start(job, SLURM_ARRAY_TASK_ID="9", **slurm))
    assert status == 2 and "has no line 9" in printed


def test_exit_statuses_of_failures_are_passed_on(start, slurm, tmp_path: Path) -> None:
    status, printed = finish(
        start(["bash", "scripts/slurm/train.sh", "-cn", "few_shot", "data=few_shot_shapes"], **slurm)
    )
    assert status == 1 and "error: output is not set" in printed, printed
    assert "requeued" not in (tmp_path / "slurm.log").read_text()


def test_machines_over_ssh(start, arguments, tmp_path: Path) -> None:
    """A local shell stands for ssh; two "machines", stopped by Ctrl-C on this one."""
    fake = tmp_path / "ssh"
    fake.write_text('#!/bin/bash\nexec bash -c "$2"\n')
    fake.chmod(0o755)
    environment = {"SSH": str(fake), "NODES": "127.0.0.1 localhost", "GPUS": "1", "PORT": str(free_port())}
    environment["TORCHRUN"] = str(torchrun_program(tmp_path))
    process = start(["bash", "scripts/ssh_train.sh", *arguments(200)], **environment)
    wait_for((tmp_path / "run" / "last.pth").exists, process)
    os.killpg(process.pid, signal.SIGINT)
    status, printed = finish(process)
    assert status == 75, printed


@pytest.mark.parametrize("status", [0, 3, 75])
@pytest.mark.parametrize("delay", ["", "sleep 0.2; "])
def test_a_step_that_ends_at_once_passes_on_its_status(
    repository: Path, tmp_path: Path, status: int, delay: str
) -> None:
    for name, text in (("srun", f"{delay}exit {status}"), ("scontrol", f'echo "$@" >>"{tmp_path}/log"; echo node1')):
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    script = "set -euo pipefail; source scripts/slurm/run.sh; sleep() { :; }; run_and_requeue -cn zero_shot"
    facts = {"SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_ID": "7"}
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=repository,
        env={**os.environ, **facts, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == (0 if status == 75 else status), done.stderr
    assert ("requeue 7" in (tmp_path / "log").read_text()) == (status == 75)


@pytest.mark.parametrize("status", [0, 3])
def test_a_launcher_that_ends_at_once_passes_on_its_status(repository: Path, tmp_path: Path, status: int) -> None:
    (tmp_path / "torchrun").write_text(f"#!/usr/bin/env bash\nexit {status}\n")
    (tmp_path / "torchrun").chmod(0o755)
    environment = {**os.environ, "TORCHRUN": str(tmp_path / "torchrun")}
    command = ["bash", str(repository / "scripts" / "torchrun.sh"), "main.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (status, "")


def test_the_short_drill_and_soak_programs_load(repository: Path) -> None:
    for name in ("fault_drill", "soak"):
        spec = importlib.util.spec_from_file_location(name, repository / "tests" / "drills" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        with pytest.raises(SystemExit) as left:
            module.main(["--help"])
        assert left.value.code == 0
