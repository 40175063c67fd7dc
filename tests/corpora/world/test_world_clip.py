"""The CLIP that knows the procedural world, through the real stages: it finds the captions that were planted wrong."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from pipelines.corpora.world.build import build_world
from pipelines.corpora.world.config import CLIP_SOURCES, NoiseRates, WorldConfig, source_of
from pipelines.corpora.world.drawing.shots import take_shot
from pipelines.corpora.world.drawing.words import COLOURS, SHAPES
from pipelines.flow.segments import read_segment
from pipelines.s1_download.download import DOWNLOAD, DownloadConfig
from pipelines.s1_download.read import READ, read_config
from pipelines.s2_filter import FILTER, FilterConfig
from pipelines.s3_score import SCORE, ScoreConfig
from pipelines.s4_materialize.partition import PARTITION, PartitionConfig
from pipelines.s4_materialize.slices import ROWS
from tests.support.parts import Run, as_source, run_stage
from x2vlm.data.cards import file_paths, load_card
from x2vlm.data.scores.thresholds import Suggestion, add_histograms, suggest_threshold

NAMES_A_THING = re.compile(rf"\b(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})", re.IGNORECASE)


@dataclass(frozen=True)
class Scored:
    """One clip after the score stage; `is_wrong` is what the world's truth says of its caption."""

    source: str
    row: str
    text: str
    score: float
    is_wrong: bool


def model_files(root: Path) -> tuple[Path, ...]:
    return tuple(path for path in sorted((root / "datasets/world/models/clip").iterdir()) if path.suffix != ".md")


def curate(root: Path, world: Path, folder: Path, source: str) -> tuple[Run, Run, Run]:
    """(rows, scores, media) of one source of a world, from its upstream files, its media served on 127.0.0.1."""
    card_path = world / "cards" / f"{source}.yaml"
    card = load_card(card_path)
    files = tuple(as_source(Path(path)) for path in file_paths(card, root).values())
    read = run_stage(READ, read_config(card), {"card": (as_source(card_path),), "files": files}, folder / "read")
    served = DownloadConfig(url_base=card.url_base)
    download = run_stage(DOWNLOAD, served, {"rows": (read.artifact,)}, folder / "download")
    filtered = run_stage(FILTER, FilterConfig(), {"rows": (download.artifact,)}, folder / "filter")
    inputs = {
        "rows": (filtered.artifact,),
        "media": (download.artifact,),
        "model": tuple(as_source(path) for path in model_files(root)),
    }
    return filtered, run_stage(SCORE, ScoreConfig(device="cpu"), inputs, folder / "score"), download


def table(run: Run, name: str) -> list[dict]:
    return [row for part in run.artifact.parts for row in pq.read_table(run.folder / part.name / name).to_pylist()]


def with_truth(world: Path, filtered: Run, scored: Run) -> list[Scored]:
    """The clips of one source. Speech that names nothing ("and that is it") is true of every clip, so it is never
    wrong, whatever clip it was planted for."""
    truth = pq.read_table(world / "truth.parquet", filters=[("unit", "=", "row")]).to_pylist()
    planted = {(row["source"], row["row_key"]): row["planted"] for row in truth}
    return [
        Scored(
            row["source"],
            row["source_row"],
            text := row["captions"][0]["text"],
            score["clip_score"],
            planted[row["source"], row["source_row"]] == "mismatched_caption" and bool(NAMES_A_THING.search(text)),
        )
        for row, score in zip(table(filtered, "rows.parquet"), table(scored, "scores.parquet"), strict=True)
    ]


def rank_quality(clips: Sequence[Scored]) -> float:
    """Area under the ROC curve: how often a right clip scores above a wrong one."""
    right = np.array([clip.score for clip in clips if not clip.is_wrong])
    wrong = np.array([clip.score for clip in clips if clip.is_wrong])
    pairs = right[:, None] - wrong[None, :]
    return float((np.sign(pairs).mean() + 1) / 2)


def suggestion_of(scores: Sequence[Run]) -> Suggestion:
    """From the manifests' histograms alone: no truth of this world, no label of any."""
    histograms = [run.summary["histograms"]["video"] for run in scores]
    both = [add_histograms([one[name] for one in histograms]) for name in ("real", "shuffled")]
    found = suggest_threshold(*both)
    assert found is not None
    return found


def kept_rows(runs: Mapping[str, tuple[Run, Run, Run]], threshold: float, folder: Path) -> set[tuple[str, str]]:
    """(source, row) of what the partition stage keeps at one threshold for all sources."""
    kept = set()
    config = PartitionConfig(num_shards=1, min_clip_score=threshold)
    for source, (rows, scores, media) in runs.items():
        inputs = {"rows": rows, "scores": scores, "media": media}
        run = run_stage(
            PARTITION, config, {**{n: (r.artifact,) for n, r in inputs.items()}, "decisions": ()}, folder / source
        )
        for path in run.folder.glob(f"*/{ROWS}"):
            kept |= {(source, row) for row in read_segment(path.open("rb"))["source_row"].to_pylist()}
    return kept


