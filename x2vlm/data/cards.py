"""Dataset cards: what an upstream dataset is, which files it has and under which terms, as typed values.

A card holds facts only (`datasets/<folder>/<id>.yaml`). What is done with the dataset is decided by an experiment.
"""

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic

from x2vlm.config import FrozenConfig, did_you_mean, parse_config, read_yaml
from x2vlm.data.readers import READERS
from x2vlm.data.readers.own.facts import NAMES as SET_FIELDS
from x2vlm.data.readers.own.layout import BOX_FIELDS, SEVERAL, BoxFormat, check_columns
from x2vlm.data.readers.own.sets import SET_READERS
from x2vlm.errors import ConfigError
from x2vlm.samples import Grain

LOCAL_NAME_FIELDS = frozenset(["row", "id", "file", "folder"])  # see `Card.local_name`
Availability = Literal["shipped", "open", "link_rot", "gated", "withdrawn"]


class CardFile(FrozenConfig):
    """One upstream file. `sha256` and `expected_rows` only where the source publishes them."""

    path: str  # below the card's root; for readers of sets a pattern: "*.tar", "{00000..00099}.tar", "**", a folder
    sha256: str | None = pydantic.Field(default=None, pattern="^[0-9a-f]{64}$")
    bytes: int | None = pydantic.Field(default=None, ge=0)
    url: str | None = None  # where to get it
    expected_rows: int | None = pydantic.Field(default=None, ge=0)

    @pydantic.field_validator("path")
    @classmethod
    def _stay_below_root(cls, path: str) -> str:
        if not path or path.startswith("/") or ".." in Path(path).parts:
            raise ValueError("must be a path below the card's root, without `..`")
        return path


