"""Keys of the published code on the command line: translated, dropped with a line, or refused with the new name."""

import sys
from pathlib import Path

import pytest

from tests.documents import compose_config
from trainers.config.command_line import translate_published_keys
from trainers.config.keys import keys_of
from trainers.config.published import KEYS, Refused, Renamed, translate
from trainers.config.resolve import resolve
from trainers.config.settings import Settings
from trainers.config.tables import with_tables
from trainers.errors import ConfigError

# A command of each published row, as its script gives it.
ROWS = [
    ("zero_shot", "data=zero_shot_k400 trainer=tc_clip"),
    ("zero_shot", "data=zero_shot_k400_llm trainer=tc_clip context_length=77 batch_size=2"),
    ("few_shot", "data=few_shot_ssv2 shot=2 trainer=tc_clip"),
    ("few_shot", "data=few_shot_ucf101_llm shot=16 trainer=tc_clip"),
    ("few_shot", "data=few_shot_hmdb51 shot=4 trainer=tc_clip resume=zero_shot.pth"),
    ("base2novel", "data=base2novel_k400 base=1 trainer=tc_clip"),
    ("base2novel", "data=base2novel_hmdb51_llm base=2 trainer=tc_clip"),
    ("base2novel", "data=base2novel_ssv2 base=3 trainer=tc_clip resume=zero_shot.pth"),
    ("fully_supervised", "data=fully_supervised_k400 trainer=tc_clip"),
]


@pytest.mark.parametrize(("protocol", "arguments"), ROWS)
def test_published_commands_compose(protocol: str, arguments: str) -> None:
    given = ["-cn", protocol, *arguments.split(), "output=runs/x", "use_wandb=true", "num_workers=8", "seed=1024"]
    translated, notes = translate(given)
    assert len(notes) == 1 and "use_wandb=true" in notes[0] and "TensorBoard" in notes[0]
    settings = resolve(compose_config(protocol, *translated[2:]))
    assert settings.protocol == protocol and settings.num_workers == 8


@pytest.mark.parametrize("name", [name for name, meaning in KEYS.items() if isinstance(meaning, Renamed)])
def test_renamed_keys_exist(name: str) -> None:
    assert name not in keys_of(Settings), "our own keys keep their meaning"
    meaning = KEYS[name]
    assert meaning.key in keys_of(Settings) or meaning.key.startswith("trainer.options.")


@pytest.mark.parametrize(
    ("published", "ours", "value"),
    [
        ("opt_level=O1", "precision", "fp16"),
        ("label_smooth=0.2", "aug.label_smoothing", 0.2),
        ("trainer.seed_token_a=0.5", "trainer.options.seed_ratio", 0.5),
        ("tome_r=40", "trainer.options.merge_rate", 40),
        ("prompt_generation_layer_level=6+12", "trainer.options.prompt_layers", "6+12"),
        ("im_stop_grad=false", "trainer.options.detach_context", False),
        ("arch=ViT-B/16", "trainer.clip_weights", "ViT-B/16"),
    ],
)
def test_a_renamed_key_sets_ours(published: str, ours: str, value: object) -> None:
    translated, notes = translate(["data=zero_shot_k400", "output=x", published])
    assert notes == [f"{published}: published key, here {translated[-1]}"]
    node: object = resolve(compose_config("zero_shot", *translated[2:])).to_dict()
    for part in ours.split("."):
        node = node[part]
    assert node == value


@pytest.mark.parametrize("name", [name for name, meaning in KEYS.items() if isinstance(meaning, Refused)])
def test_a_key_of_another_meaning_is_refused_with_advice(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is a key of the published code: (give|it follows|start) "):
        translate([f"{name}=1"])
    with pytest.raises(ConfigError, match="opt_level=O2: precision has no such value .O0 is precision=fp32"):
        translate(["opt_level=O2"])


def test_the_protocol_is_zero_shot_by_default(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert translate(["data=zero_shot_k400"])[0] == ["-cn", "zero_shot", "data=zero_shot_k400"]
    for given in (["-cn", "few_shot"], ["-cnfew_shot"], ["--config-name=few_shot"], ["--config-name", "few_shot"]):
        assert translate(given) == (given, [])
    monkeypatch.setattr(sys, "argv", ["main.py", "use_wandb=true", "lr=1e-3"])
    translate_published_keys()
    assert sys.argv == ["main.py", "-cn", "zero_shot", "lr=1e-3"]
    assert capsys.readouterr().err.startswith("note: use_wandb=true: no such key here; curves are in TensorBoard")


def test_every_published_key_is_documented(repository: Path) -> None:
    text = (repository / "CONFIG.md").read_text(encoding="utf-8")
    table = text.split("<!-- published keys -->")[1].split("\n\n")[0]
    assert table == "".join(with_tables("<!-- published keys -->\n")).removeprefix("<!-- published keys -->").rstrip()
    assert all(f"\n| `{name}` | " in table for name in KEYS)