def test_wrong_captions_score_below_right_ones(project_root: Path, tmp_path: Path) -> None:
    world = tmp_path / "world"
    noise = NoiseRates(mismatched_caption=0.3)
    build_world(WorldConfig(seed=23, scenes=110, sources=("webvid",), noise=noise), world)
    runs = curate(project_root, world, tmp_path / "run", "webvid")
    clips = with_truth(world, *runs[:2])
    assert len(clips) >= 60
    assert 10 < sum(clip.is_wrong for clip in clips) < len(clips) / 2
    assert rank_quality(clips) >= 0.95
    suggestion = suggestion_of([runs[1]])
    kept = kept_rows({"webvid": runs}, suggestion.threshold, tmp_path / "partition")
    # Few clips: what the threshold does is measured at scale below. Here it must be on the right side of most.
    assert sum((clip.source, clip.row) in kept for clip in clips if clip.is_wrong) <= 0.2 * len(clips)
    assert sum((clip.source, clip.row) in kept for clip in clips if not clip.is_wrong) >= 0.5 * len(clips)


def build_with_clips_only(config: WorldConfig, world: Path) -> None:
    """A world of all sources, of whose media only the clips are rendered: annotations do not depend on media."""
    build_world(config.model_copy(update={"media": "none"}), world, workers=2)
    for index in range(config.scenes):
        if source_of(config, index) in CLIP_SOURCES and (shot := take_shot(config, index)).file:
            path = world / "media" / shot.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(shot.data)


@dataclass(frozen=True)
class Figures:
    """What one threshold does to some clips: fractions of the wrong ones removed and of the right ones kept."""

    num_right: int
    num_wrong: int
    rank_quality: float
    recall: float
    clean_kept: float


def figures_of(clips: Sequence[Scored], kept: set[tuple[str, str]]) -> Figures:
    wrong = [(clip.source, clip.row) not in kept for clip in clips if clip.is_wrong]
    right = [(clip.source, clip.row) in kept for clip in clips if not clip.is_wrong]
    return Figures(len(right), len(wrong), rank_quality(clips), float(np.mean(wrong)), float(np.mean(right)))


def measure(root: Path, folder: Path, config: WorldConfig) -> tuple[float, dict[str, Figures]]:
    """The one threshold for all clips of a world, chosen without a label, and what it does, by kind of text."""
    build_with_clips_only(config, folder / "world")
    runs = {source: curate(root, folder / "world", folder / source, source) for source in CLIP_SOURCES}
    clips = [clip for source in CLIP_SOURCES for clip in with_truth(folder / "world", *runs[source][:2])]
    suggestion = suggestion_of([scores for _, scores, _ in runs.values()])
    kept = kept_rows(runs, suggestion.threshold, folder / "partition")
    described = [clip for clip in clips if clip.source == "webvid"]
    narrated = [clip for clip in clips if clip.source != "webvid"]
    groups = {"described": described, "narrated": narrated, "all": clips}
    return suggestion.threshold, {name: figures_of(group, kept) for name, group in groups.items()}


@pytest.mark.slow
def test_one_threshold_chosen_without_labels_cleans_a_world_of_twenty_thousand_scenes(
    project_root: Path, tmp_path: Path
) -> None:
    """Descriptions name two things or more. Most narrated texts name a single one, of which a small model is less
    sure. Measured: threshold 0.14, all 38 wrong descriptions and 139 of 146 wrong narrated texts removed (0.962),
    99.3 % of 5,864 right texts kept."""
    threshold, found = measure(project_root, tmp_path, WorldConfig(seed=29, scenes=20_000))
    assert found["all"].num_right + found["all"].num_wrong >= 1000, (threshold, found)
    assert min(found["described"].num_wrong, found["narrated"].num_wrong) >= 20, (threshold, found)
    assert found["described"].recall >= 0.95, (threshold, found)
    assert found["all"].recall >= 0.95, (threshold, found)
    assert found["all"].clean_kept >= 0.95, (threshold, found)


def test_the_shipped_model_is_small_complete_and_in_half_precision(project_root: Path) -> None:
    folder = project_root / "datasets/world/models/clip"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 3_000_000
    weights = load_file(folder / "open_clip_model.safetensors")
    assert {value.dtype.itemsize for value in weights.values() if value.is_floating_point()} == {2}
    config = json.loads((folder / "open_clip_config.json").read_text())
    assert config["preprocess_cfg"]["resize_mode"] == "squash"  # a crop would cut off what stands at a clip's edges
    readme = (folder / "README.md").read_text()
    assert "Never filter real data with it" in readme
    assert hashlib.sha256((folder / "open_clip_model.safetensors").read_bytes()).hexdigest() in readme
