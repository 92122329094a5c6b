"""configs/local.yaml, which has the paths of a machine, and the choice of class names."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from trainers.config.lists import label_choice_of
from trainers.config.resolve import resolve
from trainers.config.settings import Settings
from trainers.errors import ConfigError

HMDB51 = ["data=few_shot_hmdb51", "shot=2", "output=unused"]


@pytest.fixture
def configs(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the configurations, in which the test may write a local.yaml."""
    monkeypatch.delenv("TC_CLIP_LOCAL")
    ignore = shutil.ignore_patterns("local.yaml")
    return shutil.copytree(repository / "configs", tmp_path / "configs", ignore=ignore)


def composed(configs: Path, *overrides: str, protocol: str = "few_shot") -> Settings:
    with initialize_config_dir(str(configs), version_base="1.3"):
        return resolve(compose(protocol, overrides=list(overrides)))


def test_paths_come_from_local_and_the_command_line_wins(configs: Path) -> None:
    before = composed(configs, *HMDB51)
    assert before.dataset["hmdb51"]["root"] == "data/hmdb51"
    (configs / "local.yaml").write_text(
        "data_root: /big\nlists_root: /lists\ndataset: {hmdb51: {root: /fast/hmdb51.tar}, ssv2: {root: /elsewhere}}\n"
        "num_workers: 3\n"
    )
    local = composed(configs, *HMDB51)
    assert local.dataset["hmdb51"]["root"] == "/fast/hmdb51.tar"
    assert local.dataset["hmdb51"]["lists"] == "/lists" and local.num_workers == 3
    assert composed(configs, "data=few_shot_ucf101", *HMDB51[1:]).dataset["ucf101"]["root"] == "/big/ucf101"
    command = composed(configs, *HMDB51, "dataset.hmdb51.root=/mine", "num_workers=5", "lists_root=/other")
    assert command.dataset["hmdb51"]["root"] == "/mine" and command.num_workers == 5
    assert command.dataset["hmdb51"]["lists"] == "/other"


def test_local_reaches_configurations_built_on_others(configs: Path) -> None:
    (configs / "local.yaml").write_text("dataset: {hmdb51: {root: /fast/hmdb51}}\n")
    data = ["data=few_shot_hmdb51_llm", "shot=2", "output=unused"]
    assert composed(configs, *data).dataset["hmdb51"]["root"] == "/fast/hmdb51"


def test_git_ignores_the_local_file(repository: Path) -> None:
    assert "configs/local.yaml" in (repository / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize(
    ("protocol", "overrides", "message"),
    [
        (
            "few_shot",
            ["data=few_shot_ssv2", "labels=llm"],
            "labels=llm has no class names for ssv2 .*few_shot_hmdb51_llm",
        ),
        ("base2novel", ["data=base2novel_ssv2", "labels=froster"], "for ssv2 .*base2novel_k400_llm"),
        ("few_shot", ["data=few_shot_shapes", "labels=llm"], "no class names for shapes .*few_shot_ucf101_llm"),
        ("zero_shot", ["data=zero_shot_k400", "shot=4"], "shot=4 goes with -cn few_shot; -cn zero_shot has none"),
        ("few_shot", ["data=few_shot_ssv2", "base=1"], "base=1 goes with -cn base2novel; -cn few_shot has none"),
        ("base2novel", ["data=base2novel_ssv2", "base=4"], "base=4: must be one of 1, 2, 3 or null"),
    ],
)
def test_wrong_combinations_name_the_right_ones(
    repository: Path, protocol: str, overrides: list[str], message: str
) -> None:
    needed = {"few_shot": ["shot=2"], "base2novel": ["base=1"]}.get(protocol, [])
    with pytest.raises(ConfigError, match=message):
        composed(repository / "configs", "output=unused", *needed, *overrides, protocol=protocol)


def test_the_choice_of_names_is_known(repository: Path) -> None:
    """Results contain the choice, or nothing for a class-name file of the user."""
    found = [
        label_choice_of(composed(repository / "configs", *HMDB51, *more))
        for more in ([], ["labels=llm"], ["labels=froster"], ["labels_root=x"], ["dataset.hmdb51.class_names=x.csv"])
    ]
    assert found == ["names", "llm", "froster", "names", None]


LLM = sorted(path.stem for path in (Path(__file__).parent.parent / "configs" / "data").glob("*_llm.yaml"))


def test_every_published_data_set_but_ssv2_has_an_llm_variant() -> None:
    assert LLM == [
        "base2novel_hmdb51_llm",
        "base2novel_k400_llm",
        "base2novel_ucf101_llm",
        "few_shot_hmdb51_llm",
        "few_shot_ucf101_llm",
        "fully_supervised_k400_llm",
        "zero_shot_k400_llm",
        "zero_shot_k400_tiny_llm",
    ]


@pytest.mark.parametrize("name", LLM)
def test_llm_differs_in_names_alone(repository: Path, name: str) -> None:
    protocol = next(
        part for part in ("zero_shot", "few_shot", "base2novel", "fully_supervised") if name.startswith(part)
    )
    options = {"few_shot": ["shot=4"], "base2novel": ["base=2"]}.get(protocol, [])

    def config(data: str, *more: str) -> dict[str, Any]:
        settings = composed(repository / "configs", f"data={data}", "output=unused", *options, *more, protocol=protocol)
        return settings.to_dict()

    def names(entry: dict) -> list[str]:
        data = entry["data"]
        return [item["class_names"] for item in (data["train"], data["val"], *data["test"])]

    plain, llm = config(name.removesuffix("_llm")), config(name)
    assert names(llm) == [path.replace("labels/", "labels/llm/") for path in names(plain)]
    assert (plain["context_length"], llm["context_length"]) == (30, 77)
    froster = config(name, "labels=froster", "labels_root=/froster")
    assert all(path.startswith("/froster/") and path.endswith(".json") for path in names(froster))
    assert len(set(names(froster))) == len(set(names(llm))) and froster["context_length"] == 77
    # The published recipe for rephrased names, whose texts are long.
    assert (plain.pop("batch_size"), llm.pop("batch_size")) == (4, 2 if protocol == "zero_shot" else 4)
    for changed in (plain, llm):
        changed["data"]["name"] = changed["labels_root"] = changed["label_files"] = changed["context_length"] = None
        changed["label_choice"] = None
        for entry in (changed["data"]["train"], changed["data"]["val"], *changed["data"]["test"]):
            entry["class_names"] = None
        changed["dataset"] = {key: facts["root"] for key, facts in changed["dataset"].items()}
    assert plain == llm
    assert config(name, "context_length=50")["context_length"] == 50
