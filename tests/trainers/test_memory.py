"""The C library keeps the memory that a step frees: its pages stay mapped for the next step."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tc_clip.ops.memory import keep_freed_memory, release_freed_memory
from trainers import run as run_module
from trainers import testing
from trainers.inference import predict as inference

REPOSITORY = Path(__file__).resolve().parents[2]
# Page faults of allocating, filling and freeing blocks of 40 to 200 MB several times, then in another thread.
PROGRAM = """
import ctypes, json, resource, sys, threading
from tc_clip.ops.memory import keep_freed_memory, release_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]
def use():
    for mib in (40, 200, 80):
        block = libc.malloc(mib << 20)
        libc.memset(block, 1, mib << 20)
        libc.free(block)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    use()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
done, start = keep_freed_memory(), resident()
use()
counts = [faults()]
thread = threading.Thread(target=lambda: (use(), counts.append(faults())))
thread.start()
thread.join()
kept = resident() - start
release_freed_memory()
print(json.dumps([done, *counts, kept, resident() - start]))
"""


def run(**environment: str) -> tuple[bool, int, int, int, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=REPOSITORY, env=clean | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_pages_stay_mapped():
    is_set, faults, _, kept, after_release = run()  # in other threads, large blocks have new pages as before
    assert is_set and faults < 1000  # fresh pages cause 80,000
    assert kept > 190 and after_release < 90  # MiB
    is_set, faults, *_ = run(MALLOC_TRIM_THRESHOLD_="131072")
    assert not is_set and faults > 50_000  # the user's setting is kept


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr("tc_clip.ops.memory.ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
    release_freed_memory()
    monkeypatch.setattr("tc_clip.ops.memory.sys.platform", "darwin")
    assert not keep_freed_memory()


def test_runs_and_predictions_on_cpus_keep_memory(
    compose_run, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for module in (run_module, inference):
        monkeypatch.setattr(module, "keep_freed_memory", lambda: calls.append("keep"))
    monkeypatch.setattr(testing, "release_freed_memory", lambda: calls.append("release"))
    run_module.run(compose_run(epochs=1, warmup_epochs=0))
    assert calls == ["keep", "release"]  # few_shot has a validation, and no final test
    calls.clear()
    inference.load_model(tiny_checkpoints["tc_clip"], ["a dog", "a cat"], device="cpu")
    assert calls == ["keep"]
