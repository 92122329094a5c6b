"""Checks the documents: every command, file name, link, and name of the Python interface in them is valid.

A small interpreter reads every fenced shell block of every document (loops, variables, continued lines). An unknown
kind of command fails, so that no document contains an unchecked one.
"""

import argparse
import ast
import importlib
import importlib.util
import inspect
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.errors import HydraException

import tc_clip
from tc_clip.weights.__main__ import parse as parse_weights
from tc_clip.weights.hub import KNOWN_HUB_WEIGHTS
from tests.documents import (
    BLOCKS,
    CONFIGS,
    DOCUMENTS,
    REPOSITORY,
    Block,
    commands_of,
    compose_config,
    name_of,
    prose_of,
    statements,
)
from trainers.config.command_line import read_override
from trainers.config.published import PROTOCOL, translate
from trainers.config.resolve import resolve
from trainers.config.settings import PROTOCOLS, Settings
from trainers.errors import ConfigError

REQUIRED = {"README.md", "INSTALL.md", "DATASETS.md", "CONFIG.md", "TRAIN_EVAL.md"}
SHELL, PYTHON, YAML = {"bash", "sh", "shell", "console"}, {"python", "py"}, {"yaml"}
LANGUAGES = SHELL | PYTHON | YAML | {"text", "json"}
# Files of the user, which need not be in the repository.
USERS_FILES = ("runs/", "data/", "names/", "my_lists/", "my_videos", "configs/local.yaml", "/")

ALL_COMMANDS = [
    (block.position, words)
    for block in BLOCKS
    if block.language in SHELL
    for words in commands_of(statements(block.text))
]


def shape_of(words: list[str]) -> tuple[str, ...]:
    """Return a command without what changes file names only: the output folder, the number of shots or of the list."""
    return tuple(re.sub(r"^(output|shot|base)=[\w/]+$", r"\1=", word) for word in words)


# One command of each shape.
COMMANDS = {shape_of(words): (position, words) for position, words in reversed(ALL_COMMANDS)}.values()


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the configurations, and add the files that the documents ask the user to write."""
    folder = tmp_path_factory.mktemp("documents") / "configs"
    shutil.copytree(CONFIGS, folder, ignore=shutil.ignore_patterns("local.yaml"))
    for path, text in written_configs().items():
        if path != "configs/local.yaml":
            target = folder.parent / path
            assert not target.exists(), f"a document asks the user to write {path}, which exists"
            target.write_text(text, encoding="utf-8")
    return folder


def written_configs() -> dict[str, str]:
    """Return the configuration files that documents show: YAML blocks whose first line names the file."""
    files = {}
    for block in BLOCKS:
        if block.language in YAML:
            named = re.match(r"# (configs/[\w/]+\.yaml)\n", block.text)
            assert named, f"{block.position}: the first line must be `# configs/....yaml`"
            files[named[1]] = block.text.removeprefix(named[0])
    return files


def composed(configs: Path, protocol: str, *overrides: str) -> Settings:
    return resolve(compose_config(protocol, *overrides, folder=configs))


@pytest.mark.parametrize(
    "words", [pytest.param(words, id=f"{position} {' '.join(words)[:100]}") for position, words in COMMANDS]
)
def test_command(words: list[str], configs: Path) -> None:
    check_command(words, configs)


def check_command(words: list[str], configs: Path) -> None:
    """Check one command; raises AssertionError if it is wrong or of an unknown kind."""
    while words and re.fullmatch(r"[A-Z_][A-Z0-9_]*=\S*", words[0]):
        words = words[1:]
    assert words, "an assignment without a command"
    assert not {"|", ">", ">>", "&&", ";", "&", "<"} & set(words), f"only single commands: {' '.join(words)}"
    for start, check in CHECKS.items():
        if words[: len(start)] == list(start):
            check(words[len(start) :], configs)
            return
    raise AssertionError(f"an unknown kind of command: {' '.join(words)}")


def check_torchrun(words: list[str], configs: Path) -> None:
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(words)
    assert options.training_script == "main.py", f"torchrun runs {options.training_script}"
    assert re.fullmatch(r"[1-9]\d*|gpu|cpu|auto", options.nproc_per_node)
    check_main(options.training_script_args, configs)


def check_main(arguments: list[str], configs: Path) -> None:
    """Compose the command's configuration and run every check that needs no videos."""
    if arguments == ["--help"]:
        return
    rest, protocol, is_sweep = [], PROTOCOL, False
    arguments, _ = translate(arguments)
    words = iter(arguments)
    for word in words:
        if word == "-m":
            is_sweep = True
        elif word == "-cn":
            protocol = next(words)
        elif word == "--cfg":
            assert next(words) in ("job", "hydra", "all")
        elif word != "--resolve":
            assert not word.startswith("-") and "=" in word, f"not an override: {word}"
            rest.append(word)
    assert protocol in PROTOCOLS, f"-cn {protocol}"
    assert has_output(rest), "output= is missing"
    if is_sweep:  # Hydra's own keys are those of plugins that are not installed
        rest = [first_value(word) for word in rest if not word.startswith("hydra")]
    settings = composed(configs, protocol, *rest)
    model, options = settings.trainer.name, settings.trainer.options
    assert model in tc_clip.model_names()
    sizes = {"image_size", "patch_size", "vision_width", "vision_depth", "text_width", "text_depth", "embed_dim"}
    known = tc_clip.model_options(model).keys() | sizes | {"head_width"}
    assert options.keys() <= known, f"unknown options {sorted(options.keys() - known)}"
    weights = settings.trainer.clip_weights
    named = tc_clip.KNOWN_CLIP_WEIGHTS.keys() | KNOWN_HUB_WEIGHTS.keys()
    assert weights is None or weights in named or weights.startswith(USERS_FILES)
    assert settings.eval is not None or model != "vanilla_clip", "vanilla_clip is not trained"
    for entry in (settings.data.train, settings.data.val, *settings.data.test):
        assert entry["dataset"] in settings.dataset
        names = entry["class_names"]
        assert names.startswith(USERS_FILES) or (REPOSITORY / names).is_file(), f"no class names at {names}"


