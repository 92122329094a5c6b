"""The fuzzer in its short form: the first mutants of each kind; and it sees what it is made to see."""

import sys

import fuzz
import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="limits its memory by /proc")
@pytest.mark.parametrize(("kind", "count"), [("settings", 40), ("lists", 100), ("checkpoints", 20)])
def test_the_first_mutants(kind: str, count: int) -> None:
    done, failures = fuzz.fuzz(kind, seed=0, first=0, count=count, seconds=60)
    assert failures == [] and done >= count // 10


def test_a_mutant_follows_from_its_number(tmp_path) -> None:
    import random

    kind = fuzz.ListsKind(tmp_path)
    words = [[kind.mutant(random.Random(f"lists {seed} {number}"))[0] for number in range(20)] for seed in (0, 0, 1)]
    assert words[0] == words[1] != words[2]


def test_tracebacks_hangs_long_errors_and_silence_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    def traceback() -> None:
        raise ZeroDivisionError("a fault")

    def hang() -> None:
        while True:
            pass

    def refuse() -> None:
        raise fuzz.ConfigError("what is wrong")

    def leave() -> None:
        sys.exit(3)

    monkeypatch.setattr(fuzz, "LIMIT_S", 1)
    assert "ZeroDivisionError: a fault at " in (fuzz.outcome_of(traceback) or "")
    assert fuzz.outcome_of(hang) == "takes more than 1 s"
    assert fuzz.outcome_of(lambda: "accepted") == "accepted"
    assert fuzz.outcome_of(refuse) is None and fuzz.outcome_of(lambda: None) is None
    assert (fuzz.outcome_of(leave) or "").startswith("exit status 3")
