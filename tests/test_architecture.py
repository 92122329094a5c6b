"""The rules of the code that a machine can check: direction of imports, size of files, no noise.

Each rule is one test over all files and reports every violation as `file:line: what`. A file is read and parsed once.
"""

import ast
import functools
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("tc_clip", "video_datasets", "trainers")
SOURCES = [REPOSITORY / "main.py", *(path for name in PACKAGES for path in sorted((REPOSITORY / name).rglob("*.py")))]
SCRIPTS = sorted((REPOSITORY / "scripts").rglob("*.py"))
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))

FORBIDDEN = {
    "tc_clip": {"video_datasets", "trainers", "hydra", "omegaconf", "torch.distributed", "decord", "av"},
    "video_datasets": {"tc_clip", "trainers", "hydra", "omegaconf", "torch.distributed"},
    "trainers": {"main"},
    "main.py": {"tc_clip", "video_datasets"},
}
# The packages that each may import besides the standard library.
ALLOWED = {
    "tc_clip": {"tc_clip", "torch", "triton", "timm", "torchvision", "numpy", "ftfy", "regex", "safetensors"}
    | {"huggingface_hub", "tokenizers"},
    "main.py": {"trainers"},
}
READS_CONFIGURATION = {
    "trainers/config/resolve.py",
    "trainers/config/command_line.py",
    "trainers/config/compose.py",
    "trainers/commands/train.py",
    "trainers/commands/data/verify.py",
    "trainers/sweeps.py",
}
# The modules of a run; everything else is in a folder.
MODULES_OF_A_RUN = {
    *("__init__", "batches", "build", "checkpoint", "checkpoint_writer", "compilation", "continuing", "csv_files"),
    *("cuda_graphs", "device_copies", "disk", "environment", "errors", "evaluator", "files", "metrics", "optim"),
    *("paths", "precision", "prepare", "progress", "run", "session", "state", "testing", "trainer", "video_lists"),
    *("calibration", "losses", "multi_label", "videos_at_once", "choices", "held_out", "sweeps"),
}
# The folders of trainers/ that each folder imports; "" stands for the modules of a run.
FOLDER_IMPORTS: dict[str, set[str]] = {
    "": {"config", "distributed", "logging", "parts"},
    "parts": set(),
    "config": set(),
    "distributed": set(),
    "logging": {"config", "distributed"},
    "inference": {"config", "distributed"},
    "reporting": {"config", "inference"},
    "commands": {"config", "distributed", "logging", "inference", "reporting"},
}
# The modules of a run that write its results, and TensorBoard, which shows pictures of the report.
CALLS_THE_REPORT = {
    "trainers/run.py",
    "trainers/prepare.py",
    "trainers/sweeps.py",
    "trainers/testing.py",
    "trainers/logging/tensorboard.py",
}
# Scripts that are more than a call of their command, which is in trainers/commands.
LONG_SCRIPTS = {"scripts/benchmark.py", "scripts/doc_images.py", "scripts/test_matrix.py"}
# Names of libraries that begin with an underscore, and why each is used. Operators (torch.ops) are not listed.
PRIVATE_OF_LIBRARIES = {
    "_exit": "os: ends the process from a thread",
    "_replace": "a public method of named tuples",
    "_foreach_copy_": "torch: one call for many tensors",
    "_foreach_lerp_": "torch: the same",
    "_dynamo": "torch: the settings of torch.compile",
    "_inductor": "torch: ahead-of-time compilation",
    "_softmax_backward_data": "torch: the operator of softmax's backward pass",
    "_version": "torch: whether a tensor was changed in place",
    "_workers": "torch: the processes of a DataLoader, to name one that hangs",
    "_shutdown_workers": "torch: to end them",
}
# Words that stop a reader; CONTRIBUTING.md asks for plain English.
PRIVATE_WORDS = re.compile(
    r"\b(of ours|can mend|strangers|yardstick|wishes|told|whoever|deaf|passed over|always bears|put up)\b"
    r"|\ba (path|line|name|colour) a (line|class|video|name)\b|\bs a video\b|\bgoes on (from|with)\b",
    re.IGNORECASE,
)
MAX_LINES = 500


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@functools.cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@functools.cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Return every node of a file's syntax tree, the module first."""
    return tuple(ast.walk(ast.parse(text_of(path))))


def tree_of(path: Path) -> ast.Module:
    module = nodes_of(path)[0]
    assert isinstance(module, ast.Module)
    return module


@functools.cache
def imports_of(path: Path) -> tuple[tuple[int, str], ...]:
    """Return the line and the dotted name of everything a file imports, inside functions too."""
    return tuple(imported(path, nodes_of(path)))


def imported(path: Path, nodes: Iterable[ast.AST]) -> Iterator[tuple[int, str]]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: relative import"
            yield node.lineno, str(node.module)
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def is_command(path: Path) -> bool:
    """Return whether a file is a command-line tool."""
    return name_of(path).startswith("trainers/commands/") or path.name in ("exported_predict.py", "__main__.py")


def test_imports_keep_their_direction() -> None:
    wrong = []
    for path in SOURCES:
        package = name_of(path).split("/")[0]
        for line, module in imports_of(path):
            forbidden = any(is_in(module, other) for other in FORBIDDEN[package])
            top = module.split(".")[0]
            unknown = package in ALLOWED and top not in ALLOWED[package] | set(sys.stdlib_module_names)
            if forbidden or unknown:
                wrong.append(f"{name_of(path)}:{line}: {module}")
    assert wrong == []


