"""Missing processes are named with their last step, and the others do not wait for ever."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from trainers.distributed.interrupts import Interrupts
from trainers.distributed.monitor import Monitor
from trainers.distributed.processes import Ranks, start_distributed
from trainers.distributed.rendezvous import fresh_store
from trainers.errors import ConfigError, LostProcessError


class World:
    """Monitors of several ranks in one process, with a store between them."""

    def __init__(self, size: int, timeout_s: float):
        store = dist.HashStore()
        self.left: list[tuple[int, int]] = []
        self.stops: list[Interrupts] = [Interrupts() for _ in range(size)]
        self.monitors = [
            Monitor(
                dist.PrefixStore("monitor", store),
                rank,
                size,
                timeout_s,
                request_stop=self.stops[rank].request,
                leave=lambda status, rank=rank: self.left.append((rank, status)),
                beat_s=0.05,
            )
            for rank in range(size)
        ]

    def close(self) -> None:
        for monitor in self.monitors:
            monitor.close()


@pytest.fixture
def world() -> Iterator[World]:
    made = World(3, timeout_s=0.3)
    yield made
    made.close()


def eventually(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_missing_process_is_named_with_its_last_step(world: World, capsys: pytest.CaptureFixture) -> None:
    for monitor in world.monitors:
        monitor.set_activity("epoch 1, update 3 of 40")
    with world.monitors[0].waiting("all_reduce of gradients"), world.monitors[2].waiting("all_reduce of gradients"):
        eventually(lambda: world.left)
    reported = capsys.readouterr().err
    expected = (
        r"error \(process [02]\): timed out after 0\.005 min \(distributed_timeout\) at epoch 1, update 3 of 40, "
        rf"all_reduce of gradients, for process 1 \(\S+, pid {os.getpid()}\): alive, for \d+ s at epoch 1, "
        r"update 3 of 40\n"
    )
    assert re.search(expected, reported), reported
    assert world.left[0][1] == 2 and world.left[0][0] in (0, 2)


def test_a_silent_process_differs_from_a_slow_one(world: World, capsys: pytest.CaptureFixture) -> None:
    world.monitors[1].set_activity("epoch 2, update 1 of 40")
    time.sleep(0.2)
    world.monitors[1].close()
    with world.monitors[0].waiting("all_gather"), world.monitors[2].waiting("all_gather"):
        eventually(lambda: world.left)
    assert "process 1 (" in (reported := capsys.readouterr().err)
    assert "gone or suspended, last seen at epoch 2, update 1 of 40" in reported


def test_a_broken_network_is_reported(world: World, capsys: pytest.CaptureFixture) -> None:
    with (
        world.monitors[0].waiting("all_reduce"),
        world.monitors[1].waiting("all_reduce"),
        world.monitors[2].waiting("all_reduce"),
    ):
        eventually(lambda: world.left)
    assert "all processes wait, so the network between them does not work" in capsys.readouterr().err


def test_short_waits_and_work_are_no_hang(world: World) -> None:
    for _ in range(10):
        for monitor in world.monitors:
            with monitor.waiting("all_reduce"):
                time.sleep(0.01)
    time.sleep(0.6)  # work outside of a reduction may take its time
    assert world.left == []


def test_a_stop_reaches_all_processes(world: World) -> None:
    world.monitors[2].announce_stop("SIGTERM")
    eventually(lambda: [stop.requested for stop in world.stops[:2]] == ["SIGTERM", "SIGTERM"])


def test_a_failure_ends_the_waiting_processes(world: World, monkeypatch, capsys) -> None:
    monkeypatch.setattr("trainers.distributed.monitor.GRACE_S", 0.1)
    world.monitors[1].announce_failure("OutOfMemoryError: lower batch_size")
    eventually(lambda: {rank for rank, _ in world.left} >= {0, 2})
    assert "process 1 has failed: OutOfMemoryError: lower batch_size" in capsys.readouterr().err
    assert "process 1 has failed" in world.monitors[0].describe_lost()


def test_a_lost_connection_names_the_lost_process(world: World) -> None:
    world.monitors[2].set_activity("epoch 1, update 7 of 40")
    time.sleep(0.2)
    world.monitors[2].close()
    ranks = Ranks(0, 3, monitor=world.monitors[0])
    expected = r"^lost process 2 \(\S+, pid \d+\): gone or suspended, last seen at epoch 1, update 7 of 40$"
    with pytest.raises(LostProcessError, match=expected), ranks._waiting("all_reduce"):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:3128")
    with pytest.raises(RuntimeError, match="shapes differ"), ranks._waiting("all_reduce"):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize("operation", ["sum", "start_sum", "broadcast_model"])
def test_the_wait_for_a_gpu_is_watched(world: World, monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    """NCCL's calls return at once: a process that waits for their results must be known to wait."""
    waits: list[str | None] = []
    ranks = Ranks(0, 3, torch.device("cuda"), world.monitors[0])
    stream = SimpleNamespace(synchronize=lambda: waits.append(world.monitors[0]._waiting))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    for name in ("all_reduce", "broadcast"):
        monkeypatch.setattr(dist, name, lambda *arguments, **options: SimpleNamespace(wait=lambda: None))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *arguments, **options: tensor)  # there may be no GPU here
    layer = torch.nn.Linear(2, 2)
    if operation == "sum":
        ranks.sum(torch.ones(2))
    elif operation == "start_sum":
        wait = ranks.start_sum(torch.ones(2))
        assert waits == [], "the backward pass goes on meanwhile"
        wait()
    else:
        ranks.broadcast_model(layer)
    assert len(waits) == 1 and waits[0] is not None
    assert world.monitors[0]._waiting is None