def first_value(word: str) -> str:
    """Return an override with the first of its swept values, or its lowest."""
    override = read_override(word)
    assert override is not None, word
    if not override.is_sweep_override():
        return word
    is_discrete = override.is_discrete_sweep()
    return (
        f"{override.key_or_group}={next(override.sweep_string_iterator()) if is_discrete else override.value().start}"
    )


def check_bash(words: list[str], configs: Path) -> None:
    script = REPOSITORY / words[0]
    assert script.is_file() and words[0].startswith("scripts/"), f"no script {words[0]}"
    subprocess.run(["bash", "-n", str(script)], check=True)
    for word in words[1:]:
        assert not word.startswith("tests/") or (REPOSITORY / word.split("::")[0]).exists(), f"no {word}"


def check_script(words: list[str], configs: Path) -> None:
    """Start the script as `python` does, and stop after it has parsed its arguments."""
    script = REPOSITORY / words[0]
    assert script.is_file(), f"no script {words[0]}"

    class Stop(Exception):  # noqa: N818
        pass

    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, args=None, namespace=None) -> None:
        parse(self, args, namespace)
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        patch.setattr("trainers.commands.shared.quiet_decoders", lambda: None)
        patch.setattr(sys, "argv", [str(script), *words[1:]])
        patch.setattr(sys, "path", [str(script.parent), *sys.path])
        try:
            with pytest.raises(Stop):
                runpy.run_path(str(script), run_name="__main__")
        except SystemExit as left:
            raise AssertionError(f"{words[0]} does not accept {words[1:]}") from left


def check_tool(words: list[str], configs: Path) -> None:
    """Check `tc-clip NAME ...` as the script of that command."""
    from trainers.commands.main import COMMANDS as TOOLS

    if words in ([], ["--help"]):
        return
    name = " ".join(words[: 2 if words[0] == "data" else 1])
    assert name in TOOLS, f"tc-clip has no command {name}"
    script = f"scripts/{TOOLS[name].module.replace('.', '/')}.py"
    check_script([script, *words[len(name.split()) :]], configs)


def check_code(words: list[str], configs: Path) -> None:
    assert len(words) == 1
    check_python(words[0], "python -c")


def check_pip(words: list[str], configs: Path) -> None:
    if words[0] in ("-r", "-c"):
        assert (REPOSITORY / words[1]).is_file()
        words = words[2:]
    if words[:1] == ["-e"]:
        words = words[1:]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    sources = [".", *(f".[{extra}]" for extra in project["optional-dependencies"])]
    tested = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").split()
    for word in words:
        assert word in sources or word in tested or word.startswith(("--index-url", "ADDRESS/")), f"pip install {word}"


def check_weights(words: list[str], configs: Path) -> None:
    parse_weights(words)


def check_pytest(words: list[str], configs: Path) -> None:
    for word in words:
        assert word.startswith("-") or not word.startswith("tests") or (REPOSITORY / word).exists(), f"no {word}"


def check_venv(words: list[str], configs: Path) -> None:
    assert words == [".venv"]


def check_source(words: list[str], configs: Path) -> None:
    assert words == [".venv/bin/activate"]


def check_tensorboard(words: list[str], configs: Path) -> None:
    assert words[0] == "--logdir" and len(words) == 2


