"""One reader per upstream annotation format.

A reader is a function `(source, seen) -> iterator of samples and drops`. It yields samples in a stable upstream order,
turns every bad row, concept or caption into a `Drop` of its own, and raises SourceUnavailable where a whole file is not
as its card describes it. `seen` counts the contents of the files before any filtering, under "rows", "concepts" and
"captions", so that the read stage can check that nothing got lost.
"""

from collections import Counter
from collections.abc import Callable, Iterator

from x2vlm.data.readers.annotated.coco import read_coco
from x2vlm.data.readers.annotated.flickr_entities import read_flickr_entities
from x2vlm.data.readers.annotated.gqa import read_gqa
from x2vlm.data.readers.annotated.objects365 import read_objects365
from x2vlm.data.readers.annotated.openimages import read_openimages
from x2vlm.data.readers.annotated.refcoco import read_refcoco
from x2vlm.data.readers.annotated.visual_genome import read_visual_genome
from x2vlm.data.readers.own.sets import read_folder, read_webdataset
from x2vlm.data.readers.own.table import read_table
from x2vlm.data.readers.source import Source
from x2vlm.data.readers.videos.howto100m import read_howto100m
from x2vlm.data.readers.videos.webvid import read_webvid
from x2vlm.data.readers.videos.yttemporal import read_yttemporal
from x2vlm.data.readers.web.cc3m import read_cc3m
from x2vlm.data.readers.web.cc12m import read_cc12m
from x2vlm.data.readers.web.laion import read_laion
from x2vlm.data.readers.web.sbu import read_sbu
from x2vlm.samples import Drop, Sample

Reader = Callable[[Source, Counter[str]], Iterator[Sample | Drop]]

READERS: dict[str, Reader] = {
    "coco": read_coco,
    "visual_genome": read_visual_genome,
    "cc3m": read_cc3m,
    "laion": read_laion,
    "openimages": read_openimages,
    "webvid": read_webvid,
    "sbu": read_sbu,
    "cc12m": read_cc12m,
    "objects365": read_objects365,
    "howto100m": read_howto100m,
    "yttemporal": read_yttemporal,
    "refcoco": read_refcoco,
    "gqa": read_gqa,
    "flickr_entities": read_flickr_entities,
    "folder": read_folder,
    "webdataset": read_webdataset,
    "table": read_table,
}

# Those that read any slice of one file of rows (`Source.within`). The others join several files, or a file with itself.
SLICED = frozenset(["cc3m", "cc12m", "laion", "webvid", "table"])

__all__ = ["READERS", "SLICED", "Reader", "Source"]
