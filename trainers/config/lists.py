"""The video lists of a configuration: which files a run trains, validates and tests on."""

from dataclasses import dataclass
from pathlib import Path

from trainers.config.command_line import config_names
from trainers.config.settings import ListSection, Part, Settings
from trainers.errors import ConfigError
from trainers.paths import CONFIGS, find_labels


@dataclass(frozen=True)
class ListEntry:
    """Files of one annotation list, with the facts of its data set.

    `name` is used in tables and file names; test lists of one `group` are averaged together.
    """

    name: str
    group: str
    root: str  # folder or tar of the videos
    list_name: str  # as the configuration spells it
    list_path: Path
    class_names_path: Path
    flip: bool
    split_camel_case: bool


def list_entries(settings: Settings, part: Part) -> list[ListEntry]:
    """Return the lists of `train`, `val` or `test` (the first two have one list each).

    Raises:
        ConfigError: a data set is unknown, or lacks a fact or its class names.
    """
    data = settings.data
    if part == "test":
        entries = [
            _entry(settings, f"data.test[{number}]", section, section["name"], section["group"])
            for number, section in enumerate(data.test)
        ]
        names = [entry.name for entry in entries]
        if len(names) != len(set(names)):
            raise ConfigError(f"data.test: several test sets have the same name: {', '.join(names)}")
        return entries
    section = data.train if part == "train" else data.val
    return [_entry(settings, f"data.{part}", section, data.name, part)]


def label_choice_of(settings: Settings) -> str | None:
    """Return the choice of `labels` that the class names belong to; None if a list has another file of names."""
    files = set(settings.label_files.values())
    known = all(section.get("class_names") in files for section in _sections(settings))
    return settings.label_choice if known else None


def check_label_choice(settings: Settings) -> None:
    """Raise ConfigError if rephrased names are chosen for data sets that have none."""
    choice, protocol = settings.label_choice, settings.protocol
    if choice == "names":
        return
    files = {file for file in settings.label_files.values() if file is not None}
    sections = _sections(settings)
    nameless = [section for section in sections if section.get("class_names", "") is None]
    if nameless or not any(section.get("class_names") in files for section in sections):
        names = config_names(CONFIGS, "data")
        fitting = [name for name in names if name.startswith(f"{protocol}_") and name.endswith("_llm")]
        datasets = ", ".join(sorted({str(section.get("dataset")) for section in nameless or sections}))
        raise ConfigError(
            f"labels={choice} has no class names for {datasets} (data={settings.data.name}); "
            f"with -cn {protocol} it goes with data={', '.join(fitting)}"
        )


def _sections(settings: Settings) -> list[ListSection]:
    return [settings.data.train, settings.data.val, *settings.data.test]


def _entry(settings: Settings, key: str, section: ListSection, name: str, group: str) -> ListEntry:
    dataset, class_names = section["dataset"], section["class_names"]
    if dataset not in settings.dataset:
        raise ConfigError(f"{key}.dataset={dataset}: not among the data sets {', '.join(settings.dataset)}")
    if class_names is None:
        raise ConfigError(f"{key}.class_names=null: name the file of the class names of {dataset}")
    facts = settings.dataset[dataset]
    for needed in ("root", "lists", "flip", "split_camel_case"):
        if needed not in facts:
            raise ConfigError(f"dataset.{dataset}: the key {needed} is missing")
    return ListEntry(
        name=name,
        group=group,
        root=facts["root"],
        list_name=section["list"],
        list_path=Path(facts["lists"]) / section["list"],
        class_names_path=find_labels(class_names),
        flip=facts["flip"],
        split_camel_case=facts["split_camel_case"],
    )
