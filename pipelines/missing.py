"""What an experiment reads and this machine does not have: all of it at once, each with where to get it."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pipelines.evaluation_nodes import located, media_root, task_card
from pipelines.evaluations import EvaluationConfig
from pipelines.experiment import Experiment, SourceConfig, resolve
from pipelines.graph import build_graph
from pipelines.input_files import card_file, phase_key, root_of
from pipelines.project import PROJECT_ROOT
from pipelines.s5_pretrain.start import StartConfig, is_hub_name
from x2vlm.data.cards import Availability, Card, file_paths, files_root, load_card
from x2vlm.data.readers.own.sets import SET_READERS
from x2vlm.errors import ConfigError, SourceUnavailable
from x2vlm.models.files import MODEL_FILES, TEXT_WEIGHTS

AVAILABILITY: dict[Availability, str] = {
    "shipped": "shipped with this project: restore it with git",
    "open": "open to everybody",
    "link_rot": "the list is open to everybody; a part of its links is dead",
    "gated": "behind a form or an account whose terms you must accept",
    "withdrawn": "withdrawn by its owner: only for those who hold a licensed copy",
}
# Where the files of downstream tests are published, by the format that `decontaminate.tests` declares.
TESTS = {
    "karpathy": "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
    "coco": "https://cocodataset.org/#download",
    "vqa": "https://visualqa.org/download.html",
    "refcoco": "https://github.com/lichengunc/refer, as JSON of X-VLM (https://github.com/zengyan-97/X-VLM)",
    "nlvr2": "https://github.com/lil-lab/nlvr",
    "gqa": "https://cs.stanford.edu/people/dorarad/gqa/download.html",
    "flickr30k": "https://github.com/BryanPlummer/flickr30k_entities",
    "wit": "https://github.com/google-research-datasets/wit",
    "openimages": "https://storage.googleapis.com/openimages/web/download_v7.html",
    "msrvtt": "https://github.com/ArrowLuo/CLIP4Clip/releases/download/v0.0/msrvtt_data.zip",
}
LINKS = {
    "coco": "https://cocodataset.org/#download",
    "visual_genome": "https://homes.cs.washington.edu/~ranjay/visualgenome/api.html",
    "openimages": "https://storage.googleapis.com/openimages/web/download_v7.html",
}
BEIT2 = "https://github.com/microsoft/unilm/tree/master/beit2"
BERT = "https://huggingface.co/google-bert"
XLM_R = "https://huggingface.co/FacebookAI/xlm-roberta-base"
CLIP = (
    "any model of open_clip on the Hugging Face hub; give the folder with open_clip_config.json and its one "
    ".safetensors file, such as those of https://huggingface.co/laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
)


@dataclass(frozen=True)
class MissingInput:
    """A file or folder that is not there: the field that names it, who reads it, and where to get it."""

    field: str
    path: str
    origin: str
    nodes: tuple[str, ...]  # globs of the nodes that need it


@contextlib.contextmanager
def listing_all_missing(experiment: Experiment, targets: Sequence[str] = ()) -> Iterator[None]:
    """An error about one missing input, raised in the block, becomes one of its type that lists all of them.

    With `targets`, those that the targeted nodes and their ancestors read.
    """
    try:
        yield
    except (ConfigError, SourceUnavailable) as error:
        missing = missing_inputs(experiment)
        if not any(item.path in str(error) for item in missing):
            raise  # about something else
        if targets:
            missing = _needed(experiment, targets, missing)
        raise type(error)("\n".join(told(experiment.name, missing))) from error


def told(name: str, missing: Sequence[MissingInput]) -> list[str]:
    """The list for people: every path and every origin once."""
    fields: dict[str, list[MissingInput]] = {}
    for item in missing:
        fields.setdefault(item.path, []).append(item)
    number = "1 input that is" if len(fields) == 1 else f"{len(fields)} inputs that are"
    lines = [f"{name} reads {number} not here (below {PROJECT_ROOT}):"]
    for origin in dict.fromkeys(items[0].origin for items in fields.values()):
        for path, items in fields.items():
            if items[0].origin == origin:
                lines.append(f"  {path}  ({'; '.join(dict.fromkeys(item.field for item in items))})")
        lines.append(f"      get it: {origin}")
    return [*lines, "Put them there, or change the fields that name them."]


def missing_inputs(experiment: Experiment) -> list[MissingInput]:
    """Every local input that does not exist, in the order of the flow; what lies behind a URI is not asked for."""
    found: list[MissingInput] = []
    for name, source in experiment.sources.items():
        found += _of_source(name, source)
    for field in ("deny_list", "placeholders"):
        if (path := getattr(experiment.download, field)) is not None:
            found += _unless_there(f"download.{field}", path, "a file of your own, one entry a line", "download/*")
    if experiment.clip_model is not None:
        found += _unless_there("clip_model", experiment.clip_model, CLIP, "score/*")
    if experiment.decontaminate is not None:
        for test in experiment.decontaminate.tests:
            origin = TESTS.get(test.format, f"the publisher of {test.name}")
            found += _unless_there(f"decontaminate.tests, {test.name}", test.path, origin, "decontaminate/*")
        for link in experiment.decontaminate.links:
            found += _unless_there("decontaminate.links", link.path, LINKS[link.format], "decontaminate/*")
    found += _unless_there("vocabulary", experiment.vocabulary, _bert(experiment.vocabulary, "vocab.txt"), "pretrain/*")
    for phase, config in (*experiment.phases.items(), ("", experiment.pretrain)):
        node = f"pretrain/{phase_key(experiment.name, phase) if phase else experiment.name}"
        field = f"phases.{phase}.start" if phase else "pretrain.start"
        found += _of_start(config.start, field, node)
    for name, evaluation in experiment.evaluate.items():
        found += _of_evaluation(name, evaluation)
    return found


def _of_source(name: str, source: SourceConfig) -> list[MissingInput]:
    field, node = f"sources.{name}", f"read/{name}"
    try:
        card = load_card(card_file(source.card))
    except ConfigError:
        return []  # not an input of the user's: its own message says more
    found = []
    try:
        # Of a set the plan says itself which files are not below its folder.
        is_set = card.reader in SET_READERS
        root = root_of(card)
        paths = (
            {"folder": files_root(card, root, source.data_root)} if is_set else file_paths(card, root, source.data_root)
        )
    except ConfigError:
        found.append(MissingInput(f"{field}.data_root is not set", f"card {card.id}", _origin(card), (node,)))
        paths = {}
    for role, path in paths.items():
        origin = (card.files[role].url if role in card.files else None) or _origin(card)
        found += _unless_there(f"{field}, {role} of card {card.id}", path, origin, node)
    if source.media_root is not None:
        origin = f"your own copy of the media; {_origin(card)}"
        found += _unless_there(f"{field}.media_root", source.media_root, origin, f"download/{name}*")
    return found


def _of_start(start: StartConfig | None, field: str, node: str) -> list[MissingInput]:
    if start is None:
        return []
    found = []
    if start.vision is not None and not is_hub_name(start.vision):
        found += _unless_there(f"{field}.vision", start.vision, BEIT2, node)
    if start.text_source is not None and not is_hub_name(start.text_source[1]):
        setting, given = start.text_source
        files = f"config.json and {TEXT_WEIGHTS[0]} or {TEXT_WEIGHTS[-1]}"
        origin = _bert(given, files) if setting == "text" else f"{files} of a text encoder, such as {XLM_R}"
        if resolve(given).is_dir() and not _is_text_folder(resolve(given)):
            found.append(MissingInput(f"{field}.{setting}, in this folder", _shown(given), origin, (node,)))
        found += _unless_there(f"{field}.{setting}", given, origin, node)
    if start.checkpoint is not None:
        origin = f"a checkpoint of the reference, or a folder of this project with {', '.join(MODEL_FILES)}"
        found += _unless_there(f"{field}.checkpoint", start.checkpoint, origin, node)
    return found


def _of_evaluation(name: str, evaluation: EvaluationConfig) -> list[MissingInput]:
    """Files and media of a task."""
    data, field, node = evaluation.data, f"evaluate.{name}.data", f"task_data/{name}"
    if data is None:
        return []
    try:
        card, _ = task_card(data, evaluation.needed_splits)
        places = located(data, evaluation.needed_splits)
    except ConfigError:
        return []  # its own message says more
    origin, of_card = "a file of your own", ""
    if data.card is not None:
        where = " ".join(card.access.split()) or card.homepage or "where its notes say"
        if card.homepage not in where:
            where = f"{where} ({card.homepage})"
        origin = f"{card.title}: {where} ({AVAILABILITY[card.availability]}; datasets/**/{card.id}.yaml says more)"
        of_card = f" of card {card.id}"
    found = []
    for split, parts in places.items():
        for role, path in [item for part in parts for item in part.items()]:
            found += _unless_there(f"{field}, {role} of split {split}{of_card}", path, origin, node)
    if (root := media_root(data, card)) is not None:
        media = f"the images or clips; {card.media or origin}" + (f" ({card.homepage})" if card.homepage else "")
        found += _unless_there(f"{field}.media_root", root, media, node)
    return found


def _unless_there(field: str, path: str, origin: str, *nodes: str) -> list[MissingInput]:
    if "://" in path or resolve(path).exists():
        return []
    return [MissingInput(field, _shown(path), origin, nodes)]


def _shown(path: str) -> str:
    """As errors name it: relative to the project where it lies inside."""
    place = resolve(path)
    return str(place.relative_to(PROJECT_ROOT) if place.is_relative_to(PROJECT_ROOT) else place)


def _is_text_folder(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any((folder / name).is_file() for name in TEXT_WEIGHTS)


def _origin(card: Card) -> str:
    """Where the card says its files come from, and under which condition."""
    where = card.homepage or "where its notes say"
    return f"{card.title}: {where} ({AVAILABILITY[card.availability]}; datasets/**/{card.id}.yaml says more)"


def _bert(path: str, files: str) -> str:
    folder = Path(path).parent.name if path.endswith(".txt") else Path(path).name
    return f"{files} of {BERT}/{folder if folder.startswith('bert-') else 'bert-base-uncased'}"


def _needed(experiment: Experiment, targets: Sequence[str], missing: Sequence[MissingInput]) -> list[MissingInput]:
    """Those that the targets or what they stand on read; all, where the graph itself cannot be built."""
    try:
        graph = build_graph(experiment)
    except (ConfigError, SourceUnavailable):
        return list(missing)
    keys = graph.with_ancestors(key for key in graph if any(fnmatchcase(key, target) for target in targets))
    return [item for item in missing if any(fnmatchcase(key, glob) for key in keys for glob in item.nodes)]
