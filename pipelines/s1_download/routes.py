"""From a row to the address that is asked for its media, and back: the web, a served folder, or a user's own copy."""

import html
import re
import string
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import pydantic

from pipelines.project import project_path
from pipelines.s1_download.loopback import serve
from x2vlm.config import FrozenConfig
from x2vlm.data.cards import LOCAL_NAME_FIELDS, UrlBase
from x2vlm.samples import Sample

Endpoints = tuple[tuple[str, int], ...]


class LocalMedia(FrozenConfig):
    """A copy of a source's media that the user holds: every row is taken from there, and nothing from the web.

    `root` is a folder (relative to the project) or a bucket's URI; `name` says how files are called below it, with
    fields {row} (the row's key), {id} (the row's key up to "#": the video of a clip), {file} and {folder} (the last two
    segments of the URL's path).
    """

    root: str
    name: str

    @pydantic.field_validator("name")
    @classmethod
    def _fields_are_known(cls, name: str) -> str:
        fields = {field for _, field, _, _ in string.Formatter().parse(name) if field is not None}
        if not fields or fields - LOCAL_NAME_FIELDS:
            raise ValueError(
                f"{name!r}: use at least one of {', '.join(sorted(LOCAL_NAME_FIELDS))}, and no other field"
            )
        return name

    def path(self, sample: Sample) -> str:
        """Where the media of `sample` are, below `root`, escaped as a URL's path."""
        segments = urllib.parse.urlsplit(sample.url.strip()).path.split("/")
        values = {
            "row": sample.source_row,
            "id": sample.source_row.partition("#")[0],
            "file": urllib.parse.unquote(segments[-1]),
            "folder": urllib.parse.unquote(segments[-2]) if len(segments) > 1 else "",
        }
        return self.name.format(**{name: urllib.parse.quote(value, safe="") for name, value in values.items()})


# Names of HTML only with their semicolon: `&copy=1` is a parameter of an address.
_ENTITY = re.compile(r"&(?:amp|quot|apos|lt|gt|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});")
MAX_ESCAPES = 3  # "&amp;amp;" is one that was escaped twice


def asked_url(url: str) -> str:
    """The address that is asked for `url`: without the HTML escapes that it was copied with ("?a=1&amp;b=2").

    Rows and ledgers keep the address as written; where the media came from is `Fetch.final_url`.
    """
    for _ in range(MAX_ESCAPES):
        if "&" not in url or not _ENTITY.search(url):
            break
        url = _ENTITY.sub(lambda entity: html.unescape(entity[0]), url)
    return url


class Route(Protocol):
    """Where media are asked for. `is_own` says whether that is our own server, which needs no manners."""

    def to_wire(self, sample: Sample) -> str: ...

    def to_public(self, final_url: str, sample: Sample) -> str: ...

    def is_own(self, url: str) -> bool: ...


@dataclass(frozen=True)
class UrlMap:
    """Maps addresses below `public` to the server that stands in for it, and back, so that no port leaks into rows."""

    public: str = ""
    local: str = ""

    def to_wire(self, sample: Sample) -> str:
        url = sample.url.strip()
        return self.local + url[len(self.public) :] if self.public and url.startswith(self.public) else asked_url(url)

    def to_public(self, final_url: str, sample: Sample) -> str:
        return self.public + final_url[len(self.local) :] if self.is_own(final_url) else final_url

    def is_own(self, url: str) -> bool:
        return bool(self.local) and url.startswith(self.local)


@dataclass(frozen=True)
class LocalCopy:
    """Takes every row's media from the user's own copy, which `local` serves. Rows keep their published URL."""

    media: LocalMedia
    local: str

    def to_wire(self, sample: Sample) -> str:
        return self.local + self.media.path(sample)

    def to_public(self, final_url: str, sample: Sample) -> str:
        return sample.url.strip() if self.is_own(final_url) else final_url

    def is_own(self, url: str) -> bool:
        return url.startswith(self.local)


@contextmanager
def open_route(url_base: UrlBase | None, local_media: LocalMedia | None) -> Iterator[tuple[Route, Endpoints]]:
    """The route, and the endpoints of our own that may be contacted while the block runs.

    SourceUnavailable if what is to be served is not there.
    """
    if url_base is None and local_media is None:
        yield UrlMap(), ()
        return
    root = local_media.root if local_media is not None else url_base.serve if url_base is not None else ""
    with serve(root if "://" in root else str(project_path(root))) as (address, port):
        local = f"http://{address}:{port}/"
        if local_media is not None:
            yield LocalCopy(local_media, local), ((address, port),)
        elif url_base is not None:
            yield UrlMap(f"{url_base.from_.rstrip('/')}/", local), ((address, port),)
