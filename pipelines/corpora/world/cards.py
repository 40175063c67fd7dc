"""Cards of a world's sources, so that experiments read them like any other source."""

from pathlib import Path

import yaml

from pipelines.corpora.world.config import CLIP_SOURCES, EVALUATION, WorldConfig
from pipelines.corpora.world.drawing.shots import HOST
from pipelines.corpora.world.files import Upstream
from pipelines.corpora.world.task_cards import write_task_cards
from pipelines.project import PROJECT_ROOT
from x2vlm.data.cards import Card, CardFile, UrlBase
from x2vlm.data.readers import READERS
from x2vlm.samples import Grain

READER_NAMES = {"laion_en": "laion", "laion_multi": "laion"}
GRAINS = {
    "coco": (Grain.IMAGE, Grain.OBJECT),
    "visual_genome": (Grain.REGION, Grain.OBJECT),
    "objects365": (Grain.OBJECT,),
    "openimages": (Grain.OBJECT, Grain.REGION),
    "flickr_entities": (Grain.IMAGE, Grain.REGION),
    "refcoco": (Grain.REGION,),
    "gqa": (Grain.OBJECT,),
}
HELD_OUT = {
    "captions": "evaluation/coco_caption/captions_val2014.json",
    "instances": "evaluation/refcoco_plus/instances.json",
}


def write_cards(config: WorldConfig, out: Path, files: list[Upstream], project_root: Path | None = None) -> None:
    """cards/<source>.yaml for every source, cards/coco_heldout.yaml for the held-out images, cards/tasks/ for tasks."""
    root = _below_project(out, project_root or PROJECT_ROOT)
    roles: dict[str, dict[str, str]] = {source: {} for source in config.sources}
    for file in files:
        if file.source != EVALUATION and file.role:
            roles[file.source][file.role] = file.path
    folder = out / "cards"
    folder.mkdir(exist_ok=True)
    for source, paths in roles.items():
        reader = READER_NAMES.get(source, source)
        grains = (Grain.VIDEO,) if source in CLIP_SOURCES else GRAINS.get(source, (Grain.IMAGE,))
        _write(folder, source, root, paths, reader if reader in READERS else None, grains)
    _write(folder, "coco_heldout", root, HELD_OUT, "coco", GRAINS["coco"], split="test")
    write_task_cards(folder / "tasks", root)


def _below_project(out: Path, project_root: Path) -> str:
    """The world's folder as cards give folders: relative to the project's root, or absolute if outside."""
    resolved = out.resolve()
    inside = resolved.is_relative_to(project_root.resolve())
    return str(resolved.relative_to(project_root.resolve()) if inside else resolved)


def _write(
    folder: Path,
    card_id: str,
    root: str,
    paths: dict[str, str],
    reader: str | None,
    grains: tuple[Grain, ...],
    split: str = "train",
) -> None:
    card = Card(
        id=card_id,
        title=f"Procedural world in the format of {card_id}",
        licence="CC0-1.0",
        availability="shipped",
        grains=grains,
        reader=reader,
        split=split,
        root=root,
        files={role: CardFile(path=path) for role, path in paths.items()},
        url_base=UrlBase(**{"from": HOST, "serve": f"{root}/media"}),
        notes="What is planted where is in truth.parquet.",
    )
    text = yaml.safe_dump(card.model_dump(mode="json", by_alias=True, exclude_defaults=True), sort_keys=False)
    (folder / f"{card_id}.yaml").write_text(text, encoding="utf-8")
