"""The pretrain stage: its inputs, training and outputs.

One part. Its checkpoints are in the part's state folder, so after a killed worker, a killed driver or a lost machine
the same command continues from the newest valid checkpoint. A part writes `model.safetensors`, `config.json`,
`vocab.txt` or `tokenizer.json`, `preprocessor_config.json`, `README.md`, `metrics.jsonl` (one line per step),
`samples.parquet` (every sample of every step; of very long runs, what it follows from: `samples`) and, unless
initialised randomly, `start.json` (the origin of every parameter): a folder that `x2vlm.inference.load` can read.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.flow.stage import (
    Inputs,
    Part,
    PartReader,
    PartResult,
    PartWriter,
    Read,
    Sources,
    Stage,
)
from pipelines.flow.store.blobs import local_path_of
from pipelines.s5_pretrain.config import PretrainConfig, check_runtime
from pipelines.s5_pretrain.runs import METRICS, note_run
from pipelines.s5_pretrain.shards import listing_of, shard_reads, write_listing
from pipelines.s5_pretrain.start import START_SLOTS, WEIGHT_SLOTS, start_reads
from pipelines.s5_pretrain.start_run import SLOT, branch_reads, lay_down_branch
from x2vlm.errors import ConfigError
from x2vlm.train.config import TrainRuntime


def plan_pretrain(config: PretrainConfig, inputs: Inputs) -> list[Part]:
    """One part that reads every shard, the initial weights if there are any, and the vocabulary."""
    (shards,) = inputs["shards"]
    (vocabulary,) = inputs["vocabulary"]
    reads = [*shard_reads(shards), *start_reads(inputs), *branch_reads(inputs)]
    reads.append(Read("vocabulary", vocabulary.parts[0].files[0]))
    return [Part(name="train", reads=tuple(reads), spec={"shards_root": shards.root})]


def pretrain_part(
    config: PretrainConfig,
    inputs: PartReader,
    part: Part,
    out: PartWriter,
    runtime: TrainRuntime | None = None,
    num_gpus: float | None = None,
    node: str = "",
) -> PartResult:
    """Train, then copy the result out of the state folder. ConfigError if the vocabulary does not match the model.

    `runtime` configures monitoring and placement, `num_gpus` is that of each Ray worker (None: one where there are
    any); no result depends on them. `node` is the key of the node, for whoever looks for its training in the store.
    PlanBusy if a live driver trains in this state folder, LeaseLost if one takes it over.
    """
    runtime = runtime or TrainRuntime()
    check_runtime(config, runtime)
    (vocabulary,) = [inputs.local_path(read.file) for read in part.reads if read.slot == "vocabulary"]
    words = _words_of(vocabulary, config)
    job: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "runtime": runtime.model_dump(mode="json"),
        "node": node,
        "vocabulary": words,
        "state_uri": out.state_uri,
        "facts": {"shards_root": part.spec["shards_root"], "world_size": config.world_size},
    }
    # Torch and Ray: not imported at the top, planning must not wait for them.
    from pipelines.s5_pretrain.fencing import sole_driver
    from pipelines.s5_pretrain.result import collect, processor_of
    from pipelines.s5_pretrain.watching import watched
    from pipelines.s5_pretrain.worker import train

    processor_of(config, vocabulary)  # fail now if it could not be saved at the end
    branch = next((read.file for read in part.reads if read.slot == SLOT), None)
    if config.start is not None and branch is None:
        from pipelines.s5_pretrain.start_weights import lay_down_start

        files = {
            slot: {read.file.path: inputs.local_path(read.file) for read in part.reads if read.slot == slot}
            for slot in WEIGHT_SLOTS
        }
        job["start"] = lay_down_start(config, files, out.state_uri)
        job["facts"] |= {"start_sha256": job["start"]["sha256"]}
    with sole_driver(out.state_uri) as lease:
        if branch is not None:
            job["branch"] = lay_down_branch(config, branch, inputs.local_path(branch), out.state_uri)
            job["facts"] |= {"branch": {name: job["branch"][name] for name in ("checkpoint", "node", "step", "sha256")}}
        note_run(out.state_uri, node, job["config"])
        job["token"] = job["facts"]["writer"] = lease.token
        job["shards"] = write_listing(listing_of(part), out.state_uri)
        with watched(f"{out.state_uri}/{METRICS}", config.train.steps, out.report):
            train(job, config.world_size, num_gpus, lease.confirm)
    return collect(config, inputs, part, out, vocabulary, runtime.record_samples)


def check_pretrain(config: PretrainConfig, key: str, sources: Sources) -> None:
    """ConfigError before anything runs for a vocabulary that does not fit the model."""
    for file in sources["vocabulary"]:
        if (path := local_path_of(file.uri)) is not None:
            _words_of(path, config)


def _words_of(vocabulary: Path, config: PretrainConfig) -> Sequence[str] | str:
    """What `x2vlm.data.text.tokenizer.read_tokenizer` takes. ConfigError if the model has too few words for it."""
    from x2vlm.data.text.tokenizer import read_tokenizer, read_vocabulary  # a library that planning does not need

    words = read_vocabulary(vocabulary)
    if (size := len(read_tokenizer(words, str(vocabulary)))) > config.model.text.vocab_size:
        raise ConfigError(
            f"the vocabulary has {size} entries, model.text.vocab_size is {config.model.text.vocab_size}; "
            "set it to at least the number of entries of the vocabulary"
        )
    return words


PRETRAIN = Stage(
    name="pretrain",
    # 3: the model's folder has its processor and its card; 4: initial weights; 5: one backward pass over
    # packed texts, fixed gradient buckets; 6: optional temporal attention (off by default); 7: settings that change no
    # result moved to the runtime
    version=7,
    config_type=PretrainConfig,
    slots=("shards", *START_SLOTS, "vocabulary"),
    plan_parts=plan_pretrain,
    run_part=pretrain_part,
    live_series=METRICS,
    check=check_pretrain,
    gpu_share=lambda config: 1.0,  # of each worker
    on_driver=True,
)
