"""The documents' tables of keys, defaults, choices, lists and the recipe are those of the configuration files."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from tests.documents import CONFIGS, NEEDED, REPOSITORY, compose_config, prose_of
from trainers.config.keys import keys_of
from trainers.config.settings import PROTOCOLS, Settings
from trainers.config.tables import keys_in_tables, with_tables


def leaves(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from leaves(value, f"{key}.")
        else:
            yield key, value


def documented_keys(document: str = "CONFIG.md") -> dict[str, str | None]:
    """Return the keys of a document's tables (first cell in backticks), with their defaults."""
    found: dict[str, str | None] = {}
    columns: list[str] = []
    for line in prose_of(REPOSITORY / document).splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            columns = []
        elif not columns:
            columns = cells
        elif columns[0] == "key" and cells[0].startswith("`"):
            key = cells[0].strip("`")
            assert key not in found, f"{document}: {key} is listed twice"
            has_default = columns[1] in ("default", "tiny") and bool(cells[1])
            found[key] = cells[1].strip("`") if has_default else None
    return found


def all_keys() -> dict[str, Any]:
    """Return every key of every configuration, with its default; of data sets under `dataset.<name>`."""
    keys: dict[str, Any] = {}
    choices = [(path.stem, "tc_clip") for path in sorted((CONFIGS / "data").glob("*.yaml"))]
    choices += [("zero_shot_shapes", path.stem) for path in sorted((CONFIGS / "trainer").glob("*.yaml"))]
    for data, trainer in choices:
        protocol = next(name for name in PROTOCOLS if data.startswith(f"{name}_"))
        # The overrides are those of tests/test_configs.py, so that each configuration is composed once for both.
        overrides = ["output=runs/test", *NEEDED.get(protocol, []), f"data={data}", f"trainer={trainer}"]
        config = OmegaConf.to_container(compose_config(protocol, *overrides))
        for key, value in leaves(config):
            key = re.sub(r"^dataset\.\w+\.", "dataset.<name>.", key)
            keys.setdefault(re.sub(r"^label_files\.\w+", "label_files", key), value)
    base = yaml.safe_load((CONFIGS / "base.yaml").read_text())
    defaults = dict(leaves({key: value for key, value in base.items() if key not in ("defaults", "hydra")}))
    for group in ("aug", "optimizer", "logging", "trainer"):
        (choice,) = (entry[group] for entry in base["defaults"] if isinstance(entry, dict) and group in entry)
        own = yaml.safe_load((CONFIGS / group / f"{choice}.yaml").read_text())
        defaults |= leaves(own, f"{group}.")
    return {**keys, "trainer.options": None, "optimizer.lr_factors": None, **defaults}


@pytest.fixture(scope="module")
def keys() -> dict[str, Any]:
    return all_keys()


def test_the_generated_tables_are_current() -> None:
    text = (REPOSITORY / "CONFIG.md").read_text(encoding="utf-8")
    assert with_tables(text) == text, "run: python -m trainers.config.tables"
    by_hand = {"data.name", "data.protocol", "data.train", "data.val", "data.test", "dataset"}
    assert sorted(keys_in_tables(text)) == sorted(keys_of(Settings).keys() - by_hand), "one table for every key"


def test_a_table_follows_the_files_and_the_fields() -> None:
    table = with_tables("<!-- keys: base.yaml, Schedule -->\n| old |\n\ntext\n")
    assert "| `lr` | `8.0e-06` | a number above 0 | Peak learning rate. |\n" in table and "| old |" not in table
    assert table.endswith("|\n\ntext\n") and "`batch_size`" not in table
    with pytest.raises(ValueError, match="configs/base.yaml has no section 'None'"):
        with_tables("<!-- keys: base.yaml, None -->\n")


@pytest.mark.slow
def test_every_key_is_documented_and_every_documented_key_exists(keys: dict[str, Any]) -> None:
    documented = documented_keys()
    assert sorted(keys.keys() - documented.keys()) == [], "not in CONFIG.md"
    assert sorted(documented.keys() - keys.keys()) == [], "not in any configuration"


@pytest.mark.parametrize("document", ["CONFIG.md", "DATASETS.md"])
def test_documented_defaults(keys: dict[str, Any], document: str) -> None:
    hidden = {"dataset.<name>.root", "dataset.<name>.lists"}  # differ by data set
    for key, text in documented_keys(document).items():
        if text is not None and key not in hidden:
            assert yaml.safe_load(text) == keys[key], f"{document}: {key}"


def test_every_choice_is_documented() -> None:
    text = {name: (REPOSITORY / name).read_text() for name in ("CONFIG.md", "DATASETS.md")}
    for path in (CONFIGS / "trainer").glob("*.yaml"):
        assert f"`{path.stem}`" in text["CONFIG.md"], path.stem
    for path in (CONFIGS / "data").glob("*.yaml"):
        assert f"`{path.stem}`" in text["DATASETS.md"], path.stem


def test_every_published_list_is_documented() -> None:
    text = (REPOSITORY / "DATASETS.md").read_text()
    for path in (CONFIGS / "data").glob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        if "_shapes" in path.stem:
            continue
        entries = [content.get("train"), content.get("val"), *content.get("test", [])]
        for entry in filter(None, entries):
            name = re.sub(r"\$\{(\w+)\}", r"<\1>", entry["list"])
            assert f"`{name}`" in text, f"{path.name}: {name}"


def test_recipe_table_holds_the_values() -> None:
    lines = [line for line in prose_of(REPOSITORY / "TRAIN_EVAL.md").splitlines() if line.startswith("| ")]
    head = next(line for line in lines if all(f"`{protocol}`" in line for protocol in PROTOCOLS))
    protocols = [cell.strip(" `") for cell in head.strip("|").split("|")][1:]
    published = {}
    for protocol in protocols:
        data = "few_shot_ssv2" if protocol == "few_shot" else f"{protocol}_k400"
        published[protocol] = compose_config(protocol, "output=runs/test", *NEEDED.get(protocol, []), f"data={data}")
    rows = 0
    for line in lines[lines.index(head) + 1 :]:
        cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
        if len(cells) != 1 + len(protocols) or not re.fullmatch(r"[a-z_.]+", cells[0]):
            break
        rows += 1
        for protocol, cell in zip(protocols, cells[1:], strict=True):
            assert OmegaConf.select(published[protocol], cells[0]) == yaml.safe_load(cell), f"{protocol} {cells[0]}"
    assert rows >= 15