def test_a_restart_never_connects_to_earlier_processes() -> None:
    """Ranks of a second start join one by one, while the store has all entries of the first start."""
    store, second, seconds = dist.HashStore(), 20.0, timedelta(seconds=20)

    def start_all(delays: Sequence[float]) -> list[dist.Store]:
        found: list[dist.Store | None] = [None] * len(delays)

        def join(rank: int) -> None:
            time.sleep(delays[rank])
            found[rank] = fresh_store(store, rank, len(delays), seconds)

        threads = [threading.Thread(target=join, args=(rank,)) for rank in range(len(delays))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(second)
        return found

    seen: set[str] = set()
    for number, delays in enumerate([(0, 0, 0), (0, 0.3, 0.1), (0.4, 0, 0.2), (0, 0.5), (0.2, 0, 0, 0.4)]):
        stores = start_all(delays)
        stores[0].set("address", str(number))
        assert [one.get("address") for one in stores] == [str(number).encode()] * len(delays)
        seen.add(stores[0].get("address").decode())
    assert len(seen) == 5
    with pytest.raises(TimeoutError, match=r"1 of 2 clients joined"):
        fresh_store(dist.HashStore(), 0, 2, timedelta(seconds=0.2))


def test_a_port_in_use_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5))
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": taken.port, "WORLD_SIZE": 2, "RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(
        ConfigError, match=rf"127\.0\.0\.1:{taken.port}: this port is in use by another program; choose"
    ):
        start_distributed("cpu", timeout_minutes=0.05)


def test_a_process_that_never_joins_is_one_line(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port, "WORLD_SIZE": 2, "RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ConfigError, match=r"not all 2 processes connected within 0\.02 min \(distributed_timeout\)"):
        start_distributed("cpu", timeout_minutes=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "minutes", "expected"),
    [
        (
            signal.SIGSTOP,
            0.25,
            r"^error \(process 0\): timed out after 0\.25 min \(distributed_timeout\) at .* process 1 {}",
        ),
        (signal.SIGKILL, 30, r"^error: lost process 1 {}"),
    ],
    ids=["suspended", "killed"],
)
def test_a_process_is_named_by_the_other(
    command_line, free_port: int, tmp_path: Path, number: int, minutes: float, expected: str
) -> None:
    """Two real processes; one is suspended or killed during training."""
    command = command_line(output=tmp_path / "run", epochs=300, save_updates=1, distributed_timeout=minutes)
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        eventually((tmp_path / "run" / "last.pth").exists, 120)
        processes[1].send_signal(number)
        _, reported = processes[0].communicate(timeout=90)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[0].returncode == 2
    name = rf"\(\S+, pid {processes[1].pid}\): gone or suspended, last seen at \w+"
    assert re.search(expected.format(name), reported), reported
    assert reported.count("\n") == 1
