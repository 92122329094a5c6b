"""The advice in the log if the model waits for videos."""

import torch

from trainers.batches import BatchPlan
from trainers.logging.loading_advice import cores_of_a_process, loading_advice
from trainers.logging.logger import LoggerContainer
from trainers.progress import ProgressReporter
from trainers.trainer import UpdateReport


def test_little_waiting_gives_no_advice():
    assert loading_advice(0.05, 10.0, num_workers=1, num_cores=8) is None


def test_idle_cores_are_named():
    advice = loading_advice(0.5, 10.0, num_workers=2, num_cores=8)
    assert "waits 50%" in advice and "could train on 20.0" in advice and "num_workers=8" in advice


def test_busy_cores_are_named_with_what_helps():
    advice = loading_advice(0.9, 10.0, num_workers=16, num_cores=16)
    assert "16 cores of a process cannot decode enough" in advice
    assert "data.cache=" in advice and "num_workers=" not in advice
    assert loading_advice(1.0, 1.0, 1, 1)  # no division by zero


def test_cores_are_shared_by_the_processes_of_a_machine(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    alone = cores_of_a_process()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(2 * alone))
    assert cores_of_a_process() == 1


def test_advice_is_repeated_only_if_waiting_gets_worse():
    warnings: list[str] = []
    log = LoggerContainer()
    log.warning = warnings.append
    plan = BatchPlan(num_videos=8, batch_size=8, total_batch_size=8)
    options = {"epochs": 5, "print_every": 1, "device": torch.device("cpu"), "num_workers": 1}
    progress = ProgressReporter(log, plan, **options, is_validated=lambda epoch: False)
    for epoch, share in enumerate((0.01, 0.3, 0.35, 0.2, 0.5)):
        progress.start_epoch(epoch, 0)
        progress.log_update(
            UpdateReport(
                plan.update(0),
                loss=1.0,
                rates={"base": 1e-3},
                seconds=1.0,
                wait_seconds=share,
                host_seconds=None,
                grad_norm=1.0,
                loss_scale=None,
                skipped=False,
                any_rank=(),
            )
        )
        progress.end_epoch(num_bad_videos=0)
    assert len(warnings) == 2 and "waits 30%" in warnings[0] and "waits 50%" in warnings[1]
