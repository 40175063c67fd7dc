"""The shards that a part reads, as training takes them. Imports no torch."""

from typing import Any

from pipelines.flow.stage import Part
from x2vlm.data.shards.media_files import index_name, is_media_file
from x2vlm.data.shards.row_counts import ROW_COUNTS


def shard_uris(part: Part) -> list[dict[str, Any]]:
    """The shards of a part for `x2vlm.data.loading.shard_cache.local_shards`, in the order of their names."""
    files = {read.file.path: read.file for read in part.reads if read.slot == "shards"}
    return [
        {
            "media": file.uri,
            "media_sha256": file.sha256,
            "index": files[index_name(path)].uri,
            "index_sha256": files[index_name(path)].sha256,
            **({"rows": counts} if (counts := files[index_name(path)].detail.get(ROW_COUNTS)) is not None else {}),
        }
        for path, file in sorted(files.items())
        if is_media_file(path)
    ]