CHECKS: dict[tuple[str, ...], Callable[[list[str], Path], None]] = {
    ("torchrun",): check_torchrun,
    ("python", "main.py"): check_main,
    ("tc-clip-train",): check_main,
    ("tc-clip",): check_tool,
    ("python", "-c"): check_code,
    ("python", "-m", "pip", "install"): check_pip,
    ("python", "-m", "pytest"): check_pytest,
    ("python", "-m", "tc_clip.weights"): check_weights,
    ("python3", "-m", "venv"): check_venv,
    ("python",): check_script,
    ("bash",): check_bash,
    ("source",): check_source,
    ("tensorboard",): check_tensorboard,
}


@pytest.mark.parametrize(
    "line",
    [
        "curl somewhere",
        "bash scripts/nothing.sh",
        "python scripts/make_shapes.py --sed 3",
        "python main.py -cn zero_shot data=few_shot_shapes output=runs/x",
        "python main.py -cn zero_shot data=zero_shot_shapes output=runs/x lrr=1",
        "python main.py -cn zero_shot data=zero_shot_shapes output=runs/x lr=-1",
        "python main.py -cn zero_shot data=zero_shot_shapes output=runs/x total_batch_size=30",
        "python main.py -cn few_shot data=few_shot_shapes output=runs/x",
        "python main.py -cn zero_shot data=zero_shot_shapes output=runs/x trainer=vanilla_clip",
        "python main.py -cn zero_shot data=zero_shot_shapes output=runs/x +trainer.options.merge=1",
        "python main.py -cn zero_shot data=zero_shot_shapes",
        "torchrun --nproc=2 main.py -cn zero_shot data=zero_shot_shapes",
        "python -c 'import tc_clip; tc_clip.nothing'",
        "tc-clip data nothing",
        "tc-clip predict video.mp4 --checkpoints best.pth",
        "python -m pip install -e .[nothing]",
        "python -m pip install torch==1.0",
        "python main.py --help | head",
    ],
)
def test_wrong_commands_fail(line: str, configs: Path) -> None:
    with pytest.raises((AssertionError, ConfigError, HydraException, SystemExit)):
        check_command(shlex.split(line), configs)


def test_loops_and_variables_are_expanded() -> None:
    text = "for a in 1 2; do\n  for b in x y; do\n    echo $a-${b} \\\n      end\n  done\ndone\n# comment\nlast"
    found = list(commands_of(statements(text)))
    assert found == [["echo", f"{a}-{b}", "end"] for a in "12" for b in "xy"] + [["last"]]


def test_documents_and_their_blocks() -> None:
    assert {name_of(document) for document in DOCUMENTS} >= REQUIRED
    unknown = [block.position for block in BLOCKS if block.language not in LANGUAGES]
    assert unknown == [], "blocks without a language, or of a language that nothing checks"
    assert len(ALL_COMMANDS) > 100
    without = [position for position, words in ALL_COMMANDS if "-cn" in words and not has_output(words)]
    assert without == [], "commands of a run without output="


def has_output(words: list[str]) -> bool:
    return any(word.startswith("output=") for word in words)


def test_trainers_that_documents_show_compose(configs: Path) -> None:
    names = [Path(path).stem for path in written_configs() if path.startswith("configs/trainer/")]
    assert len(names) >= 2
    for name in names:
        composed(configs, "zero_shot", "data=zero_shot_shapes", f"trainer={name}", "output=x")


def test_local_paths_are_read(configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TC_CLIP_LOCAL")
    folder = tmp_path / "configs"
    shutil.copytree(configs, folder)
    text = written_configs()["configs/local.yaml"]
    (folder / "local.yaml").write_text(text, encoding="utf-8")
    settings = composed(folder, "zero_shot", "data=zero_shot_k400", "output=runs/x")
    wanted = yaml.safe_load(text)
    assert settings.data_root == wanted["data_root"] and settings.dataset["k400"]["lists"] == wanted["lists_root"]
    assert settings.dataset["ucf101"]["root"] == wanted["dataset"]["ucf101"]["root"]
    assert settings.dataset["k400"]["root"] == f"{wanted['data_root']}/k400"
    ignored = (REPOSITORY / ".gitignore").read_text().split()
    assert "configs/local.yaml" in ignored, "git must not see this machine's paths"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in PYTHON], ids=lambda block: block.position)
def test_python_block(block: Block) -> None:
    check_python(block.text, block.position)


