"""The data configurations of the published protocols: they compose, and have the facts of the data sets."""

import csv
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from trainers.session import TrainingRun

DATA = {
    "zero_shot_k400": "zero_shot",
    "zero_shot_k400_tiny": "zero_shot",
    "few_shot_hmdb51": "few_shot",
    "few_shot_ucf101": "few_shot",
    "few_shot_ssv2": "few_shot",
    "base2novel_k400": "base2novel",
    "base2novel_hmdb51": "base2novel",
    "base2novel_ucf101": "base2novel",
    "base2novel_ssv2": "base2novel",
    "fully_supervised_k400": "fully_supervised",
}
OPTIONS = {"few_shot": ["shot=8"], "base2novel": ["base=3"]}
NUM_CLASSES = {"k400": 400, "k600": 160, "hmdb51": 51, "ucf101": 101, "ssv2": 174}
HALVES = {"k400": (200, 200), "hmdb51": (26, 25), "ucf101": (51, 50), "ssv2": (87, 87)}


@pytest.fixture(scope="module")
def composed(repository: Path) -> dict[str, DictConfig]:
    found = {}
    with initialize_config_dir(str(repository / "configs"), version_base="1.3"):
        for name, protocol in DATA.items():
            overrides = [f"data={name}", "output=unused", f"labels_root={repository / 'labels'}"]
            config = compose(protocol, overrides=overrides + OPTIONS.get(protocol, []))
            OmegaConf.resolve(config)
            found[name] = config
    return found


def entries(config: DictConfig) -> list[DictConfig]:
    return [config.data.train, config.data.val, *config.data.test]


def num_classes(entry: DictConfig) -> int:
    with open(entry.class_names, newline="") as file:
        return len(list(csv.DictReader(file)))


@pytest.mark.parametrize("name", DATA)
def test_composes_completely(composed: dict[str, DictConfig], name: str) -> None:
    config = composed[name]
    assert config.data.name == name and config.data.protocol == config.protocol == DATA[name]
    for entry in entries(config):
        facts = config.dataset[entry.dataset]
        assert facts.root == f"data/{entry.dataset}" and facts.lists == "data/lists"
        assert entry.list.endswith(".txt") and "None" not in entry.list
        assert Path(entry.class_names).is_file()
    assert len({test.name for test in config.data.test}) == len(config.data.test)


@pytest.mark.parametrize("name", DATA)
def test_only_what_is_used_is_there(composed: dict[str, DictConfig], name: str) -> None:
    config = composed[name]
    assert set(config.dataset) == {entry.dataset for entry in entries(config)}


@pytest.mark.parametrize("name", DATA)
def test_flip_and_capital_rule(composed: dict[str, DictConfig], name: str) -> None:
    for dataset, facts in composed[name].dataset.items():
        assert facts.flip == (dataset != "ssv2")
        assert facts.split_camel_case is True


@pytest.mark.parametrize("name", [name for name in DATA if not name.startswith("base2novel")])
def test_class_counts(composed: dict[str, DictConfig], name: str) -> None:
    for entry in entries(composed[name]):
        assert num_classes(entry) == NUM_CLASSES[entry.dataset]


@pytest.mark.parametrize("name", [name for name in DATA if name.startswith("base2novel")])
def test_base_to_novel(composed: dict[str, DictConfig], name: str) -> None:
    data = composed[name].data
    num_base, num_novel = HALVES[data.train.dataset]
    assert data.train.class_names == data.val.class_names and num_classes(data.train) == num_base
    assert [num_classes(test) for test in data.test] == [num_novel]
    assert "_s3_" in data.train.list
    assert "base_val" in data.val.list and "novel_val" in data.test[0].list


@pytest.mark.parametrize("name", ["few_shot_hmdb51", "few_shot_ucf101", "few_shot_ssv2"])
def test_few_shot(composed: dict[str, DictConfig], name: str) -> None:
    data = composed[name].data
    assert data.train.list.endswith("_few_shot_8.txt")
    assert [test.list for test in data.test] == [data.val.list]


@pytest.mark.parametrize("name", ["zero_shot_k400", "zero_shot_k400_tiny"])
def test_zero_shot_tests_three_splits_of_three_data_sets(composed: dict[str, DictConfig], name: str) -> None:
    data = composed[name].data
    assert [test.group for test in data.test] == ["hmdb51"] * 3 + ["ucf101"] * 3 + ["k600"] * 3
    assert len({test.list for test in data.test}) == 9
    assert len({test.class_names for test in data.test if test.group == "k600"}) == 3
    assert ("tiny" in data.train.list) == ("tiny" in name)


def test_paths_can_be_set_in_one_place(repository: Path) -> None:
    """A data set may lie anywhere, as a folder or a tar, and the lists may be a published folder of lists."""
    overrides = ["data=few_shot_ssv2", "output=unused", "shot=2"]
    overrides += ["lists_root=/lists/datasets_splits", "dataset.ssv2.root=/videos/ssv2.tar"]
    with initialize_config_dir(str(repository / "configs"), version_base="1.3"):
        config = compose("few_shot", overrides=overrides)
    assert config.dataset.ssv2.root == "/videos/ssv2.tar"
    lists = Path(config.dataset.ssv2.lists)
    assert lists / config.data.train.list == Path("/lists/datasets_splits/ssv2_splits/train1_few_shot_2.txt")


def test_published_names_of_lists(composed: dict[str, DictConfig]) -> None:
    assert composed["base2novel_k400"].data.train.list == "base2novel_splits/k400_splits/fs_base_s3_train.txt"


def test_few_shot_validates_after_the_published_epochs() -> None:
    session = TrainingRun.__new__(TrainingRun)
    session.save_freq, session.epochs = 10, 50
    assert [epoch + 1 for epoch in range(50) if session.is_validated(epoch)] == [1, 11, 21, 31, 41, 50]
    session.save_freq = 1
    assert all(session.is_validated(epoch) for epoch in range(50))
