"""What a reader of results must know about labels: in the plan and in results.json."""

import json
import shutil
from pathlib import Path

import pytest

from trainers.reporting.caveats import caveats
from trainers.reporting.write_results import WeightsFile
from trainers.run import run


@pytest.mark.parametrize(
    ("choice", "config", "text"),
    [
        ("llm", None, "labels=llm are sentences of this project; published"),
        ("froster", None, None),
        ("names", None, None),
        ("llm", {"label_choice": "llm"}, None),
        ("names", {"label_choice": "llm"}, "the weights are trained with labels=llm, these are labels=names"),
        ("llm", {}, None),
    ],
)
def test_rephrased_names_of_other_weights(compose_run, choice: str, config: dict | None, text: str | None) -> None:
    settings = compose_run()
    object.__setattr__(settings, "label_choice", choice)
    found = caveats(settings, [], WeightsFile("best.pth", "0" * 64, config))
    assert [line.startswith(text) for line in found] == [True] if text else found == []
    assert caveats(settings, [], None) == []


@pytest.mark.slow
def test_a_training_that_starts_from_other_labels_says_so(compose_run, tmp_path: Path) -> None:
    run(compose_run(epochs=1, warmup_epochs=0))
    best = tmp_path / "run" / "best.pth"
    settings = compose_run(epochs=1, warmup_epochs=0, resume=best, output=tmp_path / "again")
    object.__setattr__(settings, "label_choice", "froster")
    run(settings)
    (line,) = json.loads((tmp_path / "again" / "results.json").read_text())["caveats"]
    assert line.startswith("the weights are trained with labels=names, these are labels=froster")


def test_labels_that_differ_from_the_paths_are_reported(compose_run, tiny_root: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_root, tmp_path / "data"))
    shapes = root / "shapes"
    for path in sorted((shapes / "videos").glob("*.mp4")):
        path.rename(path.with_name(f"{path.stem}_clapping.mp4"))
    for path in (shapes / "lists").glob("*.txt"):
        path.write_text(path.read_text().replace(".mp4", "_clapping.mp4"))
    (shapes / "labels" / "all.csv").write_text("id,name\n0,clapping\n1,waving\n2,boxing\n")
    run(compose_run(data_root=root, epochs=1, warmup_epochs=0))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    state = "other than in the paths: 5 of 7 videos (waving for clapping, boxing for clapping)"
    assert results["results"][0]["files"]["labels"] in (
        state,
        state.replace("waving for clapping, boxing", "boxing for clapping, waving"),
    )
    assert len(results["caveats"]) == 2  # of the training list and of the validation list
    text = (tmp_path / "run" / "log.txt").read_text()
    assert text.count("labels are other than in the paths") == 4, "in the plan and at the end"
