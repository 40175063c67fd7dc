"""The outputs of a finished pre-training: weights, metrics, and the record of the samples of every step."""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.flow.stage import Count, Part, PartReader, PartResult, PartWriter
from pipelines.flow.store.store import Store
from pipelines.s5_pretrain.config import PretrainConfig
from pipelines.s5_pretrain.runs import METRICS, run_at
from pipelines.s5_pretrain.samples import record_loader, write_record
from pipelines.s5_pretrain.start_run import START_REPORT
from x2vlm.data.text.tokenizer import read_tokenizer, read_vocabulary
from x2vlm.errors import StageFailed
from x2vlm.inference.card import CardFacts
from x2vlm.inference.pretrained import save_weights
from x2vlm.inference.processor import Processor, processor_for
from x2vlm.stores.calls import StoreFiles
from x2vlm.stores.segments import read_lines
from x2vlm.train.checkpoint import CheckpointStore

# Final metrics are means over this many last steps: single steps are noisy.
NUM_FINAL_STEPS = 10


def collect(
    config: PretrainConfig,
    inputs: PartReader,
    part: Part,
    out: PartWriter,
    vocabulary: Path,
    records_samples: bool = True,
) -> PartResult:
    """Copy the last checkpoint and the metrics to `out`, write the record of samples if asked, and sum up."""
    steps = config.train.steps
    checkpoint = CheckpointStore(f"{out.state_uri}/checkpoints").load_newest()
    if checkpoint is None or checkpoint.step != steps:
        raise StageFailed(f"pretrain: the last checkpoint in {out.state_uri} is not of step {steps}; run it again")
    training = config.model_dump(mode="json", exclude={"model"})
    facts: dict[str, Any] = {"shards_root": part.spec["shards_root"], "format": "x2vlm-pretrain-1"}
    save_weights(
        config.model,
        checkpoint.model,
        out.path,
        {**training, **facts},
        processor_of(config, vocabulary),
        describe_model(config, facts["shards_root"]),
    )
    branch = run_at(Store(out.state_uri), "").branch
    first = 0 if branch is None else int(branch["step"])
    num_substitutes, last = copy_metrics(out, first, steps)
    file_rows = {METRICS: steps - first}
    if rollbacks := checkpoint.facts.get("rollbacks"):
        facts |= {"rollbacks": rollbacks}
    if branch is not None:
        (out.path / START_REPORT).write_text(json.dumps(branch, indent=1) + "\n")
        facts |= {"start": {name: value for name, value in branch.items() if name != "new_parameters"}}
    elif config.start is not None:
        facts |= {"start": _copy_start_report(out)}
    if records_samples:
        loader = record_loader(config, part, inputs.local_path(part.reads[-1].file))
        file_rows |= write_record(loader, first, steps, out.path / METRICS, out.path)
    return PartResult(
        counts={"rows": Count(steps - first, steps - first)},
        file_rows=file_rows,
        summary={
            "metrics": final_metrics(last),
            "metric_series": METRICS,
            "model": {"name": "x2vlm", "type": "x2vlm-pretrain"},
            "num_substitutes": num_substitutes,
            **facts,
        },
    )


def copy_metrics(out: PartWriter, first: int, steps: int, stage: str = "pretrain") -> tuple[int, list[dict[str, Any]]]:
    """Write the segments of the state folder as one file; the number of substitutes in it, and its last lines.

    StageFailed unless it has every step from `first` on exactly once.
    """
    step, num_substitutes = first, 0
    last: deque[dict[str, Any]] = deque(maxlen=NUM_FINAL_STEPS)
    with (out.path / METRICS).open("wb") as target:
        for line in read_lines(f"{out.state_uri}/{METRICS}"):
            values = json.loads(line)
            if values["step"] != step:
                break
            target.write(line)
            step += 1
            num_substitutes += len(values.get("substitutes", ()))
            last.append(values)
    if step != steps:
        raise StageFailed(
            f"{stage}: the metrics in {out.state_uri} do not hold every step exactly once: step {step} of "
            f"{steps} is missing or comes twice; rerun with force"
        )
    return num_substitutes, list(last)


def _copy_start_report(out: PartWriter) -> dict[str, Any]:
    """Copy the report of the initial weights to `out`; returns its counts."""
    from pipelines.s5_pretrain.start_weights import REPORT, summary_of

    content = StoreFiles(out.state_uri).read(REPORT)
    if content is None:
        raise StageFailed(f"pretrain: {out.state_uri}/{REPORT} is missing; rerun with force")
    (out.path / REPORT).write_bytes(content)
    return summary_of(json.loads(content))


def processor_of(config: PretrainConfig, vocabulary: Path) -> Processor:
    """The processor that prepares inputs as in training. ConfigError if vocabulary, texts or clips do not match."""
    examples = config.data.examples
    return processor_for(
        config.model,
        read_tokenizer(read_vocabulary(vocabulary), str(vocabulary)),
        max_tokens=examples.max_tokens,
        frames_per_clip=examples.frames_per_clip,
    )


def describe_model(config: PretrainConfig, shards_root: str) -> CardFacts:
    """The facts of this stage for the model's card, without those on contamination."""
    training: dict[str, str | int | float] = {"steps": config.train.steps, "seed": config.data.seed}
    training |= {f"{stream.label} rows per step": stream.batch_size for stream in config.data.streams}
    return CardFacts(name="X2-VLM, pre-trained", lineage_root=shards_root, training=training)


def final_metrics(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means of all losses over those of the last NUM_FINAL_STEPS steps that have them; held-out metrics at the end."""
    final: dict[str, list[float]] = {}
    for line in metrics[-NUM_FINAL_STEPS:]:
        for name, value in line.items():
            if name.startswith("valid/"):
                final[name] = [value]
            elif name == "loss" or "/" in name:
                final.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in final.items()}
