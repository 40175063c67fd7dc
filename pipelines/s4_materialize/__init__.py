"""Stage 4: from filtered, scored rows to training shards.

`decontaminate` and `deduplicate` look at all sources at once and decide about single rows; `partition` applies their
decisions and the thresholds on the CLIP scores and assigns the rows of every source to shards by key; `pack` writes one
shard from its rows of all sources. Memory is bounded by one part, one bucket of rows (`buckets`) or one shard.
"""

from pipelines.s4_materialize.pack import PACK, PackConfig
from pipelines.s4_materialize.partition import PARTITION, PartitionConfig

__all__ = ["PACK", "PARTITION", "PackConfig", "PartitionConfig"]
