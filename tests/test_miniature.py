"""From official annotation files to results, end to end: the five data sets in miniature under every protocol.

make_splits, verify and transcode (packed into tars for some), then training and testing with a tiny model, in this
process, on the CPU.
"""

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from tests.miniature import SUBSETS, Miniature, make_miniature
from trainers.commands.collect_results import main as collect
from trainers.commands.data.own_dataset import Options as NewOptions
from trainers.commands.data.own_videos import new_dataset
from trainers.commands.data.packing import pack
from trainers.commands.data.splits import Options, make_splits
from trainers.commands.data.transcoding import Options as TranscodeOptions
from trainers.commands.data.transcoding import transcode
from trainers.commands.data.verification import ListToVerify, verify
from trainers.commands.data.verification import Options as VerifyOptions
from trainers.commands.data.verify_report import is_safe
from trainers.config.resolve import resolve
from trainers.run import run

DATASETS = ("hmdb51", "k400", "k600", "ssv2", "ucf101")
PACKED = ("ssv2", "ucf101")
TINY = (
    "trainer=tc_clip_tiny", "device=cpu", "precision=fp32", "num_frames=4", "input_size=32", "batch_size=4",
    "total_batch_size=8", "test_batch_size=4", "num_workers=0", "epochs=2", "warmup_epochs=1", "lr=1e-3", "save_freq=1",
    "logging.tensorboard=false", "logging.pictures=false", "logging.progress=lines", "wise_ft=null",
    "trainer.options.patch_size=8", "trainer.options.vision_width=64", "trainer.options.vision_depth=2",
    "trainer.options.text_width=64", "trainer.options.text_depth=2", "trainer.options.embed_dim=64",
    "trainer.options.num_context_tokens=4", "trainer.options.merge_rate=4", "trainer.options.prompt_layers=[2]",
)  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """Folders of the prepared data sets."""

    miniature: Miniature
    lists: Path
    fast: Path

    def root(self, dataset: str) -> Path:
        return self.fast / (f"{dataset}.tar" if dataset in PACKED else dataset)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Return the data sets after make_splits, verify, transcode and pack."""
    root = tmp_path_factory.mktemp("prepared")
    miniature = make_miniature(root / "miniature")
    found = Prepared(miniature, root / "lists", root / "fast")
    options = Options(shots=(1, 2), base2novel_shots=2, tiny_per_class=2)
    lists = []
    for dataset in DATASETS:
        videos, annotations = miniature.videos(dataset), miniature.annotations(dataset)
        made, _ = make_splits(dataset, annotations, found.lists, options, miniature.labels, videos)
        for name in made:
            if "base2novel" not in name and "temporal" not in name and "ZS_" not in name:
                names = miniature.labels / f"{dataset}.csv"
                lists.append(ListToVerify(name, str(videos), found.lists / name, names))
    verified = verify(lists, root / "report", VerifyOptions(full=True, num_frames=4, workers=2))
    assert is_safe(verified, 0) and {item.level for item in verified} <= {"ok", "note"}
    # One call for all: processes are what costs here.
    outcome = transcode(miniature.root / "videos", found.fast, TranscodeOptions(preset="ultrafast", workers=2))
    assert outcome.failures == {} and outcome.done >= len(verified)
    for dataset in PACKED:
        pack(found.fast / dataset, found.root(dataset))
    return found


@pytest.fixture(scope="module")
def start(prepared: Prepared, repository: Path) -> Callable[..., list]:
    def start_run(protocol: str, data: str, output: Path, *more: str, configs: Path | None = None) -> list:
        roots = [f"++dataset.{name}.root={prepared.root(name)}" for name in DATASETS]
        names = "labels/llm" if data.endswith("_llm") else "labels"
        overrides = [f"data={data}", f"output={output}", f"lists_root={prepared.lists}", *TINY]
        overrides += [f"labels_root={prepared.miniature.root / names}", *roots, *more]
        with initialize_config_dir(str(configs or repository / "configs"), version_base="1.3"):
            config = resolve(compose(protocol, overrides=overrides))
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return run(config)
        finally:
            torch.set_num_threads(num_threads)

    return start_run


def check(output: Path, expected: dict[str, int]) -> None:
    """Check that results and predictions agree and cover every video: list -> videos."""
    results = json.loads((output / "results.json").read_text())["results"]
    assert {row["name"]: row["videos"] for row in results} == expected
    for row in results:
        assert row["unreadable"] == 0 and row["top5"] is None
        with (output / row["predictions"]).open(newline="") as file:
            predictions = list(csv.DictReader(file))
        right = sum(prediction["name"] == prediction["predicted1"] for prediction in predictions)
        assert len({prediction["video"] for prediction in predictions}) == row["videos"]
        assert row["top1"] == pytest.approx(100 * right / row["videos"])


K600 = {f"k600_split{split}": 2 * len(SUBSETS[f"k600_split{split}"]) for split in (1, 2, 3)}
ZERO_SHOT = {f"{name}_split{split}": 8 for name in ("hmdb51", "ucf101") for split in (1, 2, 3)} | K600


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("data", ["zero_shot_k400", "zero_shot_k400_tiny", "zero_shot_k400_llm"])
def test_zero_shot(start, runs: Path, data: str) -> None:
    rows = start("zero_shot", data, runs / data)
    assert [row.part for row in rows] == ["val"] + ["test"] * 9
    check(runs / data, {data: 8, **ZERO_SHOT})
    log = (runs / data / "log.txt").read_text()
    assert re.search(rf"train +{data}: {8 if 'tiny' in data else 15} videos, 4 classes", log)
    assert "hmdb51, mean of 3" in log and "k600, mean of 3" in log


@pytest.mark.parametrize("data", ["few_shot_hmdb51", "few_shot_ucf101", "few_shot_ssv2", "few_shot_ucf101_llm"])
def test_few_shot(start, runs: Path, data: str) -> None:
    (row,) = start("few_shot", data, runs / data, "shot=2")
    assert (row.part, row.num_clip) == ("val", 2)
    check(runs / data, {data: 8})


@pytest.mark.parametrize("data", ["base2novel_k400", "base2novel_hmdb51", "base2novel_ucf101_llm", "base2novel_ssv2"])
def test_base2novel(start, runs: Path, data: str) -> None:
    rows = start("base2novel", data, runs / data, "base=2")
    assert [row.part for row in rows] == ["val", "test"]
    check(runs / data, {data: 4, f"{data.split('_')[1]}_novel": 4})


def test_fully_supervised(start, runs: Path) -> None:
    rows = start("fully_supervised", "fully_supervised_k400", runs / "fully_supervised_k400")
    assert [(row.part, row.num_clip, row.num_crop) for row in rows] == [("val", 1, 1), ("test", 4, 3)]
    check(runs / "fully_supervised_k400", {"fully_supervised_k400": 8, "k400": 8})


def test_pretrained_rows_start_from_the_zero_shot_checkpoint(start, runs: Path) -> None:
    if not (runs / "zero_shot_k400" / "best.pth").exists():
        start("zero_shot", "zero_shot_k400", runs / "zero_shot_k400")
    resume = f"resume={runs / 'zero_shot_k400' / 'best.pth'}"
    start("few_shot", "few_shot_hmdb51", runs / "pretrained", "shot=2", resume)
    check(runs / "pretrained", {"few_shot_hmdb51": 8})
    assert f"weights of {runs / 'zero_shot_k400' / 'best.pth'}" in (runs / "pretrained" / "log.txt").read_text()
    start("base2novel", "base2novel_ssv2", runs / "pretrained_b2n", "base=1", "epochs=1", "warmup_epochs=0", resume)
    check(runs / "pretrained_b2n", {"base2novel_ssv2": 4, "ssv2_novel": 4})


def test_labels_survive_the_whole_way(prepared: Prepared, start, tmp_path: Path) -> None:
    """The class that a result names is the folder that the video came from, also through tar and re-encoding."""
    start("few_shot", "few_shot_ucf101", tmp_path / "run", "shot=1", "epochs=1", "warmup_epochs=0")
    with (tmp_path / "run" / "predictions_val_few_shot_ucf101.csv").open(newline="") as file:
        for prediction in csv.DictReader(file):
            (original,) = prepared.miniature.videos("ucf101").rglob(prediction["video"])
            assert original.parent.name == prediction["name"]


@pytest.mark.slow
def test_own_videos(prepared: Prepared, start, repository: Path, tmp_path: Path) -> None:
    """Class folders through new_dataset, for all protocols."""
    configs = shutil.copytree(repository / "configs", tmp_path / "configs", ignore=shutil.ignore_patterns("local.yaml"))
    options = NewOptions(shots=(2,), base2novel_shots=2)
    new_dataset("mine", prepared.miniature.videos("hmdb51"), tmp_path / "lists", configs, options)
    short = ("epochs=1", "warmup_epochs=0")
    expected = {"zero_shot": {"mine_novel": 12}, "few_shot": {}, "base2novel": {"mine_novel": 2}}
    expected["fully_supervised"] = {"mine": 4}
    for protocol, tests in expected.items():
        output = tmp_path / protocol
        more = {"few_shot": ["shot=2"], "base2novel": ["base=3"]}.get(protocol, [])
        start(protocol, f"{protocol}_mine", output, *more, *short, configs=configs)
        half = protocol in ("zero_shot", "base2novel")
        check(output, {f"{protocol}_mine": 2 if half else 4, **tests})


def test_the_tables_have_every_cell_that_was_run(start, runs: Path, tmp_path: Path) -> None:
    needed = ("zero_shot_k400", "few_shot_ssv2", "base2novel_hmdb51", "fully_supervised_k400", "pretrained")
    if not all((runs / name / "results.json").exists() for name in needed):
        pytest.skip("goes with the other tests of this file")
    assert collect([str(runs), "--output", str(tmp_path)]) == 0
    lines = (tmp_path / "tables.md").read_text().splitlines()
    ours = [line for line in lines if line.startswith("| TC-CLIP (from random weights): ours")]
    filled = [[cell.strip() for cell in line.strip("|").split("|")[1:]] for line in ours]
    assert [sum(bool(cell) for cell in cells) for cells in filled] == [3, 3, 9, 1]
    assert sum(line.startswith("| TC-CLIP (P, from random weights): ours") for line in lines) == 2
    rephrased = "| TC-CLIP (LLM, this project's names, from random weights): ours"
    assert sum(line.startswith(rephrased) for line in lines) == 3
    paper_s = ("| TC-CLIP: ours", "| TC-CLIP (LLM): ours", "| TC-CLIP (P): ours")
    assert not any(line.startswith(paper_s) for line in lines), "none of these reproduces a row of the paper"
    (tiny,) = (line for line in lines if line.startswith("| TC-CLIP (from random weights, trained on k400_tiny): ours"))
    zero_shot = json.loads((runs / "zero_shot_k400" / "results.json").read_text())
    (row,) = (line for line in ours if "K600" in lines[lines.index(line) - 3])
    means = {item["name"]: f"{item['top1']:.1f} +- {item['top1_std']:.1f}" for item in zero_shot["summary"]}
    assert [cell.strip() for cell in row.strip("|").split("|")[1:]] == [means[n] for n in ("hmdb51", "ucf101", "k600")]
