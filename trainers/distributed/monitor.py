"""Who keeps the others waiting: every process of a run tells a shared store where it is, and reads it when stuck.

A thread of each process writes a heartbeat into the store that connected the processes. A process that waits in a
reduction past the limit names those that did not come, with their last step, and leaves, so that nothing hangs.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist

BEAT_S = 2.0
GRACE_S = 10.0  # for a process to notice by itself that another has failed
FAILED = 2  # exit status


class Monitor:
    """Heartbeat of one process, and its view of the others.

    Args:
        store: shared by the processes of one start, and by this object's thread alone (no lock is shared with others).
        timeout_s: time in a reduction past which the others are looked for.
        request_stop: called when another process is asked to stop (`spread_stop`).
        leave: ends this process from a thread.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        world_size: int,
        timeout_s: float,
        *,
        request_stop: Callable[[str], None] = lambda reason: None,
        leave: Callable[[int], Any] = os._exit,
        beat_s: float = BEAT_S,
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self.timeout_s = timeout_s
        self.request_stop = request_stop
        self._store = store
        self._leave = leave
        self._beat_s = beat_s
        self._doing, self._since = "starting", time.monotonic()
        self._waiting: str | None = None
        self._sequence = 0  # reductions entered; equal on all ranks that are in the same one
        self._beats = 0
        self._failure: str | None = None
        self._stop: str | None = None
        self._closed = threading.Event()
        self._heard_failure = 0.0
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self._thread.start()

    def note(self, doing: str) -> None:
        """Say where this process is, as "epoch 1, update 3 of 40"."""
        self._doing, self._since = doing, time.monotonic()

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Around a reduction: the process waits for the others."""
        self._sequence += 1
        self._since, self._waiting = time.monotonic(), what
        try:
            yield
        finally:
            self._waiting, self._since = None, time.monotonic()

    def spread_stop(self, reason: str) -> None:
        """Let the other processes know, within a few seconds, that this one is asked to stop."""
        self._stop = reason

    def fail(self, message: str) -> None:
        """Let the others know that this process has failed, and says why itself."""
        self._failure = f"process {self.rank} has failed: {message}"
        self._try(lambda: self._store.set("failed", self._failure))

    def close(self) -> None:
        """End the heartbeat."""
        self._closed.set()
        self._thread.join(timeout=2 * self._beat_s + 5)

    def describe_lost(self) -> str:
        """Say which processes do not give a sign of life any more; takes some heartbeats of time."""
        failed = self._try(lambda: self._store.check(["failed"]))
        if failed is None:
            return f"lost process 0, where the processes met ({os.environ.get('MASTER_ADDR', 'its machine')})"
        if failed:
            return self._store.get("failed").decode()
        before = self._read_beats()
        time.sleep(3 * self._beat_s)
        after = self._read_beats()
        if self._try(lambda: self._store.check(["failed"])):
            return self._store.get("failed").decode()
        silent = [rank for rank in range(self.world_size) if self._is_silent(rank, before, after)]
        if not silent:
            return "the connection to another process of the run is lost; all of them still give signs of life"
        return "lost " + "; ".join(self._name(rank, after.get(rank), alive=False) for rank in silent)

    def _run(self) -> None:
        self._try(self._beat)  # who this is, should it be lost before the first interval is over
        while not self._closed.wait(self._beat_s):
            self._try(self._beat)
            waiting, since, sequence = self._waiting, self._since, self._sequence
            if waiting is not None and time.monotonic() - since > self.timeout_s:
                message = self._describe_absent(waiting)
                if sequence == self._sequence and self._waiting is not None and not self._closed.is_set():
                    self._end(message)

    def _beat(self) -> None:
        self._beats += 1
        state = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "doing": self._doing,
            "waiting": self._waiting,
            "sequence": self._sequence,
            "for_s": round(time.monotonic() - self._since),
            "beats": self._beats,
        }
        self._store.set(f"beat/{self.rank}", json.dumps(state))
        if self._stop is not None:
            self._store.set("stop", self._stop)
        elif self._store.check(["stop"]):
            self.request_stop(self._store.get("stop").decode())
        if self._failure is None and self._store.check(["failed"]):
            self._heard_failure = self._heard_failure or time.monotonic()
            if time.monotonic() - self._heard_failure > GRACE_S:
                self._end(self._store.get("failed").decode())

    def _describe_absent(self, waiting: str) -> str:
        """Name the processes that have not come to the reduction that this one waits in."""
        before = self._read_beats()
        for _ in range(3):  # the others may be looking at this process in the same way
            self._closed.wait(self._beat_s)
            self._try(self._beat)
        after = self._read_beats()
        absent = [
            rank
            for rank in range(self.world_size)
            if rank != self.rank
            and (rank not in after or after[rank]["sequence"] < self._sequence or self._is_silent(rank, before, after))
        ]
        limit = f"no answer for {self.timeout_s / 60:g} min (distributed_timeout) at {self._doing}, {waiting}"
        if not absent:
            return f"{limit}: all processes wait, so the network between them does not carry what they send"
        names = [self._name(rank, after.get(rank), not self._is_silent(rank, before, after)) for rank in absent]
        return f"{limit}, from " + "; ".join(names)

    def _is_silent(self, rank: int, before: dict[int, dict], after: dict[int, dict]) -> bool:
        if rank == self.rank:
            return False
        return rank not in after or (rank in before and before[rank]["beats"] == after[rank]["beats"])

    def _name(self, rank: int, beat: dict | None, alive: bool) -> str:
        if beat is None:
            return f"process {rank}, which never gave a sign of life"
        state = f"alive, for {beat['for_s']} s" if alive else "gone or suspended, last seen"
        waiting = f", {beat['waiting']}" if beat["waiting"] else ""
        return f"process {rank} ({beat['host']}, pid {beat['pid']}): {state} at {beat['doing']}{waiting}"

    def _read_beats(self) -> dict[int, dict]:
        beats = {}
        for rank in range(self.world_size):
            if rank == self.rank:
                continue
            key = f"beat/{rank}"
            text = self._try(lambda key=key: self._store.get(key) if self._store.check([key]) else None)
            if text:
                beats[rank] = json.loads(text)
        return beats

    def _end(self, message: str) -> None:
        """Say why and leave: the main thread is held in a library and cannot."""
        first = self._try(lambda: self._store.add("told", 1)) in (1, None) or not message.startswith("no answer")
        self.fail(message)
        if first:
            sys.stderr.write(f"error (process {self.rank}): {' '.join(message.split())}\n")
            sys.stderr.flush()
        self._leave(FAILED)

    def _try(self, talk: Callable[[], Any]) -> Any:
        """Talk to the store; None where it is gone, as when its process has left."""
        try:
            return talk()
        except RuntimeError:
            return None
