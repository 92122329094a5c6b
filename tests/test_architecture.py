"""The rules of the code that a machine can check: direction of imports, size of files, no noise.

Each rule is one test over all files and reports every violation as `file:line: what`. A file is read and parsed once.
"""

import ast
import functools
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
    "tc_clip": {"tc_clip", "torch", "timm", "torchvision", "numpy", "ftfy", "regex", "safetensors"},
    "main.py": {"trainers"},
}
READS_CONFIGURATION = {
    "trainers/config/resolve.py",
    "trainers/config/command_line.py",
    "trainers/config/compose.py",
    "trainers/commands/train.py",
    "trainers/commands/data/verify.py",
}
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
    return name_of(path).startswith("trainers/commands/") or path.name == "exported_predict.py"


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
