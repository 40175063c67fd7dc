"""The user's files that a node reads: cards, those of a model's folder, and those of a run's initial weights."""

from pathlib import Path

from pipelines.experiment import Experiment, resolve, source_uri
from pipelines.flow.stage import SourceFile
from pipelines.flow.store.store import Store
from pipelines.project import PROJECT_ROOT, lasting_root, project_path
from pipelines.s1_download.read_set import set_patterns
from pipelines.s5_pretrain.start import START_SLOTS, StartConfig, is_hub_name, text_folder_files
from pipelines.s5_pretrain.start_run import SLOT, is_node, marker_of
from x2vlm.config import did_you_mean
from x2vlm.data.cards import Card, file_paths, files_root
from x2vlm.data.readers.own.sets import SET_READERS
from x2vlm.data.task_cards import TaskCard
from x2vlm.errors import ConfigError
from x2vlm.models.files import MODEL_FILES


def card_file(name: str) -> Path:
    """The file of the card that a source names: "pretrain/coco", or an absolute path without its suffix.

    ConfigError with the nearest one if there is none.
    """
    folder = PROJECT_ROOT / "datasets"
    path = project_path(Path("datasets", f"{name}.yaml"))
    if not path.is_file():
        known = [str(card.relative_to(folder).with_suffix("")) for card in sorted(folder.rglob("*.yaml"))]
        # Who left the folder out, or names another one, means the card of that name.
        same = [card for card in known if Path(card).name == Path(name).name]
        hint = f"did you mean `{same[0]}`?" if same else did_you_mean(name, known)
        raise ConfigError(f"no card {path}; {hint}")
    return path


def card_files(card: Card, data_root: str | None) -> tuple[SourceFile, ...]:
    """The files that a card names, or for a reader of sets the one tree of all that match its patterns."""
    if (root := set_root(card, data_root)) is not None and card.reader is not None:
        return (SourceFile(root, card.id, patterns=set_patterns(card.reader, [f.path for f in card.files.values()])),)
    paths = file_paths(card, root_of(card), data_root)
    return tuple(SourceFile(source_uri(paths[role]), card.id, file.sha256) for role, file in card.files.items())


def set_root(card: Card, data_root: str | None) -> str | None:
    """Where the files of a set lie, None for readers that take single files."""
    return source_uri(files_root(card, root_of(card), data_root)) if card.reader in SET_READERS else None


def root_of(card: Card | TaskCard) -> Path:
    """Where the card's `root` starts: a folder of the user may lie outside the package of a submitted job."""
    is_here = project_path(card.root).is_relative_to(PROJECT_ROOT)
    return PROJECT_ROOT if is_here else lasting_root() or PROJECT_ROOT


def folder_files(folder: str | None, card: str) -> tuple[SourceFile, ...]:
    """Every file of a model folder, by name, without its README; none for a model given by name."""
    if folder is None:
        return ()
    path = resolve(folder)
    if not path.is_dir():
        raise ConfigError(f"{card}: {path} is not a folder; give the folder that holds the model's config and weights")
    files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix != ".md")
    return tuple(SourceFile(source_uri(str(file)), card) for file in files)


def phase_key(experiment: str, phase: str) -> str:
    """The name of the nodes of an earlier phase: "pretrain/<this>"."""
    return f"{experiment}.{phase}"


def start_inputs(start: StartConfig | None, experiment: Experiment) -> dict[str, tuple[str | SourceFile, ...]]:
    """The inputs of a run's initial weights, by slot. A run to branch off is looked for in its store."""
    inputs: dict[str, tuple[str | SourceFile, ...]] = {slot: () for slot in START_SLOTS}
    if start is None:
        return inputs
    if start.vision is not None and not is_hub_name(start.vision):
        inputs["start_vision"] = (_start_file(start.vision, "start.vision"),)
    if start.text_source is not None and not is_hub_name(start.text_source[1]):
        setting, given = start.text_source
        folder = resolve(given)
        names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
        files = text_folder_files(names, str(folder), f"start.{setting}")
        inputs["start_text"] = tuple(_start_file(f"{given}/{name}", f"start.{setting}") for name in files)
    if start.checkpoint is not None:
        is_folder = resolve(start.checkpoint).is_dir()
        files = [f"{start.checkpoint}/{name}" for name in MODEL_FILES] if is_folder else [start.checkpoint]
        inputs["start_model"] = tuple(_start_file(file, "start.checkpoint") for file in files)
    if start.run is not None:
        run = start.run if "://" in start.run or is_node(start.run) else str(resolve(start.run))
        marker = marker_of(run, start.step, Store(experiment.store_uri))
        inputs[SLOT] = (SourceFile(source_uri(marker), "start.run"),)
    if start.node:
        inputs["start_model"] = (f"pretrain/{phase_key(experiment.name, start.node)}",)
    return inputs


def _start_file(path: str, field: str) -> SourceFile:
    """A file of initial weights. ConfigError if it is missing, with the form of a hub name."""
    if "://" not in path and not resolve(path).is_file():
        raise ConfigError(
            f"{field}: no file {resolve(path)}. A model on the Hugging Face hub is named with its commit: "
            "owner/name@<40 hex digits>"
        )
    return SourceFile(source_uri(path), field)
