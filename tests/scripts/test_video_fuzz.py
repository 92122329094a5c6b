"""The drill with damaged videos, bounded: the mutants of one seed, without a fault."""

from pathlib import Path

import numpy as np
import pytest
import video_fuzz


def test_a_seed_makes_the_same_mutants() -> None:
    content = bytes(range(256)) * 20
    damaged = [video_fuzz.damage(content, content[::-1], np.random.default_rng([0, index])) for index in range(60)]
    assert damaged == [
        video_fuzz.damage(content, content[::-1], np.random.default_rng([0, index])) for index in range(60)
    ]
    assert len({kind for _, kind in damaged}) == 10 and all(mutant != content for mutant, _ in damaged)


def test_what_is_wrong_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (video, *_) = video_fuzz.make_sources(tmp_path)
    assert set(video_fuzz.read(video_fuzz.Mutant(0, str(video), "none", True)).values()) == {"read"}
    with pytest.raises(AssertionError, match="auto accepts what is no video"):
        video_fuzz.read(video_fuzz.Mutant(0, str(video), "none", False))

    def fail(*arguments: object) -> None:
        raise video_fuzz.VideoReadError("v.mp4", "two\nlines")

    monkeypatch.setattr(video_fuzz, "decode", fail)
    with pytest.raises(AssertionError, match="two"):
        video_fuzz.read(video_fuzz.Mutant(0, str(video), "none", True))


@pytest.mark.slow
def test_a_hundred_mutants_have_no_fault(tmp_path: Path) -> None:
    outcomes, faults = video_fuzz.run(tmp_path / "mutants", 100, seed=0, workers=1, limit_s=60)
    assert faults == [] and outcomes.total() == 100
    assert outcomes["refused"] >= 10 and outcomes["read"] >= 10
