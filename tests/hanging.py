"""Jobs that misbehave, for the tests of watched processes: importable by the processes themselves."""

import os
import signal
import time


def misbehave(job: tuple[str, float]) -> str:
    """Sleep, die, raise or return, as the job says."""
    kind, seconds = job
    if kind == "hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        time.sleep(600)
    if kind == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "raise":
        raise ValueError("two\nlines")
    time.sleep(seconds)
    return f"{kind} done"


def hang_at_april(job: object) -> dict:
    """Check a video as verify.py does, but hang at some."""
    from trainers.commands.data.inspect_video import inspect_video

    if "April_09_kick_ball" in job.source:
        time.sleep(600)
    return inspect_video(job)
