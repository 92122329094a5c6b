"""The house rules that a machine can keep: direction of imports, size of files, no noise."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("tc_clip", "video_datasets", "trainers")
SOURCES = [REPOSITORY / "main.py", *(path for name in PACKAGES for path in sorted((REPOSITORY / name).rglob("*.py")))]
SCRIPTS = sorted((REPOSITORY / "scripts").rglob("*.py"))
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))

FORBIDDEN = {
    "tc_clip": {"video_datasets", "trainers", "hydra", "omegaconf", "torch.distributed", "decord", "av"},
    "video_datasets": {"tc_clip", "trainers", "hydra", "omegaconf", "torch.distributed"},
    "trainers": {"main"},
}
# The packages that each may import besides the standard library.
ALLOWED = {
    "tc_clip": {"tc_clip", "torch", "timm", "torchvision", "numpy", "ftfy", "regex", "safetensors"},
    "main.py": {"trainers"},
}
READS_CONFIGURATION = {
    "trainers/config/settings.py",
    "trainers/config/command_line.py",
    "trainers/config/compose.py",
    "trainers/commands/train.py",
    "trainers/commands/data/verify.py",
}
MAX_LINES = 500


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def is_command(path: Path) -> bool:
    """Return whether a file is a command-line tool."""
    return name_of(path).startswith("trainers/commands/") or path.name == "exported_predict.py"


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> Iterator[str]:
    """Yield every imported module by its dotted name, also those imported inside functions."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def lies_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_keep_their_direction(path: Path) -> None:
    package = name_of(path).split("/")[0]
    forbidden = FORBIDDEN.get(package, {"tc_clip", "video_datasets"})
    wrong = [module for module in imports_of(path) for package in forbidden if lies_in(module, package)]
    assert wrong == []
    if package in ALLOWED:
        import sys

        used = {module.split(".")[0] for module in imports_of(path)} - set(sys.stdlib_module_names)
        assert used <= ALLOWED[package]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_one_place_reads_the_configuration(path: Path) -> None:
    users = [module for module in imports_of(path) if lies_in(module, "omegaconf") or lies_in(module, "hydra")]
    assert not users or name_of(path) in READS_CONFIGURATION


def test_no_cycles() -> None:
    modules = {name_of(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__"): path for path in SOURCES}

    def at_import(path: Path) -> set[str]:
        """Return the modules that importing a file imports: those at its top level."""
        found = set()
        for node in tree_of(path).body:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        return found & modules.keys()

    graph = {name: at_import(path) - {name} for name, path in modules.items()}
    while leaves := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert graph == {}, f"import cycles among {sorted(graph)}"


@pytest.mark.parametrize("path", SOURCES + SCRIPTS + TESTS, ids=name_of)
def test_files_are_short_and_import_by_name(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if "golden" not in name_of(path):
        assert len(text.splitlines()) <= MAX_LINES
    stars = [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]
    assert stars == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_prints_and_no_error_is_swallowed(path: Path) -> None:
    wrong = []
    for node in ast.walk(tree_of(path)):
        prints = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        if prints and not is_command(path):
            wrong.append(f"line {node.lineno}: print")
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                wrong.append(f"line {node.lineno}: bare except")
            elif [type(part) for part in node.body] == [ast.Pass]:
                wrong.append(f"line {node.lineno}: silent except")
    assert wrong == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_everything_public_says_what_it_is(path: Path) -> None:
    tree = tree_of(path)
    missing = [] if ast.get_docstring(tree) or not tree.body else ["module"]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                missing.append(node.name)
    assert missing == []


def test_the_entry_point_has_no_logic() -> None:
    tree = tree_of(REPOSITORY / "main.py")
    branches = [node for node in ast.walk(tree) if isinstance(node, ast.If | ast.For | ast.While | ast.Try)]
    assert len(branches) == 1 and len((REPOSITORY / "main.py").read_text().splitlines()) < 10


def test_packages_import_in_a_moment() -> None:
    """Importing a package costs nothing until a name of it is used."""
    for package in ("tc_clip", "video_datasets"):
        tree = tree_of(REPOSITORY / package / "__init__.py")
        heavy = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in heavy if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in heavy if isinstance(node, ast.ImportFrom)}
        assert names <= {"importlib", "typing"}
