"""Reader `folder`: images and clips beside their texts, a Hugging Face imagefolder, or img2dataset's files output.

A file pairs with the texts of its own folder that are called like it up to the last dot (`cat.v2.jpg`, `cat.v2.txt`)
or like all of it (`cat.jpg.txt`): `.txt` and `.caption` have one caption a line, `.json` an object with `caption`,
`captions` or `text` and optionally boxes. Where a `metadata.csv`, `.jsonl` or `.parquet` lies, its `file_name` names
files below its folder; rows with one name are captions of one image. Captions come from texts and metadata, else from
the JSON.

The row key is the file's path below the set's root. Drops of its own: `no_caption`, `no_media` (a text or a row of the
metadata without file), `bad_metadata` (a row that cannot be read), `failed_to_download`, `failed_to_resize` and
`missing_from_shard` (img2dataset's table beside the folder), `bad_json`, `text_not_utf8`, `text_too_large`,
`name_not_utf8`. Other files and hidden ones are passed over.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from x2vlm.data.readers.own.facts import Facts
from x2vlm.data.readers.own.files import (
    FACTS,
    MAX_TEXT_BYTES,
    PARQUET_SUFFIX,
    TEXTS,
    Located,
    Member,
    SetFile,
    hash_range,
    is_metadata,
    is_text,
    local_url,
    media_kind,
    shown,
    stem_of,
    suffix_of,
)
from x2vlm.data.readers.own.img2dataset import Statuses, note_unfinished
from x2vlm.data.readers.own.metadata import FILE_NAME, read_metadata
from x2vlm.data.readers.own.rows import SetOptions, Texts, located
from x2vlm.data.readers.source import Fault, Source
from x2vlm.samples import Drop


def read_folder_group(
    source: Source, files: Sequence[SetFile], seen: Counter[str], options: SetOptions
) -> Iterator[Located | Drop]:
    """Rows in order of names, then what came without media."""
    named = {file.name: file for file in files}
    listed, faults = _listed(files, options)
    for row, fault in faults:
        seen["rows"] += 1
        yield source.drop(row, *fault)
    texts_of = _pairs(named)
    shards = [name for name in named if name.lower().endswith(PARQUET_SUFFIX) and not is_metadata(name)]
    statuses = {stem_of(name): Statuses(named[name]) for name in shards}
    for name, file in sorted(named.items()):
        if media_kind(suffix_of(name)) is None:
            continue
        seen["rows"] += 1
        if not is_text(name):
            yield source.drop(shown(name), "name_not_utf8", "rename the file")
            continue
        entries = listed.pop(name, [])
        texts = _read_texts([named[text] for text in texts_of.pop(name, [])], entries, options)
        shard, _, base = name.rpartition("/")
        facts = statuses[shard].of_key.get(base.rpartition(".")[0]) if shard in statuses else None
        yield from _row(source, seen, options, file, texts if facts is None else texts.or_facts(facts))
    for row, fault in _without_media(texts_of, listed):
        seen["rows"] += 1
        yield source.drop(row, *fault)
    for shard, table in statuses.items():
        inside = {name.rpartition("/")[2].rpartition(".")[0] for name in named if name.startswith(f"{shard}/")}
        note_unfinished(source, shard, list(named), bool(table.of_key))
        for drop in table.missing(source, shard, inside):
            seen["rows"] += 1
            yield drop


def _row(
    source: Source, seen: Counter[str], options: SetOptions, file: SetFile, texts: Texts
) -> Iterator[Located | Drop]:
    with file.open() as stream:
        sha256, num_bytes = hash_range(stream, 1 << 62)
    member = Member(file.name, 0, num_bytes, sha256)
    kind = media_kind(suffix_of(file.name)) or "image"
    yield from located(source, seen, options, file.name, kind, local_url(source, file.name), member, texts)


def _pairs(named: dict[str, SetFile]) -> dict[str, list[str]]:
    """The text files of every media file; those without one are under their own name, alone."""
    by_stem: dict[str, str] = {}
    for name in sorted(named):
        if media_kind(suffix_of(name)) is not None:
            by_stem.setdefault(name.rpartition(".")[0], name)
    found: dict[str, list[str]] = {}
    for name in sorted(named):
        ending = suffix_of(name)
        if (ending in TEXTS or ending == FACTS) and not name.endswith("_stats.json"):
            stem = name.rpartition(".")[0]
            media = stem if stem in named and media_kind(suffix_of(stem)) else by_stem.get(stem, name)
            found.setdefault(media, []).append(name)
    return found


def _listed(files: Sequence[SetFile], options: SetOptions) -> tuple[dict[str, list[Facts]], list[tuple[str, Fault]]]:
    """The rows of all metadata files by the file they name, and those that name none."""
    listed: dict[str, list[Facts]] = {}
    faults: list[tuple[str, Fault]] = []
    for file in files:
        if not is_metadata(file.name):
            continue
        folder = file.name.rpartition("/")[0]
        for number, values in read_metadata(file):
            row = f"{file.name}:{number}"
            if isinstance(values, tuple):
                faults.append((row, values))
                continue
            facts = Facts(values, options.columns)
            name = facts.text("media" if "media" in options.columns else FILE_NAME).strip().removeprefix("./")
            if not name or name.startswith("/") or ".." in name.split("/"):
                faults.append((row, ("bad_metadata", f"row {number}: {FILE_NAME} is {shown(name)[:200]!r}")))
            else:
                listed.setdefault(f"{folder}/{name}" if folder else name, []).append(facts)
    return listed, faults


def _read_texts(files: Sequence[SetFile], entries: Sequence[Facts], options: SetOptions) -> Texts:
    """The texts beside one file, and what the metadata say about it."""
    texts = Texts()
    for file in files:
        if file.bytes > MAX_TEXT_BYTES:
            texts.fault = "text_too_large", f"{shown(file.name)}: {file.bytes} bytes, at most {MAX_TEXT_BYTES} are read"
            continue
        with file.open() as stream:
            data = stream.read(MAX_TEXT_BYTES)
        if suffix_of(file.name) == FACTS:
            texts.add_json(data)
        else:
            texts.add_text(data, one_per_line=True)
    if entries:
        texts.listed = [text for facts in entries for text in facts.texts]
        texts = texts.or_facts(entries[0])
    return texts


def _without_media(texts_of: dict[str, list[str]], listed: dict[str, list[Facts]]) -> Iterator[tuple[str, Fault]]:
    for names in texts_of.values():
        for name in names:
            yield shown(name), ("no_media", "no image or clip is called like it")
    for name in listed:
        yield shown(name), ("no_media", "the metadata name it, but there is no such image or clip")
