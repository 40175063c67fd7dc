"""Have a training go on from an earlier checkpoint, and record it.

    python -m pipelines.s5_pretrain.rollback STORE/state/pretrain/FINGERPRINT --to 120000 --reason "loss diverged"

Stop the run first. Later checkpoints do not count any more and are removed as newer ones are saved; the record is in
`checkpoints/rollbacks.json`, in every later checkpoint, and in the summary of the trained part. The command that
started the run then goes on from that step. Exit codes: 0 done, 3 no such checkpoint.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from x2vlm.errors import ConfigError
from x2vlm.train.checkpoint import CheckpointStore

EXIT_USAGE = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Roll back the run whose state folder is named."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.s5_pretrain.rollback", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("state", help="state folder of the run, <store>/state/pretrain/<fingerprint>")
    parser.add_argument("--to", type=int, required=True, metavar="STEP", help="finished steps of the checkpoint")
    parser.add_argument("--reason", required=True, help="kept in the record")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    try:
        later = CheckpointStore(f"{given.state.rstrip('/')}/checkpoints").roll_back(given.to, given.reason)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE
    told = f"the run goes on from step {given.to}; checkpoints that do not count any more: {later or 'none'}"
    sys.stdout.write(f"{told}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
