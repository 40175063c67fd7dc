"""The web sources: CC3M's TSV, a LAION Parquet part and WebVid's CSV, with planted bad rows among the good ones."""

import csv
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.corpora.sample.photos import (
    BASE_URL,
    CAPTION_WITH_OPEN_QUOTE,
    CAPTION_WITH_QUOTES,
    CC3M,
    CLIP_CAPTIONS,
    CLIPS,
    CROP_ASPECT_3,
    CROP_ASPECT_OVER_3,
    CROP_SHORT_200,
    CROP_SHORT_223,
    CROP_SHORT_224,
    LAION,
    Crop,
)
from pipelines.corpora.sample.planted import Plant
from pipelines.corpora.sample.upstream import Upstream

CC_BY_2 = "https://creativecommons.org/licenses/by/2.0/"

LAION_SCHEMA = pa.schema(
    [
        ("SAMPLE_ID", pa.int64()),
        ("URL", pa.string()),
        ("TEXT", pa.string()),
        ("HEIGHT", pa.int32()),
        ("WIDTH", pa.int32()),
        ("LICENSE", pa.string()),
        ("NSFW", pa.string()),
        ("similarity", pa.float64()),
    ]
)


@dataclass(frozen=True)
class WebRow:
    """A row of CC3M or LAION; `what`, `stage`, `rule` only where a verdict is planted. One of url, caption may lack."""

    caption: str | None
    url: str | None
    what: str = ""
    stage: str = ""
    rule: str = ""
    size: tuple[int, int] = (640, 480)
    has_id: bool = True


