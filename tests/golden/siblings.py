"""Where the batches of a mixed case are: inside it, beside it, or in a folder above, by name or by what they hold."""

import json
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open

from tests.support.models.golden_cases import Case, read_case

# What the parts of a mix are called, and the folders that may hold each one's batch, the likeliest first.
PARTS = {
    "video": ("video",),
    "image": ("image",),
    "regions": ("regions", "region"),
    "text": ("mixed_text_batch", "text_batch", "text_only", "text"),
}


def part_case(folder: Path, case: Case, part: str) -> Case:
    """The batch of a part of the mixed case in `folder`.

    Arrays of the case itself win (`<part>.in.*`), then folders by name, inside the case, beside it, and above it as far
    as the model's, then the only folder there with a batch of that kind. FileNotFoundError, with what was looked for,
    if there is none or several.
    """
    own = {
        name.removeprefix(f"{part}."): value for name, value in case.tensors.items() if name.startswith(f"{part}.in.")
    }
    if own:
        outputs = {k.removeprefix(f"{part}."): v for k, v in case.tensors.items() if k.startswith(f"{part}.out.")}
        return Case(case.info, own | outputs)
    for place in _places(folder):
        for name in _names(folder.name, part):
            if (place / name / "case.json").is_file() and place / name != folder:
                return read_case(place / name)
    for place in _places(folder):
        found = [other for other in _cases_in(place) if other != folder and kind_of_batch(other) == part]
        if len(found) == 1:
            return read_case(found[0])
        if found:
            raise FileNotFoundError(f"{folder}: several folders with a batch of {part}: {', '.join(map(str, found))}")
    raise FileNotFoundError(
        f"{folder}: no folder with its batch of {part}; looked for {', '.join(_names(folder.name, part))} beside it "
        "and above it"
    )


def _places(folder: Path) -> Iterator[Path]:
    """The case's folder and those above it up to the one with the model's weights, or its parent if none has."""
    above = [folder, *folder.parents]
    last = next((number for number, place in enumerate(above) if (place / "model.safetensors").is_file()), 1)
    yield from above[: max(last, 1) + 1]


def _names(mixed: str, part: str) -> list[str]:
    """Folder names of a part: those known, and those that differ from the mixed folder's as the part from `mixed`."""
    names = list(PARTS[part])
    if "mixed" in mixed and mixed != "mixed":  # `mixed_seed3` belongs to `video_seed3`
        renamed = [mixed.replace("mixed", name) for name in PARTS[part]]
        names = [*renamed, f"{mixed}_{part}", f"{mixed}_{part}_batch", *names]
    return list(dict.fromkeys([*names, f"mixed_{part}", f"mixed_{part}_batch"]))


def _cases_in(place: Path) -> Iterator[Path]:
    return (path.parent for path in sorted(place.glob("*/case.json")))


def kind_of_batch(folder: Path) -> str | None:
    """The part of a mix that the batch in `folder` would be, by the shapes of its arrays; None for anything else."""
    try:
        with safe_open(folder / "tensors.safetensors", "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys() if name.startswith("in.")}  # noqa: SIM118
        info = json.loads((folder / "case.json").read_text())
    except Exception:  # a broken case is reported by its own check
        return None
    without_matching = info.get("options", {}).get("ret_match_loss") is False
    if "in.masked_pos" not in shapes or "in.text_ids_2" in shapes or without_matching:
        return None
    if "in.image" not in shapes:
        return "text"
    if "in.idx_to_group_img" in shapes:
        return "regions" if "in.is_image" in shapes else None
    return "video" if len(shapes["in.image"]) == 5 else "image"
