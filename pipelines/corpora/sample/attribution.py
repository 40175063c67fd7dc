"""ATTRIBUTION.csv: author, licence and changes of every media file."""

import csv
import io
from dataclasses import astuple, dataclass, fields

from pipelines.corpora.sample.bad_media import MadeFile
from pipelines.corpora.sample.openimages_files import flickr_landing_url, flickr_photo_id
from pipelines.corpora.sample.photos import CLIPS, Clip
from pipelines.corpora.sample.upstream import Upstream, sha256

CC_BY_2 = ("CC BY 2.0", "https://creativecommons.org/licenses/by/2.0/")
OURS = (
    "this project",
    "",
    "pipelines/corpora/sample/build.py",
    "Apache-2.0",
    "https://www.apache.org/licenses/LICENSE-2.0",
)


@dataclass(frozen=True)
class Attribution:
    """One line of ATTRIBUTION.csv; `file` is relative to media/."""

    file: str
    author: str
    landing_url: str
    source: str
    licence: str
    licence_url: str
    sha256: str
    changes: str


def photo_attribution(upstream: Upstream, image_id: int) -> Attribution:
    """The line of an unmodified COCO photo. COCO records no author; Flickr's page of the photo names the owner."""
    image = upstream.images[image_id]
    digest = sha256(upstream.photo_path(image_id).read_bytes())
    return Attribution(f"photos/{image['file_name']}", *_coco_owner(image["flickr_url"]), digest, "none")


def _coco_owner(static_url: str) -> tuple[str, str, str, str, str]:
    photo_id = flickr_photo_id(static_url)
    author, landing = f"unknown (Flickr photo {photo_id})", flickr_landing_url(photo_id)
    return author, landing, f"COCO 2017, {static_url}", *CC_BY_2


def clip_attribution(upstream: Upstream, clip: Clip) -> Attribution:
    """The line of an unmodified clip."""
    return Attribution(f"clips/{clip.name}", *_clip_owner(upstream, clip), _digest(upstream, clip.sample), "none")


def _clip_owner(upstream: Upstream, clip: Clip) -> tuple[str, str, str, str, str]:
    row = upstream.provenance[clip.sample]
    landing = f"https://github.com/{row['repo']}/blob/{row['commit']}/{row['path']}"
    return clip.author, landing, f"{row['repo']} {row['path']}", clip.licence, clip.licence_url


def made_attribution(upstream: Upstream, made: MadeFile) -> Attribution:
    """The line of a crop, a broken copy or a generated file."""
    return Attribution(made.name, *_owner_of(upstream, made.sample), sha256(made.data), made.changes)


def _owner_of(upstream: Upstream, sample: str | None) -> tuple[str, str, str, str, str]:
    if sample is None:
        return OURS
    name = sample.rsplit("/", 1)[1]
    if sample.startswith("openimages/"):
        row = upstream.openimages_credits[name.removesuffix(".jpg")]
        return row["Author"], row["OriginalLandingURL"], f"OpenImages V6 train {row['ImageID']}", *CC_BY_2
    if sample.startswith("coco/"):
        return _coco_owner(upstream.images[int(name.removesuffix(".jpg"))]["flickr_url"])
    return _clip_owner(upstream, next(clip for clip in CLIPS if clip.sample == sample))


def _digest(upstream: Upstream, sample: str) -> str:
    return sha256(upstream.checked(sample).read_bytes())


def attribution_csv(rows: list[Attribution]) -> str:
    """ATTRIBUTION.csv as text, sorted by file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Attribution)])
    writer.writerows(astuple(row) for row in sorted(rows, key=lambda row: row.file))
    return text.getvalue()
