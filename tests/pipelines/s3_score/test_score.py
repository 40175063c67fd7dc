"""Scoring with the shipped CLIP: numbers against open_clip used by hand, and what happens to rows without a score."""

import hashlib
import math
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipelines.flow.stage import Input
from pipelines.s3_score import SCORE, SCORE_SCHEMA, ScoreConfig
from pipelines.s3_score import stage as s3_score
from pipelines.s3_score.rows import score_rows
from pipelines.s3_score.stage import aggregate
from tests.support.parts import Run, as_part, as_source, run_stage
from tests.support.stages.scoring import CPU, copy_of, photo, sample_of, score, table_of, tiny_clip, toy_samples
from x2vlm.data.media.images import open_image
from x2vlm.data.media.phash import fingerprint
from x2vlm.data.media.video import decode_frames, sample_clip
from x2vlm.data.scores.clip_score import frame_scores, load_clip_folder, score_pairs
from x2vlm.data.scores.thresholds import EDGES, score_histogram
from x2vlm.data.shards.packs import MediaPack, Payload, write_media_pack
from x2vlm.errors import ConfigError, CorruptArtifact
from x2vlm.samples import Box, Concept, Grain, Sample, sample_table, write_table

# float32 on a CPU; batches of other sizes take other code paths in the matrix library. Measured here: below 2e-7.
TOLERANCE = 2e-6


