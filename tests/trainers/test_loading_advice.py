"""What a log says where the model waits for videos."""

from trainers.loading_advice import cores_of_a_process, loading_advice


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
