"""Stage 4: from filtered, scored rows to training shards.

`partition` applies the thresholds on the CLIP scores and deals the rows of every source into shards by key; `pack`
writes one shard from its rows of all sources. Memory is bounded by one part or one shard, not by the corpus.
"""

from pipelines.s4_materialize.pack import PACK, PackConfig
from pipelines.s4_materialize.partition import PARTITION, PartitionConfig

__all__ = ["PACK", "PARTITION", "PackConfig", "PartitionConfig"]
