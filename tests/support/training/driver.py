"""A driver of a training in a process of its own, with short times: `python -m tests.support.training.driver FOLDER`.

It does what a job does of it: the plan's lease, the pretrain part of node `pretrain/toy`, the endings and exit codes.
"""

import functools
import logging
import pickle
import sys
from dataclasses import replace
from pathlib import Path

from pipelines.driver import endings
from pipelines.driver.job import exit_code_of
from pipelines.flow.run.part_task import try_part
from pipelines.flow.store import lease as lease_module
from pipelines.flow.store.store import Store
from pipelines.s5_pretrain import fencing
from pipelines.s5_pretrain.stage import PRETRAIN, pretrain_part
from x2vlm.errors import X2VLMError
from x2vlm.train.config import TrainRuntime

TTL_SECONDS, LOOK_SECONDS = 3.0, 0.5


def main(folder: Path) -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    config, part = pickle.loads((folder / "part.pickle").read_bytes())
    fencing.sole_driver.__defaults__ = (TTL_SECONDS,)
    fencing.Fence.watched.__wrapped__.__defaults__ = (fencing.leave, LOOK_SECONDS)
    lease_module.GRACE_SECONDS = 1.0
    handler = endings.Endings()
    handler.install()
    lease_module.set_leaving(endings.abandon)
    runtime = TrainRuntime(checkpoint_every=5, log_every=1000)
    stage = replace(PRETRAIN, run_part=functools.partial(pretrain_part, runtime=runtime, node="pretrain/toy"))
    store = Store(folder / "store")
    try:
        with lease_module.acquire(store, "plan", TTL_SECONDS):
            outcome = try_part(store, stage, config, part, None, False)
    except X2VLMError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        return exit_code_of(error)
    print(outcome.error, file=sys.stderr)  # noqa: T201
    return 0 if outcome.record is not None else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
