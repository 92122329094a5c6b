"""What a log says where the model waits for videos."""

from types import SimpleNamespace

from trainers.logging.loading_advice import cores_of_a_process, loading_advice
from trainers.session import TrainingRun


def test_little_waiting_is_not_worth_a_word():
    assert loading_advice(0.05, 10.0, num_workers=1, num_cores=8) is None


def test_idle_cores_are_pointed_out():
    advice = loading_advice(0.5, 10.0, num_workers=2, num_cores=8)
    assert "waits 50%" in advice and "could train on 20.0" in advice and "num_workers=8" in advice


def test_cores_that_cannot_decode_enough_are_named_with_what_helps():
    advice = loading_advice(0.9, 10.0, num_workers=16, num_cores=16)
    assert "16 cores of a process cannot decode enough" in advice
    assert "data.cache=" in advice and "num_workers=" not in advice
    assert loading_advice(1.0, 1.0, 1, 1)  # no division by zero


def test_cores_are_shared_by_the_processes_of_a_machine(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    alone = cores_of_a_process()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(2 * alone))
    assert cores_of_a_process() == 1


def test_advice_comes_once_and_again_where_it_gets_worse():
    told: list[str] = []
    log = SimpleNamespace(metrics=lambda *_: None, info=lambda _: None, warning=told.append)
    run = SimpleNamespace(
        trainer=SimpleNamespace(log=log, bad_videos=()),
        position=SimpleNamespace(epoch=0),
        step=0,
        epochs=5,
        num_workers=1,
        _told_wait_share=-1.0,
    )
    for share in (0.01, 0.3, 0.35, 0.2, 0.5):
        values = {"loss": 1.0, "videos_per_second": 9.0, "wait_share": share, "bad_videos": 0}
        report = SimpleNamespace(values=lambda values=values: values, seconds=1.0, num_skipped=0)
        TrainingRun._tell_epoch(run, report)
    assert len(told) == 2 and "waits 30%" in told[0] and "waits 50%" in told[1]
