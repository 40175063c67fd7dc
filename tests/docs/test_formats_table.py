"""The statement of formats in docs/data.md is that of the code's own tables."""

from pathlib import Path

from x2vlm.data.media.formats import format_table

DOCS = Path(__file__).parents[2] / "docs" / "data.md"


def test_the_documented_formats_are_those_of_the_code() -> None:
    text = DOCS.read_text()
    rows, others = format_table()
    assert f"|---|---|\n{rows}\n" in text
    assert f"and not as `not_an_image`: {others}." in " ".join(text.split())
