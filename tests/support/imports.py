"""Which files the project has, and which of its modules import which, read from the sources without importing them."""

import ast
import subprocess
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def project_files(root: Path, folders: Iterable[str]) -> list[Path]:
    """Files below `folders` relative to `root`: those git knows or would add; without git, those there."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *folders]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        names = [name for name in listed.stdout.split("\0") if name]
    else:
        paths = (path for folder in folders for path in (root / folder).rglob("*") if "__pycache__" not in path.parts)
        names = [str(path.relative_to(root)) for path in paths]
    return [Path(name) for name in names if (root / name).is_file()]


def modules_of(files: Iterable[Path]) -> dict[str, Path]:
    """Python files by the name they are imported under; a package has the name of its folder."""
    return {
        ".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in files if path.suffix == ".py"
    }


def import_graph(root: Path, known: dict[str, Path], inside_functions: bool = False) -> dict[str, set[str]]:
    """The known modules that each of them imports when it is imported, and what it imports under TYPE_CHECKING.

    With `inside_functions` also what it imports later. `from a import b` is an arrow to the module `a.b` if there is
    one, and to `a` otherwise.
    """
    graph = {}
    for name, path in known.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        tree = ast.parse((root / path).read_text(encoding="utf-8"))
        nodes = ast.walk(tree) if inside_functions else _outside_functions(tree)
        graph[name] = {target for node in nodes for target in _targets(node, package, known)} - {name}
    return graph


def cycle_of(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, the first of them again at the end; nothing if there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def _outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [child for child in ast.iter_child_nodes(node) if not isinstance(child, FUNCTIONS)]


def _targets(node: ast.AST, package: str, known: dict[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in known)
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        names = [f"{base}.{alias.name}" for alias in node.names]
        yield from (name if name in known else base for name in names if name in known or base in known)
