"""From texts, facts and a place to a row: what all readers of a user's own files do the same way."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from x2vlm.data.readers.own.facts import Facts, parse_json
from x2vlm.data.readers.own.files import Located, Member
from x2vlm.data.readers.own.layout import BoxFormat, ColumnMap
from x2vlm.data.readers.source import Fault, Source
from x2vlm.data.text.texts import clean_text
from x2vlm.samples import Concept, Drop, MediaKind


@dataclass(frozen=True)
class SetOptions:
    """What a card says about the fields of a set: `columns` (value: field name) and how boxes are written."""

    columns: ColumnMap = field(default_factory=dict)
    boxes: BoxFormat = BoxFormat(format="xywh", unit="pixels")


@dataclass
class Texts:
    """The texts that lie beside one image or clip, as they are read."""

    texts: list[str] = field(default_factory=list)  # of text files, whole
    listed: list[str] = field(default_factory=list)  # captions that a table of files gives
    facts: Facts = field(default_factory=lambda: Facts({}))
    fault: Fault | None = None  # of a text that could not be read
    is_one_text: bool = True  # False: one caption a line

    def add_json(self, data: bytes) -> None:
        """Take in a JSON file."""
        found = parse_json(data)
        if isinstance(found, str):
            self.fault = "bad_json", found
        else:
            self.facts = found

    def add_text(self, data: bytes, one_per_line: bool) -> None:
        """Take in a text file: UTF-8, or UTF-16 with its byte order mark."""
        coding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        try:
            self.texts.append(data.decode(coding))
        except UnicodeDecodeError as error:
            self.fault = "text_not_utf8", str(error)[:200]
        self.is_one_text = not one_per_line

    def or_facts(self, facts: Facts) -> "Texts":
        """These, with `facts` where no JSON file gave any."""
        return self if self.facts else replace(self, facts=facts)

    def captions(self, facts: Facts) -> list[str]:
        """The captions: of text files and table, else of the facts.

        A text that the facts give as one caption is one, even where captions go by lines: img2dataset writes captions
        with line breaks into text files as they are.
        """
        said, texts = facts.texts, self.texts
        if not self.is_one_text and [clean_text(text) for text in texts] != [clean_text(text) for text in said]:
            texts = [line for text in texts for line in text.splitlines()]
        return [text for text in (*texts, *self.listed) if text.strip()] or said


def located(
    source: Source,
    seen: Counter[str],
    options: SetOptions,
    row: str,
    kind: MediaKind,
    own_url: str,
    member: Member,
    texts: Texts,
) -> Iterator[Located | Drop]:
    """The row, and drops for its bad boxes; or drops in its place where it has neither captions nor boxes."""
    facts = texts.facts.with_columns(options.columns)
    captions = facts.captions(texts.captions(facts), source.language)
    made, kept = list(facts.concepts(options.boxes)), list[Concept]()
    seen["concepts"] += len(made)
    seen["captions"] += len(captions)
    if not captions and not any(isinstance(one, Concept) for _, one in made):
        yield source.drop(row, *(texts.fault or ("no_caption", "neither a text nor facts with one lie beside it")))
        yield from source.drop_concepts(row, [item for item, _ in made])
        return
    yield from source.keep_concepts(row, made, kept)
    url = facts.url or own_url
    values = facts.sample_values()
    sample = source.sample(row, url, kind, captions=captions, concepts=tuple(kept), **values)
    yield Located(sample, member)
