"""The statement of formats in docs/data.md is that of the code's own tables."""

from pathlib import Path

from pipelines.s1_download.http.body import UNDONE_CODINGS
from x2vlm.data.media.clips.containers import ANIMATIONS, CONTAINERS, VIDEO_CODECS
from x2vlm.data.media.formats import format_table

DOCS = Path(__file__).parents[2] / "docs" / "data.md"


def test_the_documented_formats_are_those_of_the_code() -> None:
    text = DOCS.read_text()
    rows, others = format_table()
    assert f"|---|---|\n{rows}\n" in text
    assert f"and not as `not_an_image`: {others}." in " ".join(text.split())


def test_the_documented_containers_codecs_and_codings_are_those_of_the_code() -> None:
    text = " ".join(DOCS.read_text().split())
    assert f"Clips are read from {'; '.join(one.title for one in CONTAINERS.values())}." in text
    assert f"Their codecs: {', '.join(VIDEO_CODECS)}." in text
    assert f"Animated {', '.join(ANIMATIONS.values())} are clips in rows of kind video." in text
    assert f"Content codings that are undone: {', '.join(sorted(UNDONE_CODINGS))}." in text
