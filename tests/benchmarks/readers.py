"""How fast annotations are read: `python -m tests.benchmarks.readers [--scenes 4000] [--big-rows 200000]`.

Two tables, in CPU seconds of one thread, because wall time on a shared machine is unreliable:

* sources: rows per second of the reader alone and of the whole read stage (to Parquet), on a generated world, and on
  a long CC12M file;
* JSON: megabytes per second of our stream, of `json.loads` on the whole file, and of `ijson` where it is installed, on
  a COCO file of segmentations and on a Visual Genome file of phrases.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pipelines.corpora.world.build import build_world
from pipelines.corpora.world.config import SOURCES, WorldConfig
from pipelines.flow.stage import Part
from pipelines.s1_download.read import READ, read_config
from tests.support.flow_helpers import run_stage_part, upstream_input
from tests.support.large_json import write_instances
from x2vlm.data.cards import Card, file_paths, load_card
from x2vlm.data.readers import READERS, Source
from x2vlm.data.readers.json_stream import stream_list, stream_sections
from x2vlm.samples import Sample

BIG_COCO_BYTES = 100_000_000


def seconds(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result of `work` and its CPU seconds in this process."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def measure(card: Card, project_root: Path, out: Path) -> tuple[int, float, float]:
    """Rows in the files, and the CPU seconds of the reader and of the whole stage."""
    files = {role: Path(path) for role, path in file_paths(card, project_root).items()}
    source = Source(card.id, card.id, card.split, files, card.licence, card.language)
    seen: Counter[str] = Counter()
    kept, reading = seconds(lambda: sum(isinstance(item, Sample) for item in READERS[card.reader or ""](source, seen)))
    config = read_config(card)
    inputs = {"card": (), "files": tuple(upstream_input(path, card.id) for path in files.values())}
    [part] = READ.plan_parts(config, inputs)
    result, staging = seconds(lambda: _stage(config, part, out))
    assert kept >= result.counts["rows"].num_out > 0
    return seen["rows"], reading, staging


def _stage(config: Any, part: Part, out: Path) -> Any:
    return run_stage_part(READ, config, part, out)


def repeat_cc12m(card: Card, project_root: Path, folder: Path, num_rows: int) -> Card:
    """A card of a CC12M file with `num_rows` rows: those of the world repeated."""
    lines = Path(file_paths(card, project_root)["rows"]).read_bytes().splitlines(keepends=True)
    path = folder / "cc12m.tsv"
    with path.open("wb") as file:
        file.writelines(lines[number % len(lines)] for number in range(num_rows))
    rows = card.files["rows"].model_copy(update={"path": path.name})
    return card.model_copy(update={"root": str(folder), "files": {"rows": rows}})


def source_table(folder: Path, scenes: int, big_rows: int) -> Iterable[str]:
    build_world(WorldConfig(scenes=scenes, media="none"), folder / "world")
    cards = {name: load_card(folder / "world" / "cards" / f"{name}.yaml") for name in SOURCES}
    cards["cc12m, long"] = repeat_cc12m(cards["cc12m"], folder, folder, big_rows)
    yield f"{'source':16}{'rows':>9}{'reader rows/CPU s':>20}{'stage rows/CPU s':>19}"
    for number, (name, card) in enumerate(cards.items()):
        rows, reading, staging = measure(card, folder, folder / f"out-{number}")
        yield f"{name:16}{rows:9}{rows / reading:20.0f}{rows / staging:19.0f}"


def json_table(folder: Path) -> Iterable[str]:
    coco, regions = folder / "instances.json", folder / "region_descriptions.json"
    write_instances(coco, BIG_COCO_BYTES)
    write_regions(regions, 300_000)
    yield f"{'file':28}{'parser':32}{'records':>9}{'MB/CPU s':>10}"
    for path, prefix in ((coco, "annotations.item"), (regions, "item")):
        for name, work in parsers(path, prefix).items():
            records, taken = seconds(work)
            rate = path.stat().st_size / 1e6 / taken
            yield f"{path.name:28}{name:32}{records:9}{rate:10.1f}"


def write_regions(path: Path, number: int) -> None:
    """Visual Genome's layout: 50 phrases an image."""
    with path.open("w") as file:
        file.write("[")
        for image in range(number // 50):
            place = {"width": 82, "height": 139, "image_id": image, "phrase": "the clock is green in colour", "y": 57}
            regions = [{"region_id": image * 50 + one, **place, "x": one} for one in range(50)]
            file.write((", " if image else "") + json.dumps({"regions": regions, "id": image}))
        file.write("]")


def parsers(path: Path, prefix: str) -> dict[str, Callable[[], int]]:
    source = Source("benchmark", "benchmark", "train", {"rows": path})

    def ours() -> int:
        if prefix == "item":
            return sum(1 for _ in stream_list(source, "rows", ""))
        sections = stream_sections(source, "rows", ("annotations",), "", unread="segmentation")
        return sum(1 for _, elements in sections for _ in elements or ())

    def whole() -> int:
        value = json.loads(path.read_bytes())
        return len(value if prefix == "item" else value["annotations"])

    found = {"x2vlm.data.readers.json_stream": ours, "json.loads, file in memory": whole}
    try:
        import ijson
    except ImportError:
        return found

    def incremental() -> int:
        with path.open("rb") as file:
            return sum(1 for _ in ijson.items(file, prefix, use_float=True, buf_size=1 << 20))

    return {**found, f"ijson, {ijson.backend}": incremental}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--big-rows", type=int, default=200_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="x2vlm-readers-") as folder:
        for line in source_table(Path(folder), options.scenes, options.big_rows):
            print(line, flush=True)
        print()
        for line in json_table(Path(folder)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
