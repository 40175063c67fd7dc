"""A page of examples that a model got right and wrong: images, boxes, questions, answers, captions, what was retrieved.

One file of HTML that opens offline, makes no request, works without JavaScript and shows markup in texts as text. It is
at most MAX_BYTES long. The same predictions give the same page, in whatever order they come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from x2vlm.data.task_examples import Example
from x2vlm.errors import InvalidSample
from x2vlm.samples import Box
from x2vlm.tasks.pages.choice import Chosen, Prediction, choose
from x2vlm.tasks.pages.drawing import Outline, picture, text

if TYPE_CHECKING:
    from x2vlm.inference.visuals import Visual

MAX_BYTES = 3_000_000
MAX_CHARACTERS = 600  # of one text
MAX_ITEMS = 8  # of a list
PER_VERDICT = 12
STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1a; --paper: #fcfcfa; --faint: #6b6b66; --line: #dcdcd6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e9e9e4; --paper: #191918; --faint: #a3a39c; --line: #3a3a37; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
body { max-width: 80rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; } .faint { color: var(--faint); }
.all { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1.6rem; }
figure { margin: 0; } .image { position: relative; line-height: 0; } .image img { width: 100%; height: auto; }
.image svg { position: absolute; inset: 0; width: 100%; height: 100%; } .side { display: flex; gap: .3rem; }
.side > div { flex: 1 1 0; min-width: 0; } .frames { display: flex; gap: .2rem; }
.frames img { flex: 1 1 0; min-width: 0; height: auto; }
dl { margin: .4rem 0; display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; }
dt { color: var(--faint); } dd { margin: 0; } .found { stroke: #d55e00; } .truth { stroke: #009e73; }
.truth { stroke-dasharray: 14 8; } .key-found { color: #d55e00; } .key-truth { color: #009e73; }
"""
# What the texts of an example are, by task.
TEXTS = {"retrieval": "captions", "captioning": "references", "vqa": "question", "winoground": "captions"}
HIDDEN = {
    "example_id",
    "box_xywh",
    "target_xywh",
    "right",
    "text",
    "top_candidate",
    "retrieved",
    "question",
    "captions",
}

Load = Callable[[str], "Visual"]
Fields = list[tuple[str, str]]


def examples_page(
    task: str,
    predictions: pa.Table,
    examples: Sequence[Example],
    load: Load,
    per_verdict: int = PER_VERDICT,
    labels: Sequence[str] = (),
) -> str:
    """The page as HTML text. `predictions` as in `TaskResult`, `load` and `labels` as in `TaskContext`.

    An image that cannot be read is named in its place. Raises InvalidSample for no predictions, and for one of an
    example that is not among `examples`: the two are of different splits.
    """
    by_id = {example.example_id: example for example in examples}
    chosen = choose(predictions, per_verdict)
    head = _head(task, chosen)
    sections, used, left_out = [], len(head.encode()) + 500, 0
    for group in chosen:
        figures = []
        for row in group.rows:
            figure = _figure(task, row, by_id, load, labels)
            if used + len(figure.encode()) > MAX_BYTES:
                left_out += 1
                continue
            used += len(figure.encode())
            figures.append(figure)
        title = f"<h2>{group.verdict}: {len(figures)} of {group.num_rows:,}</h2>"
        sections.append(f'{title}<div class="all">{"".join(figures)}</div>')
        used += len(sections[-1].encode()) - sum(len(figure.encode()) for figure in figures)
    note = f'<p class="faint">{left_out} more would make the page too large.</p>' if left_out else ""
    return f"{head}{''.join(sections)}{note}</body></html>\n"


def _head(task: str, chosen: Sequence[Chosen]) -> str:
    counts = ", ".join(f"{group.num_rows:,} {group.verdict}" for group in chosen)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{text(task)}: examples</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{STYLE}</style></head><body>'
        f'<h1>{text(task)}: examples</h1><p class="faint">{counts}. Shown are those with the smallest sha256 of the '
        "id, not the best or the worst. Boxes: "
        '<span class="key-found">found by the model</span>, <span class="key-truth">annotated (dashed)</span>.</p>'
    )


