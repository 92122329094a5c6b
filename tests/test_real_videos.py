"""A few-shot run on real clips with the full ViT-B/16 geometry: trains, saves, resumes, and tests the best weights."""

import csv
import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from trainers.config.resolve import resolve

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("all_cores")]


@pytest.fixture(scope="module")
def clip_file(golden_weights, tmp_path_factory) -> Path:
    """Write the golden CLIP weights to a file, as a user has them."""
    path = tmp_path_factory.mktemp("weights") / "clip.pt"
    torch.save({name: torch.tensor(value) for name, value in golden_weights.clip_state_dict(0).items()}, path)
    return path


@pytest.fixture(scope="module")
def lists(shared_videos, tmp_path_factory) -> Path:
    """Write lists and class names for the labelled clips: two classes, four videos to train on and four to test on."""
    with open(shared_videos / "labelled.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = {"wave": 0, "using segway": 1, "cartwheel": 2, "SoccerJuggling": 3}
    lines = [f"{row['path']} {wanted[row['class']]}\n" for row in rows if row["class"] in wanted]
    folder = tmp_path_factory.mktemp("lists")
    (folder / "hmdb_splits").mkdir()
    (folder / "hmdb_splits" / "train1_few_shot_2.txt").write_text("".join(lines[:4]))
    (folder / "hmdb_splits" / "val1.txt").write_text("".join(lines[4:8]))
    names = "".join(f"{label},{name}\n" for name, label in wanted.items())
    (folder / "classes.csv").write_text(f"id,name\n{names}")
    return folder


def run_main(repository: Path, *overrides: str) -> None:
    """Do what `python main.py -cn few_shot ...` does, in this process."""
    from trainers.run import run

    with initialize_config_dir(str(repository / "configs"), version_base="1.3"):
        config = resolve(compose("few_shot", overrides=list(overrides)))
    run(config)


def test_few_shot_on_real_clips(repository, shared_videos, clip_file, lists, tmp_path):
    output = tmp_path / "run"
    command = [
        "data=few_shot_hmdb51",
        "trainer=tc_clip",
        f"trainer.clip_weights={clip_file}",
        f"dataset.hmdb51.root={shared_videos}",
        f"dataset.hmdb51.class_names={lists / 'classes.csv'}",
        f"lists_root={lists}",
        f"output={output}",
        "shot=2",
        "num_frames=4",
        "batch_size=2",
        "total_batch_size=2",
        "test_batch_size=2",
        "num_workers=2",
        "warmup_epochs=0",
        "save_freq=1",
        "num_clip=1",
        "device=cpu",
        "logging.tensorboard=false",
    ]
    run_main(repository, *command, "epochs=1")
    first = torch.load(output / "last.pth", weights_only=True)
    assert first["epoch"] == 1 and len(first["optimizer"]["state"]) > 0
    assert (output / "best.pth").exists()

    longer = tmp_path / "longer"
    run_main(repository, *command, "epochs=1", f"output={longer}", f"resume={output / 'last.pth'}")
    second = torch.load(longer / "last.pth", weights_only=True)
    moved = [name for name, value in second["model"].items() if not torch.equal(value, first["model"][name])]
    assert len(moved) > 300, "nearly every one of the 339 weights learns"

    run_main(repository, *command, "eval=test", f"resume={output / 'best.pth'}", f"output={tmp_path / 'test'}")
    results = json.loads((tmp_path / "test" / "results_eval_test.json").read_text())
    (row,) = results["results"]
    assert row["videos"] == 4 and row["unreadable"] == 0
    trained = json.loads((output / "results.json").read_text())["results"][0]
    assert row["top1"] == pytest.approx(trained["top1"])
