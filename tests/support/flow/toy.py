"""A small graph of real stages over text files, for tests of the engine: read -> filter -> join."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.flow.stage import (
    Count,
    Graph,
    Inputs,
    Node,
    Part,
    PartReader,
    PartResult,
    PartSummary,
    PartWriter,
    Read,
    Runtime,
    SourceFile,
    Stage,
)
from x2vlm.config import FrozenConfig


class ReadConfig(FrozenConfig):
    rows_per_file: int = 3


class FilterConfig(FrozenConfig):
    min_chars: int = 3
    upper: bool = False


class JoinConfig(FrozenConfig):
    separator: str = "\n"


def plan_read(config: ReadConfig, inputs: Inputs) -> list[Part]:
    files = [file for item in inputs["files"] for part in item.parts for file in part.files]
    return [Part("all", reads=tuple(Read("files", file) for file in files))]


def read(config: ReadConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """Lines of the source files, `rows_per_file` in each output file."""
    lines = [line for r in part.reads for line in inputs.local_path(r.file).read_text().splitlines()]
    rows: dict[str, int] = {}
    for start in range(0, len(lines), config.rows_per_file):
        name = f"rows-{start // config.rows_per_file:05d}.txt"
        chunk = lines[start : start + config.rows_per_file]
        (out.path / name).write_text("\n".join(chunk))
        rows[name] = len(chunk)
    return PartResult({"rows": Count(len(lines), len(lines))}, file_rows=rows)


def plan_filter(config: FilterConfig, inputs: Inputs) -> list[Part]:
    files = [file for item in inputs["rows"] for part in item.parts for file in part.files]
    return [Part(f"{number:05d}", reads=(Read("rows", file),)) for number, file in enumerate(files)]


def filter_lines(config: FilterConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """Lines of at least `min_chars` characters; a line "boom" raises, "lose" is lost without a count."""
    with inputs.open(part.reads[0].file) as stream:
        lines = stream.read().decode().splitlines()
    if "boom" in lines:
        raise ValueError("a line says boom")
    kept = [line.upper() if config.upper else line for line in lines if len(line) >= config.min_chars]
    num_short = len(lines) - len(kept)
    kept = [line for line in kept if line != "lose"]
    (out.path / "kept.txt").write_text("\n".join(kept))
    return PartResult(
        {"rows": Count(len(lines), len(kept), {"too_short": num_short} if num_short else {})},
        file_rows={"kept.txt": len(kept)},
        summary={"longest": max(map(len, kept), default=0)},
    )


def finish_filter(config: FilterConfig, parts: Sequence[PartSummary]) -> Mapping[str, Any]:
    return {"metrics": {"longest": max((part.summary["longest"] for part in parts), default=0)}}


def plan_join(config: JoinConfig, inputs: Inputs) -> list[Part]:
    files = [file for item in inputs["rows"] for part in item.parts for file in part.files]
    return [Part("all", reads=tuple(Read("rows", file) for file in files))]


def join(config: JoinConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    texts = [text for r in part.reads if (text := inputs.local_path(r.file).read_text())]
    lines = [line for text in texts for line in text.splitlines()]
    (out.path / "deep").mkdir()
    (out.path / "deep" / "joined.txt").write_text(config.separator.join(lines))
    return PartResult({"rows": Count(len(lines), len(lines))}, summary={"lines": len(lines)})


READ = Stage("read", 1, ReadConfig, ("files",), plan_read, read)
FILTER = Stage("filter", 1, FilterConfig, ("rows",), plan_filter, filter_lines, finish_filter)
JOIN = Stage("join", 1, JoinConfig, ("rows",), plan_join, join)


def write_source(folder: Path, name: str, lines: Sequence[str]) -> Path:
    """A text file of lines below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def lines_of(name: str, number: int) -> list[str]:
    return [f"{name} line {index}" if index % 4 else "no" for index in range(number)]


def toy_graph(
    folder: Path,
    names: Sequence[str] = ("a", "b"),
    filter_config: FilterConfig | None = None,
    read_config: ReadConfig | None = None,
    filter_stage: Stage = FILTER,
    runtime: Runtime | None = None,
    join_config: JoinConfig | None = None,
) -> Graph:
    """read/<name> and filter/<name> for every name, and join/all over all filters. Sources are made if missing."""
    nodes = []
    for name in names:
        path = folder / f"{name}.txt"
        if not path.exists():
            write_source(folder, name, lines_of(name, 10))
        source = SourceFile(str(path), card=name)
        nodes.append(Node(f"read/{name}", READ, read_config or ReadConfig(), {"files": (source,)}))
        nodes.append(
            Node(
                f"filter/{name}",
                filter_stage,
                filter_config or FilterConfig(),
                {"rows": (f"read/{name}",)},
                runtime or Runtime(),
            )
        )
    filters = tuple(f"filter/{name}" for name in names)
    nodes.append(Node("join/all", JOIN, join_config or JoinConfig(), {"rows": filters}))
    return Graph(nodes)
