"""Nothing that a run writes holds a secret, wherever it came from."""

from pathlib import Path

import pytest

from trainers.config.command_line import one_line_errors
from trainers.config.secrets import HIDDEN, hide_in_config, hide_secrets, is_secret_name
from trainers.errors import ConfigError
from trainers.run import run

KEY = "k3y-0123456789abcdef"


@pytest.mark.parametrize(
    "name", "api_key apiKey WANDB_API_KEY AWS_SECRET_ACCESS_KEY HF_TOKEN password DB_PASSWORD credentials".split()
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", "num_context_tokens token_embedding context_length seed keep monkey prompt_layers".split()
)
def test_names_of_other_things(name: str) -> None:
    assert not is_secret_name(name)
    assert hide_secrets(f"{name}=12345678") == f"{name}=12345678"


@pytest.mark.parametrize(
    "text",
    [
        f"+logging.api_key={KEY} lr=1",
        f"--password: {KEY}",
        f"s3://user:{KEY}@bucket/videos",
        f"https://host/file.mp4?token={KEY}&part=1",
        f"cannot open /mnt/{KEY}/x.mp4",
        f'"HF_TOKEN": "x", HF_TOKEN={KEY}',
    ],
)
def test_values_are_hidden(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "cannot open" in text:
        monkeypatch.setenv("SERVICE_TOKEN", KEY)
    assert KEY not in hide_secrets(text) and HIDDEN in hide_secrets(text)


def test_configurations_keep_their_shape() -> None:
    config = {"lr": 0.1, "paths": ["a", f"ftp://me:{KEY}@h/x"], "api_key": KEY, "sub": {"num_context_tokens": 96}}
    hidden = {"lr": 0.1, "paths": ["a", f"ftp://{HIDDEN}@h/x"], "api_key": HIDDEN, "sub": {"num_context_tokens": 96}}
    assert hide_in_config(config) == hidden


def test_a_run_writes_none(compose_run, tmp_path: Path, tiny_root: Path, monkeypatch, capsys) -> None:
    """Through a variable in a path, an address as a path, and the command line: no byte of it in any file."""
    monkeypatch.setenv("STORE_SECRET_KEY", KEY)
    monkeypatch.setattr("sys.argv", ["main.py", f"labels_root=https://u:{KEY}@host/x", f"+api_key={KEY}"])
    root = tmp_path / KEY
    root.symlink_to(tiny_root)
    run(compose_run(data_root=root, epochs=1, warmup_epochs=0, logging__tensorboard=True))
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) >= 8
    assert [path.name for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in capsys.readouterr().out
    with pytest.raises(SystemExit), one_line_errors():
        raise ConfigError(f"{root}: is wrong")
    assert HIDDEN in (error := capsys.readouterr().err) and KEY not in error