class UrlBase(FrozenConfig):
    """URLs that start with `from` are served from folder `serve` (below the project root) by a loopback server."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    from_: str = pydantic.Field(alias="from", pattern="^https?://[^/]+$")
    serve: str


class Card(FrozenConfig):
    """One upstream dataset."""

    id: str = pydantic.Field(pattern="^[a-z0-9_]+$")
    title: str
    homepage: str = ""
    paper: str = ""
    licence: str  # of a row that names none of its own
    licence_notes: str = ""
    availability: Availability
    grains: tuple[Grain, ...]
    reader: str | None = None  # a key of READERS; None for data that no pre-training reader takes
    split: str = "train"
    language: str = "en"  # of texts that do not name their own
    # Folder of the files below the project root, an absolute path or a URI; "" where users keep them (`file_paths`).
    root: str = ""
    files: dict[str, CardFile]
    # Of readers of a user's own files: which columns hold what (`readers.own.layout.ALIASES` lists the fields), by
    # name, or by position from 0 in a table without a header; and how boxes are written.
    columns: dict[str, tuple[str | int, ...]] = {}
    boxes: BoxFormat | None = None
    url_base: UrlBase | None = None
    # How official copies name their files, for users who hold one: "{id}.mp4". Fields: {row} the row's key, {id} the
    # same up to "#" (the video of a clip), {file} and {folder} the last two segments of the URL's path.
    local_name: str | None = None
    # Domains whose pages hold a video instead of being one. Fetched through yt-dlp if the experiment allows it, else
    # counted as dropped; `terms` states the conditions that whoever allows it must have accepted.
    yt_dlp_domains: tuple[str, ...] = ()
    terms: str = ""
    allow_networks: tuple[str, ...] = ()  # private networks that this source's URLs may point to
    # Ports beyond 80 and 443 that they may name.
    allow_ports: tuple[Annotated[int, pydantic.Field(gt=0, lt=65_536)], ...] = ()
    known_broken: dict[str, str] = pydantic.Field(default_factory=dict)  # row key -> what is wrong with it
    notes: str = ""

    @pydantic.model_validator(mode="after")
    def _terms_are_stated(self) -> Self:
        if self.yt_dlp_domains and not self.terms:
            raise ValueError(
                "a card with `yt_dlp_domains` must state the `terms` under which their videos may be fetched"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _sets_hold_their_media(self) -> Self:
        if self.reader in SET_READERS:
            fields = [name for name in ("url_base", "local_name") if getattr(self, name)]
            fields += [f"files.{role}.sha256" for role, file in self.files.items() if file.sha256]
            if fields:
                names = ", ".join(fields)
                raise ValueError(f"reader `{self.reader}` takes media out of the set itself; {names} can do nothing")
        return self

    @pydantic.field_validator("columns", mode="before")
    @classmethod
    def _fields_are_known(cls, columns: Any) -> Any:
        """One column may be given without a list."""
        if not isinstance(columns, Mapping):
            return columns
        check_columns(columns)
        single = {field: (name,) if isinstance(name, str | int) else name for field, name in columns.items()}
        for field, names in single.items():
            if isinstance(names, list | tuple) and len(names) > 1 and field not in SEVERAL:
                raise ValueError(f"{field} takes one column, {', '.join(map(str, names))} are {len(names)}")
        kinds = {type(name) for names in single.values() if isinstance(names, list | tuple) for name in names}
        if {str, int} <= kinds:
            raise ValueError("give all columns by name, or all by position in a table without a header")
        return single

    @pydantic.model_validator(mode="after")
    def _columns_take_effect(self) -> Self:
        if self.reader != "table" and self.reader not in SET_READERS and (self.columns or self.boxes is not None):
            own = ", ".join(sorted({"table", *SET_READERS}))
            raise ValueError(f"`columns` and `boxes` are for the readers {own}; the reader here is {self.reader}")
        if self.reader in SET_READERS and (unused := sorted(set(self.columns) - set(SET_FIELDS))):
            raise ValueError(f"columns.{unused[0]} has no effect with `reader: {self.reader}`")
        if self.reader == "table" and self.boxes is None and (unused := sorted(set(self.columns) & set(BOX_FIELDS))):
            raise ValueError(
                f"columns.{unused[0]} has no effect without "
                "`boxes: {format: xywh|xyxy|cxcywh, unit: pixels|fraction}`"
            )
        return self

    @pydantic.field_validator("reader")
    @classmethod
    def _reader_exists(cls, reader: str | None) -> str | None:
        if reader is not None and reader not in READERS:
            raise ValueError(f"no such reader; {did_you_mean(reader, READERS)}")
        return reader

    @pydantic.field_validator("allow_networks")
    @classmethod
    def _networks_parse(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            ipaddress.ip_network(network)
        return networks


def load_card(path: Path) -> Card:
    """The card in a YAML file; ConfigError names the file, the key and the nearest known one.

    A card has the name of its file, so that cards named in manifests can be found.
    """
    card = parse_config(Card, read_yaml(path), str(path))
    if card.id != path.stem:
        raise ConfigError(f"{path}: id is `{card.id}`, the file name says `{path.stem}`; make them equal")
    return card


def file_paths(card: Card, project_root: Path, data_root: str | None = None) -> Mapping[str, str]:
    """Role -> where the card's file lies: below the card's own root, or at `<data_root>/<card id>/<path>`.

    `data_root` may be any URI prefix. Nothing is checked to exist. ConfigError if neither root is known.
    """
    base = files_root(card, project_root, data_root)
    return {role: f"{base}/{file.path}" for role, file in card.files.items()}


def files_root(card: Card, project_root: Path, data_root: str | None = None) -> str:
    """The folder or URI prefix below which the card's files lie, see `file_paths`."""
    if card.root:
        return card.root.rstrip("/") if "://" in card.root else str(project_root / card.root)
    if data_root:
        return f"{data_root.rstrip('/')}/{card.id}"
    raise ConfigError(f"card {card.id}: its files are not shipped; set `data_root` to the folder that holds {card.id}/")
