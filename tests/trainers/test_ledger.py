"""The ledger: an entry per finished run, without folders of the machine, equal hashes for equal recipes."""

import hashlib
import json
from pathlib import Path

import pytest

from trainers.commands.collect_results import main as collect
from trainers.reporting.ledger import recipe_of
from trainers.run import run

SHORT = {"protocol": "zero_shot", "epochs": 1, "warmup_epochs": 0}


def entries_of(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def test_every_finished_run_adds_an_entry(compose_run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ledger, output = tmp_path / "ledger", tmp_path / "run"
    run(compose_run(**SHORT, logging__ledger=ledger))
    (entry,) = entries_of(ledger)
    results = json.loads((output / "results.json").read_text())
    for name in ("summary", "weights_sha256", "versions", "seed", "training"):
        assert entry[name] == results[name], name
    assert entry["weights_sha256"] == hashlib.sha256((output / "best.pth").read_bytes()).hexdigest()
    listed = [row["files"]["list_sha256"] for row in entry["results"]]
    assert listed == [row["files"]["list_sha256"] for row in results["results"]] and all(listed)
    canonical = json.dumps(entry["configuration"], sort_keys=True, separators=(",", ":"))
    assert entry["configuration_sha256"] == hashlib.sha256(canonical.encode()).hexdigest()
    assert entry["seconds"] > 0 and entry["finished"] >= entry["started"]
    assert entry["environment"]["platform"] and "command" not in entry["environment"]
    assert str(tmp_path.parent) not in json.dumps(entry), "an entry names no folder"

    run(compose_run(**SHORT, logging__ledger=ledger, eval="test", resume=output / "best.pth"))
    assert sorted(str(entry["evaluates"]) for entry in entries_of(ledger)) == ["None", "test"]
    capsys.readouterr()
    assert collect([str(ledger)]) == 0
    top1 = results["results"][1]["top1"]
    assert f"| {top1:.1f} |" in capsys.readouterr().out


def test_the_hash_is_that_of_the_recipe(compose_run, tmp_path: Path) -> None:
    def recipe(**options: object) -> dict:
        return recipe_of(compose_run(**{**SHORT, **options}).to_dict())

    same = recipe()
    assert same == recipe(output=tmp_path / "other", num_workers=3, logging__print_every=7)
    assert same == recipe(data__cache=tmp_path, data__cache_format="raw") == recipe(data__cache_frames=40)
    jpeg = {"data__cache": tmp_path, "data__cache_format": "jpeg"}
    assert recipe(**jpeg) != recipe(**jpeg, data__cache_frames=40), "the frames that views choose among"
    for changed in (jpeg, {"lr": 2e-3}, {"num_clip": 3}, {"wise_ft": None}, {"aug__mixup": 0}):
        assert recipe(**changed) != same, changed


def test_a_ledger_that_cannot_be_written_ends_no_run(compose_run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run(compose_run(**SHORT, logging__ledger=tmp_path / "file"))
    assert (tmp_path / "run" / "results.json").is_file()
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"the entry of the ledger was not written: logging.ledger={tmp_path / 'file'}: is a file" in log


def test_the_time_in_an_entry_decides_which_result_is_the_newest(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, finished, top1 in (("b", "2026-01-01T00:00:00+00:00", 10.0), ("a", "2026-03-01T00:00:00+00:00", 70.0)):
        row = {"part": "test", "name": "x", "group": "hmdb51", "top1": top1, "top5": None, "wise_ft": None}
        facts = {"protocol": "zero_shot", "data": "zero_shot_k400", "trainer": "tc_clip", "seed": 1, "training": None}
        path = tmp_path / f"results_{name}.json"
        path.write_text(json.dumps({**facts, "finished": finished, "results": [row]}))
    (tmp_path / "results_b.json").touch()  # a newer file of an older run, as after a copy
    assert collect([str(tmp_path)]) == 0
    assert "| TC-CLIP: ours | 70.0 |" in capsys.readouterr().out
