"""Every method's trainer repeats the stored losses and weights of twenty updates (`tests/golden/make_methods.py`)."""

import json
from pathlib import Path

import pytest

from tests.golden.make_methods import EPOCHS, FILE, METHODS, UPDATES, train, write_clip

EXPECTED = json.loads(FILE.read_text(encoding="utf-8"))


def flat(values: dict) -> dict[str, float]:
    """Return a method's numbers by name."""
    losses = {f"loss {number}": loss for number, loss in enumerate(values["losses"])}
    return losses | {f"{group} {n}": x for group, sums in values["sums"].items() for n, x in enumerate(sums)}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.pth"
    write_clip(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("trainer", METHODS)
def test_twenty_updates_are_those_that_were_stored(trainer: str, clip: Path) -> None:
    assert flat(train(trainer, clip)) == pytest.approx(flat(EXPECTED[trainer]), rel=1e-9, abs=1e-9)


def test_adapters_start_as_clip_and_every_method_learns() -> None:
    losses = {name: values["losses"] for name, values in EXPECTED.items()}
    assert losses.keys() == METHODS.keys() and all(len(one) == EPOCHS * UPDATES for one in losses.values())
    for name in ("lora", "st_adapter", "aim"):
        assert losses[name][0] == pytest.approx(losses["vifi_clip"][0], rel=1e-12)
    assert all(sum(one[-5:]) < sum(one[:5]) for one in losses.values())
