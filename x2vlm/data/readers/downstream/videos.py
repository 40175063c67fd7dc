"""Clips: MSRVTT's captions with both training lists, and the questions of MSRVTT-QA and MSVD-QA."""

from collections.abc import Mapping

from x2vlm.data.readers.downstream.options import MsrvttOptions, VideoQaOptions
from x2vlm.data.readers.downstream.reading import (
    Reading,
    Record,
    answer_list,
    id_field,
    json_records,
    kept_texts,
    media_name,
    text_field,
)
from x2vlm.data.readers.json_stream import stream_sections
from x2vlm.data.tables.csv_rows import csv_rows
from x2vlm.data.tables.lines import text_lines
from x2vlm.data.tables.rows import BadRow
from x2vlm.data.task_examples import Example, TaskData
from x2vlm.errors import InvalidSample

MSRVTT = 'Expected MSRVTT_data.json: {"videos": [{"video_id", "split"}], "sentences": [{"video_id", "caption"}]}'
SPLITS = {"train": "train", "val": "validate", "test": "test"}  # ours -> the file's


def read_msrvtt(reading: Reading, options: MsrvttOptions) -> TaskData:
    """One example a clip with its captions; `tags` of training clips say which list they are of: 9k or 7k.

    Role `training` (MSRVTT_train.9k.csv, a column `video_id`) gives the list itself. `test` with `jsfusion` has the
    one caption of MSRVTT_JSFUSION_test.csv for each clip.
    """
    if reading.split == "test" and options.test == "jsfusion":
        return _jsfusion(reading, options)
    splits, captions = _msrvtt_lists(reading)
    chosen = _chosen(reading, options, splits)
    tags = (f"train-{options.training}",) if reading.split == "train" else ()
    for video_id in chosen:
        reading.keep(
            video_id,
            _clip,
            reading,
            options,
            video_id,
            captions.get(video_id, []),
            tags,
        )
    return reading.data("data")


def _chosen(reading: Reading, options: MsrvttOptions, splits: Mapping[str, str]) -> list[str]:
    if reading.split == "train" and "training" in reading.source.files:
        return _csv_ids(reading, "training", splits)
    if reading.split == "train" and options.training == "9k":
        if "test" not in reading.source.files:
            reading.source.fail(
                "data",
                "the 9k clips are those that MSRVTT_JSFUSION_test.csv does not name",
                "Add it as role `test`, or a list of clips as role `training`",
            )
        tested = set(_csv_ids(reading, "test", None))
        return [video_id for video_id in splits if video_id not in tested]
    wanted = {SPLITS.get(reading.split, reading.split)}
    wanted |= {"validate"} if reading.split == "train" else set()
    return [video_id for video_id, split in splits.items() if split in wanted]


def _csv_ids(reading: Reading, role: str, known: Mapping[str, str] | None) -> list[str]:
    ids = []
    with reading.source.reading(role):
        for row in csv_rows(reading.source.file(role), ("video_id",)):
            if isinstance(row, BadRow):
                reading.drop(f"{role} {row.number}", row.rule, row.reason)
            elif known is not None and row.values["video_id"] not in known:
                reading.drop(f"{role} {row.number}", "unknown_video", f"no clip {row.values['video_id']}")
            else:
                ids.append(row.values["video_id"])
    return ids


def _msrvtt_lists(reading: Reading) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Split by clip, in the order of the file, and captions by clip."""
    splits: dict[str, str] = {}
    captions: dict[str, list[str]] = {}
    for key, records in stream_sections(reading.source, "data", ("videos", "sentences"), MSRVTT):
        if records is None:
            reading.source.fail("data", f"`{key}` is no list", MSRVTT)
        for number, record in enumerate(records):
            try:
                if not isinstance(record, dict):
                    raise InvalidSample("malformed_row", f"not an object: {record!r:.80}")
                video_id = id_field(record, "video_id")
                if key == "videos":
                    splits[video_id] = str(record.get("split"))
                else:
                    captions.setdefault(video_id, []).append(str(record.get("caption") or ""))
            except InvalidSample as error:
                reading.drop(f"{key} {number}", error.rule, error.message)
    if not splits:
        reading.source.fail("data", "no list `videos`", MSRVTT)
    for video_id in captions.keys() - splits.keys():
        reading.drop_item(video_id, "caption", "", "unknown_video", f"captions of {video_id}, which is no clip of it")
    return splits, captions


def _jsfusion(reading: Reading, options: MsrvttOptions) -> TaskData:
    with reading.source.reading("test"):
        for row in csv_rows(reading.source.file("test"), ("video_id", "sentence")):
            if isinstance(row, BadRow):
                reading.drop(str(row.number), row.rule, row.reason)
                continue
            video_id, sentence = row.values["video_id"], row.values["sentence"]
            reading.keep(
                str(row.number),
                _clip,
                reading,
                options,
                video_id,
                [sentence],
                (),
            )
    return reading.data("test")


def _clip(
    reading: Reading, options: MsrvttOptions, video_id: str, captions: list[str], tags: tuple[str, ...]
) -> Example:
    return reading.example(
        video_id,
        (media_name(options.media, {"video_id": video_id}),),
        kept_texts(reading, video_id, captions),
        kind="video",
        group=video_id,
        tags=tags,
    )


def read_video_qa(reading: Reading, options: VideoQaOptions) -> TaskData:
    """One example a row {video_id, question, answer}; answers outside the list stay, and are never right.

    Ids are the row's `id`, else its number. Role `names` (MSVD's youtube_mapping.txt: "<name> vid<n>") gives the clip's
    file for a `video_id` of n or "vid<n>".
    """
    labels = answer_list(reading.source, "answers")
    names = _names(reading)
    for number, record in json_records(reading, "rows"):
        reading.keep(
            str(number),
            _video_question,
            reading,
            options,
            number,
            record,
            names,
        )
    if reading.examples and not any(example.answers[0] in labels for example in reading.examples):
        reading.source.fail(
            "answers",
            f"none of the answers is among its {len(labels)}",
            "Give the list that belongs to these questions",
        )
    return reading.data("rows", labels=labels)


def _video_question(
    reading: Reading, options: VideoQaOptions, number: int, record: Record, names: Mapping[str, str] | None
) -> Example:
    video_id = id_field(record, "video_id")
    if names is not None and video_id.removeprefix("vid") not in names:
        raise InvalidSample("unknown_video", f"no clip {video_id} in the file of names")
    name = video_id if names is None else names[video_id.removeprefix("vid")]
    return reading.example(
        id_field(record, "id") if "id" in record else str(number),
        (media_name(options.media, {**record, "name": name, "number": number_of(video_id)}),),
        (text_field(record, "question"),),
        (text_field(record, "answer"),),
        kind="video",
        group=video_id,
    )


def number_of(video_id: str) -> str:
    """The digits of a clip's id: MSRVTT-QA's files write 7 or "video7" for the same clip."""
    return "".join(filter(str.isdigit, video_id))


def _names(reading: Reading) -> dict[str, str] | None:
    if "names" not in reading.source.files:
        return None
    found = {}
    with reading.source.reading("names"):
        for number, line in enumerate(text_lines(reading.source.file("names")), start=1):
            columns = [] if isinstance(line, BadRow) else line.split()
            if len(columns) == 2 and columns[1].startswith("vid"):
                found[columns[1].removeprefix("vid")] = columns[0]
            elif columns:
                reading.drop_item(f"names {number}", "name", str(number), "malformed_row", "no name and vid<n>")
    return found