def _figure(task: str, row: Prediction, by_id: Mapping[str, Example], load: Load, labels: Sequence[str]) -> str:
    example, turn = _example_of(str(row["example_id"]), by_id)
    if "top_candidate" in row:
        pictures, fields = _retrieved(example, turn, row, by_id, load)
    else:
        pictures = [_read(name, load, _outlines(row, example)) for name in example.media]
        fields = _asked(task, example)
        if example.attributes and len(labels) == len(example.attributes) == len(row.get("scores") or ()):
            fields += _attributes(example, row["scores"], labels)
            row = {name: value for name, value in row.items() if name != "scores"}
    rest = [(name, _value(value)) for name, value in row.items() if name not in HIDDEN and value is not None]
    told = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in [*fields, *rest])
    side = f'<div class="side">{"".join(f"<div>{one}</div>" for one in pictures)}</div>'
    identity = f'<p class="faint">{text(_cut(row["example_id"]))}</p>'
    return f"<figure>{side}<figcaption><dl>{told}</dl>{identity}</figcaption></figure>\n"


def _asked(task: str, example: Example) -> Fields:
    """Texts of the example and its right answers, with how many people gave each."""
    fields = [(TEXTS.get(task, "text"), " / ".join(_cut(one) for one in example.texts[:MAX_ITEMS]))]
    if example.answers:
        counts = Counter(example.answers).most_common(MAX_ITEMS)
        fields.append(("answers", ", ".join(_cut(word) + (f" ({n})" if n > 1 else "") for word, n in counts)))
    return fields


def _attributes(example: Example, scores: Sequence[float], labels: Sequence[str]) -> Fields:
    """What is annotated of a box, and the attributes that the model finds most likely, each with the annotation."""
    names = {1: "present", 0: "absent"}
    order = sorted(range(len(labels)), key=lambda number: (-scores[number], number))[:MAX_ITEMS]
    present = [label for label, value in zip(labels, example.attributes, strict=True) if value == 1]
    told = [f"{labels[n]} {scores[n]:.3f} ({names.get(example.attributes[n], 'not annotated')})" for n in order]
    return [("present", _value(present)), ("highest scores", _value(told))]


def _retrieved(
    example: Example, turn: int | None, row: Prediction, by_id: Mapping[str, Example], load: Load
) -> tuple[list[str], Fields]:
    """Asked with an image: the caption that came first, and its own. With a caption: the image that came first."""
    top, top_turn = _example_of(str(row["top_candidate"]), by_id)
    own = _read(example.media[0], load)
    if turn is None:
        first = top.texts[top_turn or 0]
        return [own], [("first", _cut(first)), ("own captions", _value(list(example.texts)))]
    shown = [_read(top.media[0], load)] + ([own] if top.media != example.media else [])
    words = "first" if len(shown) == 1 else "first, and the right one"
    return shown, [("asked", _cut(example.texts[turn])), ("images", words)]


def _example_of(name: str, by_id: Mapping[str, Example]) -> tuple[Example, int | None]:
    """The example, and the number of its caption where the name ends with one (`id#2`)."""
    if name in by_id:
        return by_id[name], None
    stem, _, number = name.rpartition("#")
    if stem in by_id and number.isdecimal() and int(number) < len(by_id[stem].texts):
        return by_id[stem], int(number)
    raise InvalidSample("unknown_example", f"a prediction is of {name}, which is no example of this split")


def _outlines(row: Prediction, example: Example) -> list[Outline]:
    truth = row.get("target_xywh") or (example.box and [example.box.x, example.box.y, example.box.w, example.box.h])
    named = (("truth", truth), ("found", row.get("box_xywh")))
    return [Outline(Box(*values), kind) for kind, values in named if values]


def _read(name: str, load: Load, outlines: Sequence[Outline] = ()) -> str:
    try:
        return picture(load(name), outlines)
    except InvalidSample as error:
        return f'<p class="faint">{text(_cut(name))} cannot be read: {text(error.rule)}</p>'


def _value(value: Any) -> str:
    """A value of a prediction in words; lists are cut."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        more = f" … ({len(value)} in all)" if len(value) > MAX_ITEMS else ""
        return " / ".join(_value(item) for item in value[:MAX_ITEMS]) + more
    return _cut(value)


def _cut(value: object) -> str:
    words = str(value)
    return words if len(words) <= MAX_CHARACTERS else words[:MAX_CHARACTERS] + " …"