def write_cc3m(upstream: Upstream, folder: Path) -> list[Plant]:
    """Writes the TSV (caption, TAB, url; no header, quotes literal) and returns what was planted."""
    rows = [_photo_row(upstream, image_id) for image_id in CC3M]
    rows[0] = WebRow(
        CAPTION_WITH_OPEN_QUOTE, rows[0].url, "caption opens a quote and never closes it", "filter", "kept"
    )
    quoted = CC3M.index(226111)
    rows[quoted] = WebRow(CAPTION_WITH_QUOTES, rows[quoted].url, "literal quotes in the caption", "filter", "kept")
    bad = [
        WebRow("a photo that is gone", f"{BASE_URL}/photos/gone.jpg", "no such file", "download", "http_404"),
        WebRow("a file of the reader", "file:///etc/hostname", "not http", "download", "scheme_forbidden"),
        WebRow(
            "kites over a lake",
            f"{BASE_URL}/bad/truncated.jpg",
            "second half of the JPEG is missing",
            "download",
            "decode_failed",
        ),
        WebRow("nothing to see here", f"{BASE_URL}/bad/empty.jpg", "no bytes", "download", "empty_body"),
        WebRow("a caption without its link", None, "one column", "read", "wrong_column_count"),
        WebRow("", f"{BASE_URL}/photos/000000002473.jpg", "no caption", "read", "empty_caption"),
    ]
    rows = _interleave(rows, bad)
    lines = [row.caption if row.url is None else f"{row.caption}\t{row.url}" for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Train_GCC-training.tsv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return _plants("cc3m", rows)


def write_laion(upstream: Upstream, folder: Path) -> list[Plant]:
    """Writes one Parquet part and returns what was planted."""
    rows = [_photo_row(upstream, image_id) for image_id in LAION]
    rows[1] = WebRow(rows[1].caption, rows[1].url, "SAMPLE_ID is null", "filter", "kept", rows[1].size, has_id=False)
    bad = [
        WebRow("a picture that moved away", f"{BASE_URL}/photos/moved.jpg", "no such file", "download", "http_404"),
        WebRow("cloud metadata", "http://169.254.169.254/latest/meta-data", *_forbidden("link-local address")),
        WebRow("mapped address", "http://[::ffff:169.254.169.254]/x.jpg", *_forbidden("the same, as mapped IPv6")),
        _crop_row(CROP_SHORT_224, "short edge exactly 224", "kept"),
        _crop_row(CROP_SHORT_223, "short edge 223", "min_short_edge"),
        _crop_row(CROP_SHORT_200, "short edge 200", "min_short_edge"),
        _crop_row(CROP_ASPECT_3, "672 x 224: aspect exactly 3", "kept"),
        _crop_row(CROP_ASPECT_OVER_3, "679 x 226: aspect 3.004", "max_aspect_ratio"),
        WebRow(
            "a very large picture",
            f"{BASE_URL}/bad/bomb.png",
            "header claims 20000 x 20000 pixels",
            "download",
            "too_many_pixels",
            (20000, 20000),
        ),
        WebRow("photo unavailable", f"{BASE_URL}/bad/page.jpg", "an HTML page", "download", "not_an_image"),
        WebRow("a row without a link", None, "URL is null", "read", "missing_url"),
    ]
    rows = _interleave(rows, bad)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(_laion_table(rows), folder / "part-00000.parquet", compression="none")
    return _plants("laion", rows)


def _forbidden(what: str) -> tuple[str, str, str]:
    return what, "download", "address_forbidden"


def _laion_table(rows: list[WebRow]) -> pa.Table:
    count = len(rows)
    columns = {
        "SAMPLE_ID": [3_000_000_000 + i if row.has_id else None for i, row in enumerate(rows)],
        "URL": [row.url for row in rows],
        "TEXT": [row.caption for row in rows],
        "HEIGHT": [row.size[1] for row in rows],
        "WIDTH": [row.size[0] for row in rows],
        "LICENSE": [CC_BY_2 if row.rule in ("", "kept") else "?" for row in rows],
        "NSFW": ["UNLIKELY"] * count,
        "similarity": [None] * count,  # upstream has a CLIP score; none was computed here
    }
    return pa.table(columns, schema=LAION_SCHEMA)


def write_webvid(folder: Path) -> list[Plant]:
    """Writes the CSV (every field quoted) and returns what was planted."""
    durations = {clip.name: clip.duration for clip in CLIPS}
    rows = [(key, f"clips/{clip}", durations[clip], caption) for key, clip, caption in CLIP_CAPTIONS]
    special = [
        ("1006", "clips/bunny.webm", "animated rabbit", "two words", "filter", "kept"),
        ("1007", "clips/bunny.webm", "rabbit", "one word", "filter", "min_video_words"),
        ("1008", "bad/corrupt.mp4", "two men talk in a silent film", "no track index", "download", "decode_failed"),
        ("1009", "clips/nasa.mp4", "", "no caption", "read", "empty_caption"),
    ]
    for key, path, caption, _, _, _ in special:
        rows.append((key, path, durations.get(path.removeprefix("clips/"), "PT00H00M09S"), caption))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "results_2M_train.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(["videoid", "contentUrl", "duration", "page_dir", "name"])
        for key, path, duration, caption in rows:
            writer.writerow([key, f"{BASE_URL}/{path}", duration, "001001_001050", caption])
    return [Plant("webvid", key, what, stage, rule) for key, _, _, what, stage, rule in special]


def _photo_row(upstream: Upstream, image_id: int) -> WebRow:
    image = upstream.images[image_id]
    caption = " ".join(upstream.captions[image_id][0]["caption"].split())
    return WebRow(caption, f"{BASE_URL}/photos/{image['file_name']}", size=(image["width"], image["height"]))


def _crop_row(crop: Crop, what: str, rule: str) -> WebRow:
    left, top, right, bottom = crop.box
    return WebRow(crop.caption, f"{BASE_URL}/{crop.name}", what, "filter", rule, (right - left, bottom - top))


def _interleave(good: list[WebRow], planted: list[WebRow]) -> list[WebRow]:
    """Good and planted rows in turn, so that no byte range of the file has only one kind."""
    rows: list[WebRow] = []
    for i in range(max(len(good), len(planted))):
        rows += good[i : i + 1] + planted[i : i + 1]
    return rows


def _plants(source: str, rows: list[WebRow]) -> list[Plant]:
    return [Plant(source, str(i), row.what, row.stage, row.rule) for i, row in enumerate(rows) if row.rule]
