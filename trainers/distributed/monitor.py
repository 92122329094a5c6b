"""Finds the process that keeps the others waiting, by heartbeats in a shared store.

A thread of each process writes a heartbeat with the process's activity into the store that connected the processes. A
process that waits longer than the limit in a collective operation names the processes that did not reach it, with
their last step, and ends, so that nothing hangs.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch.distributed as dist

BEAT_S = 2.0
GRACE_S = 10.0  # time for a process to notice by itself that another has failed
FAILED = 2  # exit status
TIMED_OUT = "timed out after"

Beats = dict[int, dict[str, Any]]  # the last heartbeat of each other rank
Result = TypeVar("Result")


class Monitor:
    """Heartbeat of one process, and its view of the others.

    Args:
        store: shared by the processes of one start; its connection is used by this object alone.
        timeout_s: time in a collective operation after which the missing processes are reported.
        request_stop: called when another process was asked to stop (`announce_stop`).
        leave: ends this process from a thread.
        beat_s: seconds between heartbeats.
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
        self._activity, self._since = "starting", time.monotonic()
        self._waiting: str | None = None
        self._sequence = 0  # collective operations entered; equal on all ranks that are in the same one
        self._beats = 0
        self._failure: str | None = None
        self._stop: str | None = None
        self._closed = threading.Event()
        self._failure_seen_at = 0.0
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self._thread.start()

    def set_activity(self, activity: str) -> None:
        """Set what this process does, as "epoch 1, update 3 of 40"."""
        self._activity, self._since = activity, time.monotonic()

    @contextlib.contextmanager
    def waiting(self, operation: str) -> Iterator[None]:
        """Around a collective operation: the process waits for the others."""
        self._sequence += 1
        self._since, self._waiting = time.monotonic(), operation
        try:
            yield
        finally:
            self._waiting, self._since = None, time.monotonic()

    def announce_stop(self, reason: str) -> None:
        """Inform the other processes, within a few seconds, that this one was asked to stop."""
        self._stop = reason

    def announce_failure(self, message: str) -> None:
        """Inform the other processes that this one has failed; it reports the error itself."""
        failure = self._failure = f"process {self.rank} has failed: {message}"
        self._try(lambda: self._store.set("failed", failure))

    def close(self) -> None:
        """End the heartbeat."""
        self._closed.set()
        self._thread.join(timeout=2 * self._beat_s + 5)

    def describe_lost(self) -> str:
        """Return which processes send no heartbeat any more; takes the time of some heartbeats."""
        failed = self._try(lambda: self._store.check(["failed"]))
        if failed is None:
            return f"lost process 0, which connected the processes ({os.environ.get('MASTER_ADDR', 'its machine')})"
        if failed:
            return self._store.get("failed").decode()
        before = self._read_beats()
        time.sleep(3 * self._beat_s)
        after = self._read_beats()
        if self._try(lambda: self._store.check(["failed"])):
            return self._store.get("failed").decode()
        silent = [rank for rank in range(self.world_size) if self._is_silent(rank, before, after)]
        if not silent:
            return "the connection to another process of the run is lost; all of them still send heartbeats"
        return "lost " + "; ".join(self._name(rank, after.get(rank), alive=False) for rank in silent)

    def _run(self) -> None:
        self._try(self._beat)  # identifies this process if it is lost within the first interval
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
            "activity": self._activity,
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
            self._failure_seen_at = self._failure_seen_at or time.monotonic()
            if time.monotonic() - self._failure_seen_at > GRACE_S:
                self._end(self._store.get("failed").decode())

    def _describe_absent(self, waiting: str) -> str:
        """Name the processes that have not reached the operation in which this one waits."""
        before = self._read_beats()
        for _ in range(3):  # the others may be checking this process in the same way
            self._closed.wait(self._beat_s)
            self._try(self._beat)
        after = self._read_beats()
        absent = [
            rank
            for rank in range(self.world_size)
            if rank != self.rank
            and (rank not in after or after[rank]["sequence"] < self._sequence or self._is_silent(rank, before, after))
        ]
        limit = f"{TIMED_OUT} {self.timeout_s / 60:g} min (distributed_timeout) at {self._activity}, {waiting}"
        if not absent:
            return f"{limit}: all processes wait, so the network between them does not work"
        names = [self._name(rank, after.get(rank), not self._is_silent(rank, before, after)) for rank in absent]
        return f"{limit}, for " + "; ".join(names)

    def _is_silent(self, rank: int, before: Beats, after: Beats) -> bool:
        if rank == self.rank:
            return False
        return rank not in after or (rank in before and before[rank]["beats"] == after[rank]["beats"])

    def _name(self, rank: int, beat: dict[str, Any] | None, alive: bool) -> str:
        if beat is None:
            return f"process {rank}, which never sent a heartbeat"
        state = f"alive, for {beat['for_s']} s" if alive else "gone or suspended, last seen"
        waiting = f", {beat['waiting']}" if beat["waiting"] else ""
        return f"process {rank} ({beat['host']}, pid {beat['pid']}): {state} at {beat['activity']}{waiting}"

    def _read_beats(self) -> Beats:
        beats: Beats = {}
        for rank in range(self.world_size):
            if rank == self.rank:
                continue
            if text := self._try(partial(self._read, f"beat/{rank}")):
                beats[rank] = json.loads(text)
        return beats

    def _read(self, key: str) -> bytes | None:
        return self._store.get(key) if self._store.check([key]) else None

    def _end(self, message: str) -> None:
        """Report the error and end the process: the main thread waits inside a library and cannot.

        Several processes can time out at once; only the first reports it.
        """
        is_first = self._try(lambda: self._store.add("reported", 1)) in (1, None)
        self.announce_failure(message)
        if is_first or not message.startswith(TIMED_OUT):
            sys.stderr.write(f"error (process {self.rank}): {' '.join(message.split())}\n")
            sys.stderr.flush()
        self._leave(FAILED)

    def _try(self, request: Callable[[], Result]) -> Result | None:
        """Return the result of a request to the store; None if the store is gone, as when its process has ended."""
        try:
            return request()
        except RuntimeError:
            return None
