"""The command line as a user meets it: help in a moment, errors of one line, status 2."""

import getpass
import io
import os
import pwd
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from trainers.config.command_line import (
    MAX_ERROR,
    composition_errors,
    describe_composition_error,
    one_line_errors,
    prepare_process,
)
from trainers.errors import ConfigError, ErrorOnAnotherRank


def call(repository: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    inherited = {key: value for key, value in os.environ.items() if key not in ("RANK", "HYDRA_FULL_ERROR")}
    return subprocess.run(
        [sys.executable, "main.py", *arguments],
        cwd=repository,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


HEAVY = {"torch", "torchvision", "timm", "decord", "av", "numpy", "matplotlib", "PIL", "tensorboard"}


def imported_by(done: subprocess.CompletedProcess) -> set[str]:
    """Return the packages that a process with PYTHONPROFILEIMPORTTIME imported."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


def test_help_lists_the_choices_without_importing_torch(repository: Path) -> None:
    done = call(repository, "--help", PYTHONPROFILEIMPORTTIME="1")
    packages = imported_by(done)
    assert "hydra" in packages and not packages & HEAVY, "help must not wait for torch"
    assert done.returncode == 0
    assert all(line.startswith("import time:") for line in done.stderr.splitlines()), "no other output"
    for word in ("zero_shot_k400", "few_shot_shapes", "tc_clip_tiny", "eval=val", "dry_run=true"):
        assert word in done.stdout


@pytest.mark.parametrize("mistake", ["lr=fast", "data=few_shot_shapes", "shot=4", "lrr=1"])
def test_mistakes_are_reported_before_torch_is_imported(repository: Path, mistake: str) -> None:
    done = call(
        repository, "-cn", "zero_shot", "data=zero_shot_shapes", mistake, "output=x", PYTHONPROFILEIMPORTTIME="1"
    )
    packages = imported_by(done)
    assert done.returncode == 2 and "hydra" in packages and not packages & (HEAVY - {"numpy"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "data= is missing; -cn zero_shot goes with: zero_shot_custom, zero_shot_k400"),
        (("-cn", "zero_sot"), "-cn zero_sot: no such protocol; did you mean zero_shot"),
        (("-cn", "zero_shot"), "data= is missing; -cn zero_shot goes with: zero_shot_custom, zero_shot_k400"),
        (("-cn", "zero_shot", "data=zero_shot_shape"), "no such choice; did you mean zero_shot_shapes"),
        (("-cn", "zero_shot", "data=zero_shot_shapes", "trainer=tcclip"), "trainer=tcclip: no such choice; did you"),
        (("-cn", "few_shot", "data=few_shot_ssv2_llm"), "no such choice; did you mean few_shot_ssv2"),
        (("-cn", "few_shot", "data=few_shot_hmdb51", "labels=lmm"), "labels=lmm: no such choice; did you mean llm?"),
        (("-cn", "zero_shot", "data=zero_shot_shapes", "lrr=1"), "unknown key lrr; did you mean lr?"),
        (("-cn", "zero_shot", "data=zero_shot_shapes", "betas=0"), "unknown key betas; did you mean optimizer.betas?"),
        (("data=zero_shot_shapes", "accumulation_steps=4"), "accumulation_steps is a key of the published code: give"),
        (("-cn", "zero_shot", "data=zero_shot_shapes", "lr"), "cannot read the command line"),
    ],
)
def test_errors_of_composition_are_one_line(repository: Path, arguments: tuple[str, ...], message: str) -> None:
    done = call(repository, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr


def test_errors_of_a_run_are_one_line_and_leave_nothing(repository: Path, tmp_path: Path) -> None:
    command = ["-cn", "zero_shot", "data=few_shot_shapes", f"output={tmp_path / 'run'}"]
    done = call(repository, *command)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "data=few_shot_shapes belongs to few_shot, not to zero_shot" in done.stderr
    assert not (tmp_path / "run").exists()
    second = call(repository, *command, RANK="1", WORLD_SIZE="2")
    assert (second.returncode, second.stdout, second.stderr) == (2, "", ""), "one process of a run speaks for all"
    full = call(repository, *command, HYDRA_FULL_ERROR="1")
    assert full.returncode == 2 and "Traceback" in full.stderr


def test_errors_become_one_line(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as left, one_line_errors():
        raise ConfigError("wrong\n  in two lines")
    assert left.value.code == 2 and capsys.readouterr().err == "error: wrong in two lines\n"
    with pytest.raises(SystemExit) as left, one_line_errors():
        raise ErrorOnAnotherRank("reported there")
    assert left.value.code == 2 and capsys.readouterr().err == ""
    with pytest.raises(ZeroDivisionError), one_line_errors():
        raise ZeroDivisionError("an internal error keeps its traceback")
    with pytest.raises(SystemExit), one_line_errors(debug=True):
        raise ConfigError("wrong")
    assert "Traceback" in capsys.readouterr().err


def test_faults_pass_through_composition(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py"])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(ZeroDivisionError), composition_errors(repository / "configs"):
        assert os.environ["HYDRA_FULL_ERROR"] == "1"
        raise ZeroDivisionError
    assert "HYDRA_FULL_ERROR" not in os.environ


@pytest.mark.parametrize(
    "value",
    [
        *(
            "runs/k=4/best.pth",
            "a#b",
            "a&b",
            "a(1)",
            "a[1",
            "/home/é/x.pth",
            "视频.pth",
            "it's",
            'the "best".pth',
            "a,b",
        ),
        *("with\\", '\\"', "{a", "?", "a b=c"),
    ],
)
def test_values_that_hydra_cannot_read_get_a_form_that_it_can(repository: Path, value: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    try:
        override = parser.parse_override(f"resume={value}")
        if not override.is_sweep_override() and override.value() == value:
            return  # needs no hint
        message = "Ambiguous value ... requires --multirun"
    except HydraException as error:
        message = f"{error} override_grammar"
    line = describe_composition_error(ValueError(message), ["lr=1", f"resume={value}"], repository / "configs")
    assert line.startswith(f"cannot read resume={value} "), line
    (typed,) = shlex.split(line.split("both kinds of quotes: ")[1])  # what the shell makes of it
    assert parser.parse_override(typed).value() == value


def test_a_value_that_hydra_cannot_read_is_one_line(repository: Path) -> None:
    done = call(repository, "-cn", "zero_shot", "data=zero_shot_shapes", "output=x", "resume=/home/é/x=1.pth")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert """give it in both kinds of quotes: 'resume="/home/é/x=1.pth"'""" in done.stderr
    done = call(repository, "-cn", "zero_shot", "data=3", "output=x")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


def test_error_lines_have_no_control_characters_and_a_readable_length(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit), one_line_errors():
        raise ConfigError("\x1b[2Jevil\udce9 视频 " + "x" * 100_000 + " the end")
    line = capsys.readouterr().err
    assert line.startswith("error: \\x1b[2Jevil\\udce9 视频 xxx") and line.endswith("xxx the end\n")
    assert len(line) < MAX_ERROR + 100


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_too_little_memory_is_one_line(error: Exception, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as left, one_line_errors():
        raise error
    assert left.value.code == 2 and capsys.readouterr().err.startswith("error: out of memory: lower batch_size")


def test_a_user_id_without_a_name_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOGNAME", "")  # restored afterwards
    home = os.environ["HOME"]
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    prepare_process()
    assert getpass.getuser() == f"uid{os.getuid()}"
    assert Path.home() == Path(tempfile.gettempdir())
    monkeypatch.setenv("HOME", home)
    prepare_process()
    assert Path.home() == Path(home)


def test_a_failed_import_is_not_repeated_while_its_error_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "video_datasets.workers", None)  # importing it is an ImportError
    with pytest.raises(ZeroDivisionError), one_line_errors():
        raise ZeroDivisionError("the cause")


def test_terminals_without_unicode_get_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", stream)
    prepare_process()
    print("视 é")
    stream.flush()
    assert stream.buffer.getvalue() == b"\\u89c6 \xe9\n"


def test_unknown_messages_are_kept(repository: Path) -> None:
    assert describe_composition_error(ValueError("some\nthing"), [], repository / "configs") == "some thing"


@pytest.mark.parametrize(("words", "hint"), [(["nope"], "--help"), (["data"], "verify"), (["data", "nope"], "verify")])
def test_an_unknown_tool_is_one_line_that_names_the_others(words, hint, capsys) -> None:
    from trainers.commands.main import main

    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tc-clip: there is no command '{' '.join(words)}'") and hint in line