def cosines_by_hand(folder: Path, jpegs: list[bytes], text: str) -> list[float]:
    """One image at a time through open_clip's own loader, preprocessing and tokenizer."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    with torch.no_grad():
        query = model.encode_text(tokenize([text]), normalize=True)[0]
        return [
            float(
                model.encode_image(preprocess(Image.open(BytesIO(jpeg)).convert("RGB"))[None], normalize=True)[0]
                @ query
            )
            for jpeg in jpegs
        ]


@pytest.fixture(scope="module")
def toy_run(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return score(project_root, tmp_path_factory.mktemp("toy"), toy_samples())


def test_scores_are_the_cosines_of_open_clip(project_root: Path, toy_run: Run) -> None:
    rows = table_of(toy_run)
    folder = tiny_clip(project_root)
    frames = cosines_by_hand(folder, [photo(n) for n in (10, 11, 12, 13)], "two men in a silent film")
    assert rows[1]["frame_scores"] == pytest.approx(frames, abs=TOLERANCE)
    assert rows[1]["clip_score"] == pytest.approx(sum(frames) / 4, abs=TOLERANCE)
    assert rows[1]["clip_score_max"] == pytest.approx(max(frames), abs=TOLERANCE)
    assert rows[1]["clip_score_middle"] == pytest.approx(frames[2], abs=TOLERANCE)
    for row, (number, text) in {
        0: (0, "a man on skis"),
        3: (2, "Kites over the WATER at a park."),
        4: (14, "a rabbit"),
    }.items():
        expected = cosines_by_hand(folder, [photo(number)], text)
        assert rows[row]["frame_scores"] == pytest.approx(expected, abs=TOLERANCE)
        assert rows[row]["clip_score"] == rows[row]["clip_score_max"] == rows[row]["clip_score_middle"]
        assert rows[row]["clip_score"] == pytest.approx(expected[0], abs=TOLERANCE)
    assert len({round(row["clip_score"], 4) for row in rows if row["clip_score"] is not None}) == 4


def test_one_row_per_row_in_order_with_the_reason_of_every_missing_score(toy_run: Run) -> None:
    rows = table_of(toy_run)
    assert pq.read_schema(toy_run.folder / "00000" / "scores.parquet").equals(SCORE_SCHEMA)
    assert [row["key"] for row in rows] == [sample.key for sample, _ in toy_samples()]
    assert [row["missing"] for row in rows] == ["", "", "no_caption", "", "", "decode_failed", "bad_frames_blob"]
    for row in rows:
        empty = [row[name] is None for name in ("clip_score", "clip_score_max", "clip_score_middle", "frame_scores")]
        assert empty == [bool(row["missing"])] * 4
    assert (toy_run.counts().num_in, toy_run.counts().num_out, toy_run.counts().dropped) == (7, 7, {})


def test_summary_names_the_weights_and_counts_what_is_missing(project_root: Path, toy_run: Run) -> None:
    weights = (tiny_clip(project_root) / "open_clip_model.safetensors").read_bytes()
    summary = dict(toy_run.results["00000"].summary)
    assert set(summary.pop("histograms")) == {"image", "video"}
    assert summary == {
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "scored": 4,
        "missing": {"bad_frames_blob": 1, "decode_failed": 1, "no_caption": 1},
    }


def test_totals_of_all_parts(project_root: Path, toy_run: Run, tmp_path: Path) -> None:
    one = toy_run.results["00000"].summary
    total = {**one, "weights_sha256": [one["weights_sha256"]]}
    assert toy_run.summary == total
    three = score(project_root, tmp_path, toy_samples(), parts=3)
    assert without_shuffled(three.summary) == without_shuffled(total)
    for kind in ("image", "video"):  # pairs are shuffled within a part, so of them only the sum is comparable
        parts = [result.summary["histograms"].get(kind, {}).get("shuffled", []) for result in three.results.values()]
        assert sum(three.summary["histograms"][kind]["shuffled"]) == sum(map(sum, parts))


def without_shuffled(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {**summary, "histograms": {kind: both["real"] for kind, both in summary["histograms"].items()}}


def test_histograms_are_of_the_scores_in_the_table_and_of_pairs_that_embeddings_reproduce(toy_run: Run) -> None:
    rows, histograms = table_of(toy_run), toy_run.summary["histograms"]
    embedded = pq.read_table(toy_run.folder / "00000" / "embeddings.parquet").to_pylist()
    for kind, places in {"image": (0, 3), "video": (1, 4)}.items():
        own = [rows[place]["clip_score"] for place in places]
        assert histograms[kind]["real"] == score_histogram(own)
        one, other = (np.array([embedded[place][name] for place in places], float) for name in ("picture", "text"))
        crossed = [float(one[0] @ other[1]), float(one[1] @ other[0])]
        filled = np.flatnonzero(histograms[kind]["shuffled"])
        # The mean of a clip's frames is shorter than 1, so its scores lie somewhat nearer to 0 than its embedding's.
        assert len(filled) in (1, 2)
        for place in filled:
            assert min(abs(value - EDGES[place]) for value in crossed) < 0.08


def test_scoring_twice_gives_the_same_bytes(project_root: Path, toy_run: Run, tmp_path: Path) -> None:
    assert score(project_root, tmp_path, toy_samples()).bytes_of() == toy_run.bytes_of()


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_and_parts_do_not_change_the_numbers(
    project_root: Path, toy_run: Run, tmp_path: Path, batch_size: int
) -> None:
    run = score(project_root, tmp_path, toy_samples(), ScoreConfig(device="cpu", batch_size=batch_size), parts=2)
    found = {row["key"]: row for part in ("00000", "00001") for row in table_of(run, part)}
    for row in table_of(toy_run):
        assert found[row["key"]]["missing"] == row["missing"]
        if row["frame_scores"]:
            assert found[row["key"]]["frame_scores"] == pytest.approx(row["frame_scores"], abs=TOLERANCE)
    whole = score(project_root, tmp_path / "whole", toy_samples(), ScoreConfig(device="cpu", batch_size=batch_size))
    assert whole.fingerprints == toy_run.fingerprints  # trying another batch size must not score everything again


def test_another_model_is_another_part_but_another_media_pack_is_not(
    project_root: Path, toy_run: Run, tmp_path: Path
) -> None:
    more = [*toy_samples(), (sample_of(99, photo(99), ["x"]), photo(99))]
    wider = score(project_root, tmp_path / "wider", toy_samples())
    (tmp_path / "pack").mkdir()
    files = []
    for sample, data in more:
        path = tmp_path / f"{sample.key}.bin"
        path.write_bytes(data)
        assert sample.media is not None
        files.append(Payload(sample.media.sha256, sample.media.format, path))
    write_media_pack(tmp_path / "pack", files)
    inputs = {
        "rows": (Input("filter/toy", "", (as_part("00000", tmp_path / "wider" / "rows-0"),)),),
        "media": (Input("download/toy", "", (as_part("00000", tmp_path / "pack"),)),),
        "model": tuple(as_source(path) for path in sorted(tiny_clip(project_root).iterdir()) if path.suffix != ".md"),
    }
    assert run_stage(SCORE, CPU, inputs, tmp_path / "again").fingerprints == wider.fingerprints
    without_tokenizer = {**inputs, "model": inputs["model"][:-1]}
    (part,) = SCORE.plan_parts(CPU, without_tokenizer)
    assert len(part.reads) == 1 + len(without_tokenizer["model"])


def test_nothing_touches_the_network(
    project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_run: Run
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"connection to {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    s3_score._folder_clip.cache_clear()
    assert score(project_root, tmp_path, toy_samples()).bytes_of() == toy_run.bytes_of()


def test_a_process_loads_the_model_once(project_root: Path, tmp_path: Path) -> None:
    s3_score._folder_clip.cache_clear()
    score(project_root, tmp_path, toy_samples(), parts=3)
    info = s3_score._folder_clip.cache_info()
    assert (info.misses, info.hits) == (1, 2)


def test_weights_that_give_no_finite_number_are_missing_scores(project_root: Path, tmp_path: Path) -> None:
    broken = copy_of(tiny_clip(project_root), tmp_path / "broken")
    weights = load_file(broken / "open_clip_model.safetensors")
    weights["visual.proj"] = weights["visual.proj"] * math.nan
    save_file(weights, broken / "open_clip_model.safetensors")
    clip = load_clip_folder(broken, "cpu")
    (sample, data) = toy_samples()[0]
    path = tmp_path / "payload"
    path.write_bytes(data)
    assert sample.media is not None
    write_media_pack(tmp_path, [Payload(sample.media.sha256, "jpeg", path)])
    with s3_score.MediaPack(tmp_path / "media.tar", tmp_path / "media.parquet") as pack:
        (row,) = score_rows(clip, [sample], pack, CPU)
    assert (row.key, row.missing, row.frame_scores) == (sample.key, "no_finite_score", ())
    assert row.image_D is None


def test_media_absent_from_the_pack_are_corrupt(project_root: Path, tmp_path: Path) -> None:
    pairs = toy_samples()
    sample, data = pairs[0]
    assert sample.media is not None
    other = replace(sample, media=replace(sample.media, sha256="0" * 64))
    run_rows = [(sample, data)]
    score(project_root, tmp_path / "good", run_rows)
    write_table(sample_table([other]), tmp_path / "good" / "rows-0" / "rows.parquet")
    inputs = {
        "rows": (Input("filter/toy", "", (as_part("00000", tmp_path / "good" / "rows-0"),)),),
        "media": (Input("download/toy", "", (as_part("00000", tmp_path / "good" / "media-0"),)),),
        "model": tuple(as_source(path) for path in sorted(tiny_clip(project_root).iterdir()) if path.suffix != ".md"),
    }
    with pytest.raises(CorruptArtifact, match=f"{sample.key} of toy"):
        run_stage(SCORE, CPU, inputs, tmp_path / "bad")


@pytest.mark.parametrize(
    ("scores", "mean", "largest", "middle"),
    [
        ([0.5], 0.5, 0.5, 0.5),
        ([0.1, 0.3], 0.2, 0.3, 0.3),
        ([0.1, 0.4, 0.1], 0.2, 0.4, 0.4),
        ([-1.0, 1.0, 0.0, 0.4], 0.1, 1.0, 0.0),
    ],
)
def test_aggregates(scores: list[float], mean: float, largest: float, middle: float) -> None:
    found = aggregate(scores)
    assert found["clip_score"] == pytest.approx(mean)
    assert (found["clip_score_max"], found["clip_score_middle"], found["frame_scores"]) == (largest, middle, scores)


def test_frames_of_nothing_have_no_scores(project_root: Path) -> None:
    clip = load_clip_folder(tiny_clip(project_root), "cpu")
    assert score_pairs(clip, [([], "a"), ([], "b")]) == [[], []]
    assert frame_scores(clip, [], "a") == []


def test_the_shipped_clips_pass_the_papers_threshold_with_their_own_captions_only(project_root: Path) -> None:
    clip = load_clip_folder(tiny_clip(project_root), "cpu")
    clips = project_root / "datasets/sample/media/clips"
    captions = {
        "chaplin.mp4": "black and white silent film of two men outdoors",
        "nasa.mp4": "gold hexagonal mirror segments beside a person on a lifting platform",
        "bunny.webm": "animated rabbit",
    }
    frames = {name: list(sample_clip((clips / name).read_bytes()).frames) for name in captions}
    for name in captions:
        for other, text in captions.items():
            scores = frame_scores(clip, frames[name], text)
            assert (sum(scores) / len(scores) >= 0.25) == (name == other), (name, other, scores)


def test_slots_must_match(project_root: Path, tmp_path: Path) -> None:
    run = score(project_root, tmp_path, toy_samples()[:1])
    rows = (Input("filter/toy", "", (as_part("00000", tmp_path / "rows-0"),)),)
    media = (Input("download/toy", "", (as_part("00007", tmp_path / "media-0"),)),)
    model = tuple(as_source(path) for path in sorted(tiny_clip(project_root).iterdir()))
    with pytest.raises(ConfigError, match="download/toy has no part 00000"):
        SCORE.plan_parts(CPU, {"rows": rows, "media": media, "model": model})
    with pytest.raises(ConfigError, match="1 rows artifacts but 0 media"):
        SCORE.plan_parts(CPU, {"rows": rows, "media": (), "model": model})
    with pytest.raises(ConfigError, match="a folder needs its files"):
        SCORE.plan_parts(CPU, {"rows": rows, "media": media, "model": ()})
    assert run.results["00000"].summary["scored"] == 1


def test_embeddings_and_fingerprints_are_kept_beside_the_scores(project_root: Path, toy_run: Run) -> None:
    scores = table_of(toy_run)
    embeddings = pq.read_table(toy_run.folder / "00000" / "embeddings.parquet").to_pylist()
    prints = pq.read_table(toy_run.folder / "00000" / "fingerprints.parquet").to_pylist()
    assert [row["key"] for row in embeddings] == [row["key"] for row in prints] == [row["key"] for row in scores]
    for score_row, vectors, found, (sample, data) in zip(scores, embeddings, prints, toy_samples(), strict=True):
        is_broken = score_row["missing"] not in ("", "no_caption")
        assert (vectors["picture"] is None) == is_broken
        assert (vectors["text"] is None) == (score_row["missing"] != "")
        if is_broken:
            assert found["pixel_sha256"] is None
            continue
        assert np.linalg.norm(np.array(vectors["picture"], np.float64)) == pytest.approx(1, abs=2e-3)
        frames = decode_frames(data)[0] if sample.kind == "video" else [data]
        expected = fingerprint([open_image(frame) for frame in frames])
        assert found == {"key": sample.key, **asdict(expected), "frame_phashes": list(expected.frame_phashes)}
        if sample.kind == "image" and vectors["text"] is not None:
            cosine = np.dot(np.array(vectors["picture"], np.float64), np.array(vectors["text"], np.float64))
            assert cosine == pytest.approx(score_row["clip_score"], abs=2e-3)


def test_concepts_are_scored_against_what_lies_in_their_box(project_root: Path, tmp_path: Path) -> None:
    image = Image.new("RGB", (96, 80), "white")
    image.paste(Image.open(BytesIO(photo(5))).crop((0, 0, 40, 40)), (50, 30))
    buffer = BytesIO()
    image.save(buffer, "PNG")
    sample = sample_of(0, buffer.getvalue(), [], "png")
    boxes = {"right": Box(50, 30, 40, 40), "sliver": Box(10, 10, 0.5, 3), "outside": Box(96, 80, 5, 5)}
    concepts = tuple(Concept(Grain.REGION, "blocks", box, (), name) for name, box in boxes.items())
    run = score(
        project_root,
        tmp_path,
        [(replace(sample, concepts=concepts), buffer.getvalue())],
        ScoreConfig(device="cpu", regions=True),
    )
    rows = pq.read_table(run.folder / "00000" / "regions.parquet").to_pylist()
    assert [row["annotation_id"] for row in rows] == ["right", "sliver"]  # a part of a pixel is looked at as a pixel
    clip = load_clip_folder(tiny_clip(project_root), "cpu")
    (expected,) = frame_scores(clip, [image.crop((50, 30, 90, 70))], "blocks")
    assert rows[0]["clip_score"] == pytest.approx(expected, abs=TOLERANCE)


def test_no_more_is_decoded_ahead_than_two_batches(project_root: Path, tmp_path: Path) -> None:
    """Rows are taken from the source only as the model takes them from the threads."""
    clip = load_clip_folder(tiny_clip(project_root), "cpu")
    data = photo(0)
    (tmp_path / "payload").write_bytes(data)
    samples = [sample_of(number, data, ["a text"]) for number in range(200)]
    assert samples[0].media
    write_media_pack(tmp_path, [Payload(samples[0].media.sha256, "jpeg", tmp_path / "payload")])
    taken = 0

    def source() -> Iterator[Sample]:
        nonlocal taken
        for sample in samples:
            taken += 1
            yield sample

    with MediaPack(tmp_path / "media.tar", tmp_path / "media.parquet") as pack:
        found = score_rows(clip, source(), pack, ScoreConfig(batch_size=10, decode_threads=3))
        for number, row in enumerate(found):
            assert row.key == samples[number].key
            assert taken <= number + 1 + 3 * 10 + 1
    assert taken == 200
