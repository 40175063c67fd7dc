"""Import: a checkpoint file of the reference as a model folder of this project, for fine-tuning and evaluation."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pydantic

from pipelines.flow.stage import Count, Inputs, Part, PartReader, PartResult, PartWriter, Read, Stage
from x2vlm.config import FrozenConfig


class ImportConfig(FrozenConfig):
    """`max_tokens` of a text; `image_res` where the file's tables are to be resized."""

    max_tokens: int = pydantic.Field(default=40, ge=3)
    image_res: int | None = pydantic.Field(default=None, ge=16)


def plan_import(config: ImportConfig, inputs: Inputs) -> list[Part]:
    """One part that reads the checkpoint and the vocabulary."""
    slots: Sequence[str] = ("checkpoint", "vocabulary")
    reads = [Read(slot, file) for slot in slots for item in inputs[slot] for part in item.parts for file in part.files]
    return [Part("model", tuple(reads))]


def import_part(config: ImportConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """Write the folder. ConfigError for a file of no known kind and for a vocabulary of another model."""
    from x2vlm.data.text.tokenizer import read_tokenizer, read_vocabulary
    from x2vlm.inference.processor import processor_for
    from x2vlm.inference.task_folder import save_task_model
    from x2vlm.models.checkpoints.released import load_checkpoint
    from x2vlm.models.checkpoints.task_models import task_model_of

    checkpoint, vocabulary = (read.file for read in part.reads)
    with TemporaryDirectory(prefix="x2vlm-import-") as folder:
        path = Path(folder, checkpoint.path)  # its suffix says how it is read
        path.symlink_to(inputs.local_path(checkpoint).resolve())
        loaded = load_checkpoint(path, image_res=config.image_res)
    tokenizer = read_tokenizer(read_vocabulary(inputs.local_path(vocabulary)), vocabulary.path)
    model = task_model_of(loaded)
    processor = processor_for(loaded.model.config, tokenizer, max_tokens=config.max_tokens)
    save_task_model(
        model, out.path, "", {}, (), processor, training={"kind": loaded.kind, "checkpoint_sha256": checkpoint.sha256}
    )
    return PartResult(counts={"rows": Count(1, 1)}, summary={"model": {"name": "x2vlm", "type": loaded.kind}})


IMPORT = Stage(
    name="import",
    version=1,
    config_type=ImportConfig,
    slots=("checkpoint", "vocabulary"),
    plan_parts=plan_import,
    run_part=import_part,
)