def folder_of(module: str) -> str | None:
    """Return the folder of trainers/ that a module is in, "" for trainers/ itself, None for other packages."""
    parts = module.split(".")
    if parts[0] != "trainers":
        return None
    return parts[1] if len(parts) > 1 and (REPOSITORY / "trainers" / parts[1]).is_dir() else ""


def test_modules_and_folders_of_trainers_are_listed() -> None:
    assert {path.stem for path in (REPOSITORY / "trainers").glob("*.py")} == MODULES_OF_A_RUN
    folders = {path.parent.name for path in (REPOSITORY / "trainers").glob("*/__init__.py")}
    assert folders == FOLDER_IMPORTS.keys() - {""}


def test_folders_of_trainers_keep_their_direction() -> None:
    wrong = []
    for path in SOURCES:
        own = folder_of(name_of(path).removesuffix(".py").replace("/", "."))
        for line, module in imports_of(path):
            folder = folder_of(module)
            if own is None or not folder or folder == own or folder in FOLDER_IMPORTS[own]:
                continue
            if not (folder == "reporting" and name_of(path) in CALLS_THE_REPORT):
                wrong.append(f"{name_of(path)}:{line}: {module}")
    assert wrong == []


def test_private_names_stay_in_their_module() -> None:
    """A name with a leading underscore is used only by the module that defines it."""
    wrong = []
    for path in SOURCES:
        own = defined_names(path)
        for node in nodes_of(path):
            if isinstance(node, ast.ImportFrom):
                wrong += [
                    f"{name_of(path)}:{node.lineno}: {alias.name}" for alias in node.names if is_private(alias.name)
                ]
            elif isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
                if node.attr not in PRIVATE_OF_LIBRARIES and not ast.unparse(node).startswith("torch.ops."):
                    wrong.append(f"{name_of(path)}:{node.lineno}: {ast.unparse(node)}")
    assert wrong == []


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined_names(path: Path) -> set[str]:
    """Return the names that a file defines: functions, classes, variables, and attributes of `self` and `cls`."""
    names = set()
    for node in nodes_of(path):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
            names.add(node.attr)
    return names


def test_scripts_call_their_command() -> None:
    """Every file in scripts/ and scripts/data/ is a few lines, so that `tc-clip NAME` does the same."""
    scripts = [path for path in SCRIPTS if path.parent.name in ("scripts", "data")]
    long = {name_of(path) for path in scripts if len(text_of(path).splitlines()) >= 12}
    assert long == LONG_SCRIPTS


def test_the_configuration_is_read_in_listed_files() -> None:
    readers = {
        name_of(path)
        for path in SOURCES
        for _, module in imports_of(path)
        if is_in(module, "omegaconf") or is_in(module, "hydra")
    }
    assert readers == READS_CONFIGURATION


def test_no_cycles() -> None:
    modules = {name_of(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__"): path for path in SOURCES}
    graph = {
        name: {module for _, module in imported(path, tree_of(path).body)} & modules.keys() - {name}
        for name, path in modules.items()
    }
    while leaves := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert graph == {}, f"import cycles among {sorted(graph)}"


def test_files_are_short() -> None:
    lengths = {name_of(path): len(text_of(path).splitlines()) for path in SOURCES + SCRIPTS + TESTS}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES and "golden" not in name} == {}


def test_imports_are_by_name() -> None:
    wrong = [
        f"{name_of(path)}:{line}: {module}"
        for path in SOURCES + SCRIPTS + TESTS
        for line, module in imports_of(path)
        if module.endswith(".*")
    ]
    assert wrong == []


def test_nothing_prints_and_no_error_is_swallowed() -> None:
    wrong = []
    for path in SOURCES:
        for node in nodes_of(path):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                if not is_command(path):
                    wrong.append(f"{name_of(path)}:{node.lineno}: print")
            if isinstance(node, ast.ExceptHandler):
                if node.type is None:
                    wrong.append(f"{name_of(path)}:{node.lineno}: bare except")
                elif [type(statement) for statement in node.body] == [ast.Pass]:
                    wrong.append(f"{name_of(path)}:{node.lineno}: silent except")
    assert wrong == []


def test_everything_public_has_a_docstring() -> None:
    missing = []
    for path in SOURCES:
        tree = tree_of(path)
        if tree.body and not ast.get_docstring(tree):
            missing.append(name_of(path))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    missing.append(f"{name_of(path)}:{node.lineno}: {node.name}")
    assert missing == []


def test_the_entry_point_has_no_logic() -> None:
    path = REPOSITORY / "main.py"
    branches = [node for node in nodes_of(path) if isinstance(node, ast.If | ast.For | ast.While | ast.Try)]
    assert len(branches) == 1 and len(text_of(path).splitlines()) < 10


def test_packages_import_quickly() -> None:
    """Importing a package imports nothing heavy until one of its names is used."""
    for package in ("tc_clip", "video_datasets"):
        path = REPOSITORY / package / "__init__.py"
        assert {module.split(".")[0] for _, module in imported(path, tree_of(path).body)} <= {"importlib", "typing"}


def test_words_are_plain() -> None:
    folders = [REPOSITORY / name for name in ("configs", "docs", "labels", "scripts", "tests")]
    texts = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".md", ".yaml", ".sh")]
    wrong = []
    for path in [*SOURCES, *SCRIPTS, *TESTS, *REPOSITORY.glob("*.md"), *texts]:
        for line, text in enumerate(text_of(path).splitlines(), start=1):
            found = PRIVATE_WORDS.search(text)
            if found and path != Path(__file__).resolve():
                wrong.append(f"{name_of(path)}:{line}: {found[0]}")
    assert wrong == []
