"""A separate name space in the shared store for each start of the processes.

torchrun keeps its store when it restarts the processes, with all entries of the earlier ones: a new process would
connect to the address of a dead one. So the processes of a start first agree on a prefix for their keys.
"""

import json
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

_POLL_S = 0.05


def fresh_store(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """Return a view of the store that no earlier start of the run has written to; all ranks call it.

    Every process publishes a random token. Process 0 offers a prefix together with the tokens that it has read. The
    offer is valid when every process has found its own token in it and has accepted it, which processes of an earlier
    start cannot do.

    Raises:
        TimeoutError: if not all processes join.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    token = uuid.uuid4().hex
    store.set(f"join/{rank}", token)
    name = _offer(store, world_size, deadline) if rank == 0 else _accept(store, rank, world_size, token, deadline)
    return dist.PrefixStore(f"start/{name}", store)


def _offer(store: dist.Store, world_size: int, deadline: float) -> str:
    offered: list[str] = []
    name = ""
    while True:
        keys = [f"join/{rank}" for rank in range(world_size)]
        if store.check(keys):
            tokens = [store.get(key).decode() for key in keys]
            if tokens != offered:
                # Some may be of an earlier start; when the new processes publish theirs, a new offer follows.
                offered, name = tokens, uuid.uuid4().hex
                store.set("offer", json.dumps({"name": name, "tokens": tokens}))
            if store.check([f"accept/{name}/{rank}" for rank in range(1, world_size)]):
                store.set(f"go/{name}", "1")
                return name
        _pause(deadline, sum(store.check([key]) for key in keys), world_size)


def _accept(store: dist.Store, rank: int, world_size: int, token: str, deadline: float) -> str:
    accepted: set[str] = set()
    while True:
        if store.check(["offer"]):
            offer = json.loads(store.get("offer"))
            name, tokens = offer["name"], offer["tokens"]
            if len(tokens) == world_size and tokens[rank] == token:
                if name not in accepted:
                    accepted.add(name)
                    store.set(f"accept/{name}/{rank}", "1")
                if store.check([f"go/{name}"]):
                    return name
        _pause(deadline, 1, world_size)


def _pause(deadline: float, num_known: int, world_size: int) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError(f"timed out: {num_known} of {world_size} clients joined")
    time.sleep(_POLL_S)