def check_python(text: str, position: str) -> None:
    """Compile code; check that the names it uses of the project's packages exist, and that calls fit signatures."""
    tree = ast.parse(text, position)
    names: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                module = importlib.import_module(alias.name)
                names[alias.asname or alias.name.split(".")[0]] = (
                    module if alias.asname else sys.modules[alias.name.split(".")[0]]
                )
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{position}: {node.module} has no {alias.name}"
                names[alias.asname or alias.name] = getattr(module, alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
            assert hasattr(names[node.value.id], node.attr), f"{position}: {node.value.id} has no {node.attr}"
        if isinstance(node, ast.Call):
            check_call(node, names, position)


def dotted_name(node: ast.AST) -> str:
    """Return `a.b.c` for such an expression, and an empty string for any other."""
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def check_call(node: ast.Call, names: dict[str, Any], position: str) -> None:
    path = dotted_name(node.func).split(".")
    if path[0] not in names:
        return
    target = names[path[0]]
    for name in path[1:]:
        target = getattr(target, name)
    if (getattr(target, "__module__", None) or "").split(".")[0] not in ("tc_clip", "video_datasets", "trainers"):
        return
    keywords = {keyword.arg: None for keyword in node.keywords}
    inspect.signature(target).bind(*node.args, **keywords)
    if target is tc_clip.create_model:
        model = ast.literal_eval(node.args[0])
        own = inspect.signature(target).parameters.keys()
        options = tc_clip.model_options(model)
        for keyword in node.keywords:
            if keyword.arg not in own:
                assert keyword.arg in options, f"{position}: {model} has no option {keyword.arg}"
                assert ast.literal_eval(keyword.value) == options[keyword.arg], f"{position}: default of {keyword.arg}"


def test_every_option_of_the_model_is_documented() -> None:
    text = "".join(block.text for block in BLOCKS if block.position.startswith("docs/usage.md"))
    assert [name for name in tc_clip.model_options("tc_clip") if not re.search(rf"\b{name}=", text)] == []


def anchors_of(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose_of(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_resolve(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose_of(document)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.is_file(), f"{name_of(document)}: no file {name}"
        assert path.is_relative_to(REPOSITORY)
        assert not anchor or anchor in anchors_of(path), f"{name_of(document)}: no heading #{anchor} in {path.name}"


TOP = {path.name for path in REPOSITORY.iterdir() if path.is_dir() and not path.name.startswith(".")} - {"data", "runs"}
USERS_LABELS = ("labels/labels_froster", "labels/froster")


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_named_files_exist(document: Path) -> None:
    written = written_configs()
    for quoted in re.findall(r"`([^`\n]+)`", prose_of(document)):
        is_ours = quoted.split("/")[0] in TOP or quoted.endswith((".py", ".sh"))
        if "/" not in quoted or not is_ours or re.search(r"[\s<>{}=*]", quoted):
            continue
        is_users = quoted in written or quoted.startswith((*USERS_FILES, *USERS_LABELS))
        assert is_users or (REPOSITORY / quoted).exists(), f"{name_of(document)}: no {quoted}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_no_notes_to_self_and_no_paths_of_one_machine(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert [word for word in ("TODO", "FIXME", "TBD", "XXX", "/work/", "/tmp/", "localhost") if word in text] == []


def test_the_map_has_every_folder_of_the_packages() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    inits = [
        path
        for package in ("tc_clip", "video_datasets", "trainers")
        for path in REPOSITORY.glob(f"{package}/**/__init__.py")
    ]
    folders = [path.parent.relative_to(REPOSITORY).as_posix() for path in inits]
    assert len(folders) > 10 and [folder for folder in folders if f"| `{folder}/` |" not in text] == []


def test_citation_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["version"] == tc_clip.__version__
    readme = " ".join((REPOSITORY / "README.md").read_text(encoding="utf-8").split())
    paper = citation["preferred-citation"]
    authors = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert f"title = {{{paper['title']}}}, author = {{{' and '.join(authors)}}}" in readme


def test_sums_of_the_weights() -> None:
    text = (REPOSITORY / "INSTALL.md").read_text()
    for name, archive in tc_clip.KNOWN_CLIP_WEIGHTS.items():
        assert f"| `{name}` | `{archive.filename}` | `{archive.sha256}` |" in text


def test_facts_of_the_shapes() -> None:
    from video_datasets.shapes import classes as shapes

    made = shapes.Settings()
    num_classes, num_base = len(shapes.all_classes()), len(shapes.base_classes())
    num_files = num_classes * (made.train_clips + made.val_clips)
    sentences = {
        "DATASETS.md": (
            f"{made.train_clips} training and {made.val_clips} validation clips per class, {num_files:,} files of "
            f"{made.side} x {made.side} pixels and {made.min_frames} to {made.max_frames} frames.",
            f"make {num_classes} classes with names in words",
            f"{num_base} combinations to train on and {num_classes - num_base} held out",
        ),
        "README.md": (
            f"{num_classes} classes such as",
            f"top-1, {num_base} trained classes (chance {100 / num_base:.1f} %)",
            f"top-1, {num_classes - num_base} held-out classes (chance {100 / (num_classes - num_base):.1f} %)",
        ),
    }
    for name, wanted in sentences.items():
        text = " ".join((REPOSITORY / name).read_text(encoding="utf-8").split())
        assert [sentence for sentence in wanted if sentence not in text] == [], name
