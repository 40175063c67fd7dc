"""Swap: a trained model with another text encoder, such as XLM-R, to be fine-tuned in other languages (X2-VLM 4.5).

Image tower, fusion layers, projections and heads stay; the text tower is the given one, and the model's tokenizer is
its own. What a fine-tuned model has beside that (a head, a task) is left out. The report, `swap.json`, names where each
parameter comes from.
"""

import dataclasses
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pydantic

from pipelines.flow.stage import Count, Inputs, Part, PartReader, PartResult, PartWriter, Read, Stage
from x2vlm.config import FrozenConfig
from x2vlm.errors import ConfigError
from x2vlm.models.files import CONFIG_FILE, MODEL_FILES, PROCESSOR_FILE, TOKENIZER_FILES, WEIGHTS_FILE

TOKENIZER = TOKENIZER_FILES["unigram"]  # the only kind that a swapped encoder may have: BERT is there already


class SwapConfig(FrozenConfig):
    """`max_tokens` of a text, with start and end."""

    max_tokens: int = pydantic.Field(default=40, ge=3)


def plan_swap(config: SwapConfig, inputs: Inputs) -> list[Part]:
    """One part that reads the model and the files of the encoder."""
    wanted = (*MODEL_FILES, PROCESSOR_FILE, *TOKENIZER_FILES.values())
    model = [file for item in inputs["model"] for part in item.parts for file in part.files if file.path in wanted]
    text = [file for item in inputs["text"] for part in item.parts for file in part.files]
    return [Part("model", tuple([Read("model", file) for file in model] + [Read("text", file) for file in text]))]


def swap_part(config: SwapConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """Write the folder. ConfigError for an encoder of another width, or whose tokenizer is not that of XLM-R."""
    from x2vlm.data.text.tokenizer import read_tokenizer, read_vocabulary
    from x2vlm.inference.pretrained import load_pretrained, save_pretrained
    from x2vlm.inference.processor import processor_for, read_processor
    from x2vlm.models.checkpoints.backbones import Backbone, read_text_files
    from x2vlm.models.checkpoints.reference import named_state
    from x2vlm.models.checkpoints.swap import load_swapped, swapped_config
    from x2vlm.models.x2vlm import build_model

    own = {read.file.path: inputs.local_path(read.file) for read in part.reads if read.slot == "model"}
    text = {read.file.path: inputs.local_path(read.file) for read in part.reads if read.slot == "text"}
    trained = load_pretrained(own[CONFIG_FILE], own[WEIGHTS_FILE])
    encoder = read_text_files({name: path for name, path in text.items() if name != TOKENIZER}, "swap_text")
    model = build_model(swapped_config(trained.config, encoder))
    report = load_swapped(model, Backbone(named_state(trained), "model", "the trained model"), encoder)
    if random := [name for name in report.missing if not name.startswith("mlm_head.")]:
        raise ConfigError(f"swap_text: {len(random)} parameters would stay at random, such as {', '.join(random[:5])}")
    if TOKENIZER not in text:
        raise ConfigError(f"swap_text: the folder has no {TOKENIZER}, the vocabulary of the encoder")
    with TemporaryDirectory(prefix="x2vlm-swap-") as folder:  # the store keeps every file under a name of its own
        Path(folder, TOKENIZER).symlink_to(text[TOKENIZER].resolve())
        tokenizer = read_tokenizer(read_vocabulary(Path(folder, TOKENIZER)), f"swap_text: {TOKENIZER}")
    frames = read_processor(own).config
    processor = processor_for(
        model.config,
        tokenizer,
        max_tokens=config.max_tokens,
        frames_per_clip=frames.frames_per_clip,
        frames_per_second=frames.frames_per_second,
    )
    save_pretrained(model, out.path, training={"swapped_text": encoder.where}, processor=processor)
    (out.path / "swap.json").write_text(json.dumps(dataclasses.asdict(report), indent=1, sort_keys=True) + "\n")
    return PartResult(counts={"rows": Count(1, 1)}, summary={"model": {"name": "x2vlm", "type": "swapped_text"}})


SWAP = Stage(
    name="swap",
    version=1,
    config_type=SwapConfig,
    slots=("model", "text"),
    plan_parts=plan_swap,
    run_part=swap_part,
)
