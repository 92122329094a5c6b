"""SIGTERM, SIGUSR1 and Ctrl-C: the step ends, the run is saved, the exit status requests a restart, which resumes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fault_drill import family_of

from trainers.config.command_line import REQUEUE, one_line_errors
from trainers.distributed.interrupts import Interrupts
from trainers.errors import RunInterrupted
from trainers.run import run
from trainers.trainer import Trainer


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def same_weights(first: Path, second: Path) -> bool:
    one, other = load(first)["model"], load(second)["model"]
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_is_recorded_once_and_its_handler_restored(name: str, capfd: pytest.CaptureFixture) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        interrupts.check()
        os.kill(os.getpid(), number)
        assert interrupts.requested == name
        if name != "SIGINT":
            os.kill(os.getpid(), signal.SIGTERM)
            assert interrupts.requested == name
        with pytest.raises(RunInterrupted, match=name):
            interrupts.check()
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err.count("stopping after this step") == 1


def test_blocked_signals_are_received() -> None:
    """As in a process of a fork server that blocks them; a signal that is pending already counts too."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # no other thread of the tests receives it
        with Interrupts(verbose=False) as interrupts:
            assert interrupts.requested == "SIGTERM"
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


STOPPED_WHILE_STARTING = """
import os, signal, sys
from pathlib import Path
from trainers.config.command_line import composition_errors
with composition_errors(Path("configs")):
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    sys.exit(3)
"""


@pytest.mark.parametrize(
    ("name", "world_size", "status"), [("SIGTERM", 1, 75), ("SIGUSR1", 1, 75), ("SIGTERM", 2, -15)]
)
def test_a_stop_before_the_run_begins(repository: Path, name: str, world_size: int, status: int) -> None:
    command = [sys.executable, "-c", STOPPED_WHILE_STARTING, name]
    environment = dict(os.environ, WORLD_SIZE=str(world_size))
    left = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
    assert left.returncode == status
    assert left.stderr == (f"{name}: stopped before the training began\n" if status == 75 else "")


def test_a_second_control_c_stops_at_once() -> None:
    with Interrupts(verbose=False), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_other_threads_are_left_alone() -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with Interrupts() as interrupts:
                interrupts.request("a test")
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []


def test_the_status_requests_a_restart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as left, one_line_errors():
        raise RunInterrupted("SIGTERM")
    assert left.value.code == REQUEUE == 75
    monkeypatch.setenv("RUN_EXIT_FILE", str(tmp_path / "status"))
    with pytest.raises(SystemExit) as left, one_line_errors():
        raise RunInterrupted("SIGTERM")
    assert left.value.code == 0 and (tmp_path / "status").read_text() == "75\n"


def signal_in_update(monkeypatch: pytest.MonkeyPatch, wanted: int) -> None:
    """Send SIGTERM to this process while it computes an update, counted from 0 over the whole run."""
    mixed, num_updates = Trainer._mixed, [0]

    def interrupted(self, item, epoch):
        if item.batch.number % self.plan.accumulation == 0:
            if num_updates[0] == wanted:
                os.kill(os.getpid(), signal.SIGTERM)
            num_updates[0] += 1
        return mixed(self, item, epoch)

    monkeypatch.setattr(Trainer, "_mixed", interrupted)


@pytest.mark.slow
@pytest.mark.parametrize(("update", "position"), [(0, (0, 4)), (1, (0, 6)), (2, (1, 4))])
def test_the_update_ends_and_the_run_resumes_exactly(
    compose_run, tmp_path: Path, monkeypatch, update: int, position: tuple[int, int]
) -> None:
    run(compose_run(epochs=2, output=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        signal_in_update(patch, update)
        with pytest.raises(RunInterrupted, match="SIGTERM"):
            run(compose_run(epochs=2))
    output = tmp_path / "run"
    checkpoint = load(output / "last.pth")
    assert (checkpoint["epoch"], checkpoint["micro_batch"]) == position
    assert f"stopped (SIGTERM) in epoch {position[0] + 1} after update" in (output / "log.txt").read_text()
    run(compose_run(epochs=2))
    assert same_weights(output / "last.pth", tmp_path / "whole" / "last.pth")


def test_a_signal_in_the_validation_loses_nothing(compose_run, tmp_path: Path, monkeypatch) -> None:
    from trainers import evaluator

    run(compose_run(epochs=1, warmup_epochs=0, output=tmp_path / "whole"))
    score = evaluator.score_views

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGUSR1)
        return score(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "score_views", interrupted)
        with pytest.raises(RunInterrupted, match="SIGUSR1"):
            run(compose_run(epochs=1, warmup_epochs=0))
    checkpoint = load(tmp_path / "run" / "last.pth")
    assert (checkpoint["epoch"], checkpoint["micro_batch"], checkpoint["best"]) == (0, 6, None)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "stopped (SIGUSR1) in the validation of epoch 1, saved" in log
    rows = run(compose_run(epochs=1, warmup_epochs=0))
    assert same_weights(tmp_path / "run" / "best.pth", tmp_path / "whole" / "best.pth")
    assert rows[0].top1 == load(tmp_path / "whole" / "last.pth")["best"]["top1"]


SIGNAL_ONE_RANK = """
import os, signal
if os.environ["RANK"] == "1":
    from trainers import trainer
    mixed = trainer.Trainer._mixed
    def interrupted(self, item, epoch):
        if (epoch, item.batch.number) == (0, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return mixed(self, item, epoch)
    trainer.Trainer._mixed = interrupted
from trainers.errors import RunInterrupted
import trainers.run
whole_run = trainers.run.run
def run(config):
    try:
        whole_run(config)
    except RunInterrupted:
        os._exit(75)
"""


@pytest.mark.slow
def test_one_signalled_rank_stops_all(run_on_ranks, tmp_path: Path) -> None:
    run_on_ranks(2, tmp_path / "run", before=SIGNAL_ONE_RANK, statuses=[75, 75], epochs=2)
    checkpoint = load(tmp_path / "run" / "last.pth")
    assert (checkpoint["epoch"], checkpoint["micro_batch"]) == (0, 4)
    run_on_ranks(2, tmp_path / "run", epochs=2)
    run_on_ranks(2, tmp_path / "whole", epochs=2)
    assert same_weights(tmp_path / "run" / "last.pth", tmp_path / "whole" / "last.pth")


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_signal_to_every_process_of_a_job(command_line, tmp_path: Path) -> None:
    """As from a scheduler or Ctrl-C: main process, fork server and workers get the signal together."""
    command = command_line(output=tmp_path / "run", num_workers=2, epochs=100, save_updates=1, logging__print_every=1)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 90
    try:
        wait_for((tmp_path / "run" / "last.pth").exists)
        # Two workers, their fork server, the resource tracker. The kernel's lists of children can be
        # incomplete while processes end or start.
        while len(below := family_of(process.pid)[1:]) < 4:
            assert process.poll() is None and time.monotonic() < deadline, f"only {len(below)} processes below"
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 75, output
    assert "SIGINT: stopping after this step; Ctrl-C again stops at once" in output or "SIGTERM: stopping" in output
    assert "Traceback" not in output and "error" not in output
    assert "stopped (SIG" in output
    wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in below), 15)
