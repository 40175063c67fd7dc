"""Options of the readers of downstream files: what a card decides beyond naming the files."""

from typing import Literal

import pydantic

from x2vlm.config import FrozenConfig
from x2vlm.data.readers.own.layout import BoxFormat
from x2vlm.samples import MediaKind


class ReaderOptions(FrozenConfig):
    """`media`: the names of images or clips below the folder of media, with the fields of a row in braces.

    `language` of texts that do not name their own; other languages than English go into the ids of examples.
    """

    media: str
    language: str = "en"


class KarpathyOptions(ReaderOptions):
    """`captions`: `first_five` of each image as evaluations cut them (COCO: 25,000 of 25,010), or `all`.

    `restval`: images that Karpathy took from the official validation set join `train`, or are left out.
    """

    media: str = "{filepath}/{filename}"
    captions: Literal["first_five", "all"] = "all"
    restval: Literal["joins_train", "left_out"] = "joins_train"


class CocoCaptionsOptions(ReaderOptions):
    media: str = "{file_name}"


class CaptionListOptions(ReaderOptions):
    """Names of the fields of a row, which MSRVTT's lists change."""

    media: str = "{image}"
    kind: MediaKind = "image"
    text_key: str = "caption"
    id_key: str = "image_id"


class VqaOptions(ReaderOptions):
    """`data_subtype`: what both official files must say they are ("val2014"); None takes any that agree.

    `answered`: False for test splits, whose answers are not public.
    """

    data_subtype: str | None = None
    answered: bool = True


class VgQaOptions(ReaderOptions):
    """`answers`: `plain` in lower case without the full stop at their end, as VQA's answers are, or `verbatim`.

    `only_listed` drops questions whose answer is not in the answer list. `weight` of a question in the training loss.
    """

    media: str = "{folder}/{image_id}.jpg"
    answers: Literal["plain", "verbatim"] = "plain"
    only_listed: bool = False
    weight: float = pydantic.Field(default=0.5, gt=0)


class VqaListOptions(ReaderOptions):
    """`weights` of a question by its `dataset`."""

    media: str = "{image}"
    weights: dict[str, float] = pydantic.Field(default_factory=lambda: {"vg": 0.5})
    answered: bool = True


class GqaOptions(ReaderOptions):
    """`balanced`: drop questions that are not of the balanced set."""

    media: str = "{imageId}.jpg"
    balanced: bool = True


class GqaLabelsOptions(ReaderOptions):
    media: str = "{img_id}.jpg"


class Nlvr2Options(ReaderOptions):
    """`set`: the first field of the identifiers, which tells a wrong file ("dev", "test1", "train").

    `left`, `right`: names of both images. Fields: {set}; {stem}, the identifier without its last field; {directory} of
    training rows; {left_name}, {right_name}, the last segments of the URLs.
    """

    media: str = ""
    set: str
    left: str = "{set}/{stem}-img0.png"
    right: str = "{set}/{stem}-img1.png"


class MarvlOptions(ReaderOptions):
    media: str = "{language}/images/{concept}/{image}"


class ImagePairListOptions(ReaderOptions):
    media: str = "{image}"


class XvnliOptions(ReaderOptions):
    """Field {image}: the Flickr30K id of the photo."""

    media: str = "{image}.jpg"


class RefcocoOptions(ReaderOptions):
    media: str = "{file_name}"


class RefcocoListOptions(ReaderOptions):
    media: str = "{image}"


class WinogroundOptions(ReaderOptions):
    media: str = "{image}.png"


class OvadOptions(ReaderOptions):
    media: str = "{file_name}"


class MsrvttOptions(ReaderOptions):
    """`training`: the 9,000 clips that are not tested, or the 7,010 of the official training and validation sets.

    `test`: `jsfusion`, 1,000 clips with one caption each (1k-A), or `official`, all 2,990 with all captions.
    """

    media: str = "{video_id}.mp4"
    training: Literal["9k", "7k"] = "9k"
    test: Literal["jsfusion", "official"] = "jsfusion"


class VideoQaOptions(ReaderOptions):
    """Field {name}: what the role `names` calls the clip (MSVD), else the row's `video_id`; {number}: its digits."""

    media: str = "{name}.mp4"


class Multi30kOptions(ReaderOptions):
    media: str = "{image}"


class CaptionFilesOptions(ReaderOptions):
    """`protocol`: how many images each language's file must hold; the name says which list of COCO was taken."""

    media: str = "{image}"
    protocol: Literal["1k", "5k"] | None = None


class WitOptions(ReaderOptions):
    """Field {image_name}: the last segment of the image's address. Rows with `image_content` bring their image."""

    media: str = "{image_name}"


class XFlickrCoOptions(ReaderOptions):
    media: str = "{img_path}"


class OwnOptions(FrozenConfig):
    """A user's own table. `columns`: field -> column, for names that no alias knows.

    Rows are of the split that a column `split` says; without such a column `val_share` of the images, told by a hash
    of their names, are `val` and the others `train`; with 0 all rows are of the split asked for. `media_root`: absolute
    paths below this folder become relative to it.
    """

    columns: dict[str, str] = {}
    val_share: float = pydantic.Field(default=0.0, ge=0, lt=1)
    media_root: str = ""
    language: str = "en"
    kind: MediaKind = "image"
    boxes: BoxFormat = BoxFormat(format="xywh", unit="pixels")
