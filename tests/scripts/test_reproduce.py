"""Published rows again, on miniature data with made-up checkpoints of the published layouts."""

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import tc_clip
from tc_clip.weights.layouts import to_clip, to_published
from tests.miniature import Miniature
from trainers.commands.data.splits import Options, make_splits
from trainers.commands.reproduce import main
from trainers.commands.reproduction import published_rows

SIZES = {"image_size": 32, "patch_size": 16, "vision_width": 64, "vision_depth": 2, "text_width": 64, "text_depth": 2}
SIZES |= {"embed_dim": 64}
TC = {"prompt_layers": [2], "num_context_tokens": 4, "merge_rate": 4}
LISTS = {"hmdb51": (1, 2), "k400": (1,)}


@dataclass(frozen=True)
class Prepared:
    """Folders with all that the command needs, and arguments that make the model tiny."""

    root: Path
    miniature: Miniature

    def run(self, output: Path, *more: str, trainer: str = "tc_clip") -> tuple[int, dict[str, dict]]:
        """Run the command; return its status and the rows of its JSON by title."""
        options = [f"trainer.options.{name}={value}" for name, value in TC.items()] if trainer == "tc_clip" else []
        status = main(
            [
                *("--checkpoints", str(self.root / "published"), "--data", str(self.miniature.root / "videos")),
                *("--lists", str(self.root / "lists"), "--output", str(output), "--trainers", trainer, *more),
                *(f"labels_root={self.miniature.labels}", f"trainer.clip_weights={self.root / 'clip.pt'}"),
                *("num_frames=4", "input_size=32", "num_workers=0", "device=cpu", *options),
            ]
        )
        rows = json.loads((output / "reproduction.json").read_text())["rows"]
        return status, {row["row"]: row for row in rows}


@pytest.fixture(scope="module")
def prepared(miniature: Miniature, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = tmp_path_factory.mktemp("reproduce")
    for dataset, shots in LISTS.items():
        options = Options(shots=shots, base2novel_shots=2, tiny_per_class=2)
        folders = (miniature.annotations(dataset), root / "lists", options, miniature.labels, miniature.videos(dataset))
        make_splits(dataset, *folders)
    for trainer, names in {
        "tc_clip": ("zero_shot_k400", "few_shot_hmdb51_2", "base2novel_hmdb51_1", "base2novel_hmdb51_2"),
        "vifi_clip": ("zero_shot_k400",),
    }.items():
        torch.manual_seed(len(trainer))
        options = SIZES | ({**TC, "prompt_layers": (2,)} if trainer == "tc_clip" else {})
        model = tc_clip.create_model(trainer, class_names=["a", "b"], **options)
        if trainer == "tc_clip":
            known = dict(model.state_dict())
            known = {n: v for n, v in known.items() if not n.startswith("prompts.") and "local_global_bias" not in n}
            torch.save(to_clip(known | {"text.token_embedding": model.text.token_embedding}), root / "clip.pt")
        for number, name in enumerate(names):
            weights = {n: v + 0.02 * number * torch.randn_like(v) for n, v in model.state_dict().items()}
            weights = to_published(weights, split_vision_projections=trainer == "tc_clip")
            weights["prompt_learner.token_prefix"] = torch.zeros(2, 1, 64)
            path = root / "published" / trainer / f"{name}.pth"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"model": {f"module.{n}": v for n, v in weights.items()}, "epoch": 9}, path)
    return Prepared(root, miniature)


def accuracy(folder: Path) -> list[float]:
    """Return the accuracy of each predictions file, in percent."""
    found = []
    for path in sorted(folder.glob("predictions_*.csv")):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        found.append(100 * sum(row["name"] == row["predicted1"] for row in rows) / len(rows))
    return found


