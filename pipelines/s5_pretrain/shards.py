"""The shards that a part reads, as training takes them. Imports no torch."""

import hashlib
from dataclasses import replace
from typing import Any

from pipelines.flow.stage import Input, InputFile, InputPart, Part, Read
from x2vlm.data.shards.listing import ShardListing
from x2vlm.data.shards.media_files import index_name, is_index_file, is_media_file
from x2vlm.data.shards.row_counts import ROW_COUNTS
from x2vlm.stores.calls import StoreFiles


def shard_reads(shards: Input) -> list[Read]:
    """What a training reads of an artifact of `pack`: every shard and its index, with the counts of its rows where pack
    recorded them. A start then opens no index to count."""
    return [
        Read("shards", _with_counts(file, part))
        for part in shards.parts
        for file in part.files
        if is_media_file(file.path) or is_index_file(file.path)
    ]


def _with_counts(file: InputFile, part: InputPart) -> InputFile:
    counts = part.summary.get(ROW_COUNTS) if is_index_file(file.path) else None
    return file if counts is None else replace(file, detail={ROW_COUNTS: counts})


def shard_names(part: Part) -> list[str]:
    """The names of the shards of a part, in their order."""
    return sorted({read.file.path for read in part.reads if read.slot == "shards" and is_media_file(read.file.path)})


def shard_uris(part: Part) -> list[dict[str, Any]]:
    """The shards of a part for `ShardListing.of_shards`, in the order of their names."""
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


def listing_of(part: Part) -> ShardListing:
    """The shards of a part, for `x2vlm.data.loading.shard_cache.listed_shards`."""
    return ShardListing.of_shards(shard_uris(part))


def write_listing(listing: ShardListing, state_uri: str) -> dict[str, str]:
    """Write a listing to a state folder; what `x2vlm.data.loading.shard_cache.fetch_listing` finds it by.

    Its name has its digest: a driver that was replaced and workers of another one keep what they were told to read.
    """
    data = listing.to_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"shards-{sha256[:12]}.parquet"
    StoreFiles(state_uri).write(name, data)
    return {"uri": f"{state_uri}/{name}", "sha256": sha256}
