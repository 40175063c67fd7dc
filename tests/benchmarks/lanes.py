"""Which shards the machines of a run read, with lanes and without: `python -m tests.benchmarks.lanes`.

No file is read: the order says which shard every slot of a step reads, and a machine has consecutive slots of a batch.
Printed are the different shards that each machine reads in some steps, added up, over the different shards that all of
them read: 1.0 if no shard is fetched twice. Region streams are counted by the images drawn: rows are chosen among their
boxes, so a machine may read a few images of its neighbour's slots besides, which this does not count.
"""

import argparse
import json

import numpy as np

from x2vlm.data.loading.orders.lanes import LanedOrder, num_lanes
from x2vlm.data.loading.orders.passes import Order
from x2vlm.data.loading.orders.windowed import WindowedOrder


def order_of(lanes: int, items: int, rows: int, num_shards: int) -> Order:
    """The order of a stream with equally many rows in each shard, as `RowGroups.order` makes it; windows of 16."""
    counts = np.full(num_shards, rows)
    number = num_lanes(lanes, items, 16, counts, 42)
    if number == 1:
        return WindowedOrder(counts.tolist(), 42, "stream", 16)

    def make(shards: np.ndarray, name: str) -> WindowedOrder:
        return WindowedOrder(counts[shards].tolist(), 42, name, 16, True)

    return LanedOrder(num_shards, number, items, 42, "stream", make)


def shards_read(order: Order, items: int, machines: int, steps: int) -> dict[str, float]:
    """Shards of each machine, added up, and of all machines together, in the first steps."""
    blocks = [block.shard for block in order.places(0, steps * items)]
    machine = np.arange(steps * items) % items * machines // items
    pairs = np.unique(np.stack([machine, np.concatenate(blocks)]), axis=1)
    of_each, of_all = pairs.shape[1], len(np.unique(pairs[1]))
    return {"of_each": of_each, "of_all": of_all, "ratio": round(of_each / of_all, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=99_999)
    parser.add_argument("--machines", type=int, default=8)
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    for stream, items, rows in (("image", 3072, 13_230), ("region", 624, 25), ("region", 416, 25)):
        for lanes in (1, 64):
            order = order_of(lanes, items, rows, options.shards)
            found = shards_read(order, items, options.machines, options.steps)
            print(json.dumps({"stream": stream, "items": items, "lanes": lanes, **found}), flush=True)


if __name__ == "__main__":
    main()