def test_rows_are_compared_and_the_others_say_why(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    status, rows = prepared.run(tmp_path, "--protocols", "zero_shot,few_shot", "--datasets", "hmdb51,k600")
    assert status == 1, "numbers of random weights are not the paper's"
    row = rows["TC-CLIP, zero_shot, HMDB-51, top-1"]
    folder = tmp_path / "tc_clip" / "zero_shot_k400_on_hmdb51"
    splits = accuracy(folder)
    assert len(splits) == 3 and row["here"] == pytest.approx(sum(splits) / 3)
    assert row["published"] == 54.2 and row["difference"] == pytest.approx(row["here"] - 54.2)
    assert row["within"] is False
    document = json.loads((folder / "results_eval_test.json").read_text())
    assert (document["wise_ft"], document["random_views"]) == (0.7, True)
    assert {entry["num_clip"] for entry in document["results"]} == {2}
    reasons = "\n".join(row["reasons"])
    assert "hmdb51_split1: the list hmdb_splits/val1.txt has 8 videos, the published one 1,530" in reasons
    assert "hmdb51_split1: labels are as in the paths" in reasons and "precision=fp32, published fp16" in reasons
    few = rows["TC-CLIP, few_shot, HMDB-51, K=2"]
    assert few["here"] == pytest.approx(accuracy(tmp_path / "tc_clip" / "few_shot_hmdb51_2")[0])

    (lacking,) = rows["TC-CLIP, zero_shot, K600, top-1"]["reasons"]
    assert "k600_split1: no list at" in lacking
    (absent,) = rows["TC-CLIP, few_shot, HMDB-51, K=16"]["reasons"]
    assert f"put it at {prepared.root / 'published' / 'tc_clip' / 'few_shot_hmdb51_16.pth'}" in absent
    printed = capsys.readouterr().out
    assert "OUTSIDE" in printed and "not run" in printed and "2 of 16 rows were run" in printed

    before = (folder / "results_eval_test.json").stat().st_mtime_ns
    _, again = prepared.run(tmp_path, "--protocols", "zero_shot", "--datasets", "hmdb51")
    assert again["TC-CLIP, zero_shot, HMDB-51, top-1"]["here"] == row["here"]
    assert (folder / "results_eval_test.json").stat().st_mtime_ns == before, "evaluated once"


def test_base_to_novel_needs_its_three_lists(prepared: Prepared, tmp_path: Path) -> None:
    chosen = ("--protocols", "base2novel", "--datasets", "hmdb51")
    _, rows = prepared.run(tmp_path, *chosen)
    (reason,) = rows["TC-CLIP, base2novel, HMDB-51, HM"]["reasons"]
    assert reason.startswith("tc_clip/base2novel_hmdb51_3: no checkpoint")
    third = prepared.root / "published" / "tc_clip" / "base2novel_hmdb51_3.pth"
    shutil.copy(third.with_name("base2novel_hmdb51_1.pth"), third)
    try:
        _, rows = prepared.run(tmp_path, *chosen)
    finally:
        third.unlink()
    found = [accuracy(tmp_path / "tc_clip" / f"base2novel_hmdb51_{number}") for number in (1, 2, 3)]
    novel, base = (sum(values[part] for values in found) / 3 for part in (0, 1))  # test before val, by name
    here = [rows[f"TC-CLIP, base2novel, HMDB-51, {measure}"]["here"] for measure in ("base", "novel", "HM")]
    assert here == pytest.approx([base, novel, 2 * base * novel / (base + novel) if base + novel else 0])


def test_missing_videos_are_a_reason_and_a_number_within_is_one(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(prepared.miniature.root / "videos", videos)
    listed = (prepared.root / "lists" / "hmdb_splits" / "val1.txt").read_text().splitlines()
    (gone,) = videos.rglob(listed[0].rpartition(" ")[0].rpartition("/")[2])
    gone.unlink()
    moved = Prepared(prepared.root, prepared.miniature)
    arguments = ("--protocols", "few_shot", "--datasets", "hmdb51", f"data_root={videos}")
    _, rows = moved.run(tmp_path / "out", *arguments)
    row = rows["TC-CLIP, few_shot, HMDB-51, K=2"]
    assert "few_shot_hmdb51: 1 of 8 videos are missing" in row["reasons"]
    assert row["here"] == pytest.approx(accuracy(tmp_path / "out" / "tc_clip" / "few_shot_hmdb51_2")[0])
    monkeypatch.setitem(
        published_rows.__globals__["PUBLISHED"], ("few_shot", "", "hmdb51", "K=2"), (row["here"] + 0.3, None)
    )
    status, rows = moved.run(tmp_path / "out", *arguments)
    assert (status, rows["TC-CLIP, few_shot, HMDB-51, K=2"]["within"]) == (0, True)


def test_vifi_clip_and_hashes_of_a_ledger(prepared: Prepared, tmp_path: Path) -> None:
    chosen = ("--protocols", "zero_shot", "--datasets", "hmdb51")
    ledger = tmp_path / "ledger"
    ledger.mkdir()
    first = (*chosen, f"logging.ledger={ledger}")
    status, rows = prepared.run(tmp_path / "out", *first, trainer="vifi_clip")
    row = rows["ViFi-CLIP, zero_shot, HMDB-51, top-1"]
    assert status == 0 and row["within"] is None and row["here"] is not None
    assert row["reasons"][0] == "its published number is not known to this project"
    (entry,) = ledger.glob("*.json")
    entry.write_text(entry.read_text().replace('"list_sha256": "', '"list_sha256": "0'))
    _, rows = prepared.run(tmp_path / "out", *chosen, "--ledger", str(ledger), trainer="vifi_clip")
    differing = [line for line in rows[row["row"]]["reasons"] if "the list's SHA-256 is" in line]
    assert len(differing) == 3 and entry.name in differing[0]


def test_a_wrong_key_is_reported_before_any_evaluation(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        prepared.run(tmp_path, "--protocols", "zero_shot", "num_frame=3")
    assert stop.value.code == 2 and not list(tmp_path.glob("tc_clip"))
