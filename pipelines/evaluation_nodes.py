"""Nodes of downstream tasks: the data, the fine-tuning, and the evaluation of each split."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipelines.evaluations import EvaluationConfig, TaskFiles
from pipelines.experiment import resolve, source_uri
from pipelines.flow.stage import Node, Runtime, SourceFile, Stage
from pipelines.input_files import card_file, root_of
from pipelines.s5_pretrain.config import workers_of
from pipelines.s5_pretrain.finetune.config import FinetuneNodeConfig
from pipelines.s5_pretrain.finetune.stage import FINETUNE, finetune_part
from pipelines.s5_pretrain.start import text_folder_files
from pipelines.s6_evaluate.config import EvaluateConfig
from pipelines.s6_evaluate.stage import EVALUATE, evaluate_part
from pipelines.s6_evaluate.swap_text import SWAP, TOKENIZER, SwapConfig
from pipelines.s6_evaluate.task_data import TASK_DATA, TaskDataConfig, facts_of
from x2vlm.data.cards import CardFile
from x2vlm.data.task_cards import TaskCard, TaskSplit, load_task_card, part_paths
from x2vlm.errors import ConfigError
from x2vlm.train.config import TrainRuntime

Slots = tuple[str | SourceFile, ...]


def task_nodes(
    name: str,
    evaluation: EvaluationConfig,
    model: Slots,
    contamination: Slots,
    train_runtime: TrainRuntime,
    runtime: Callable[[str], Runtime],
) -> list[Node]:
    """The nodes of an evaluation on data of its own; `model` is what it starts from."""
    assert evaluation.data is not None
    nodes = [data_node(name, evaluation, runtime("task_data"))]
    if evaluation.swap_text is not None:
        nodes.append(_swap_node(name, evaluation, model))
        model = (nodes[-1].key,)
    if evaluation.finetune is not None:
        nodes.append(_finetune_node(name, evaluation, model, train_runtime, runtime("finetune")))
        model = (nodes[-1].key,)
    several = len(evaluation.splits) > 1
    for split in evaluation.splits:
        card = evaluation.data.card
        known_as = [f"{name}.{split}", name, *([Path(card).name] if card else []), *evaluation.known_as]
        nodes.append(
            Node(
                key=f"evaluate/{name}.{split}" if several else f"evaluate/{name}",
                stage=_evaluate_on(runtime("evaluate")),
                config=EvaluateConfig(
                    task=evaluation.task,
                    options=evaluation.options,
                    batch_size=evaluation.batch_size,
                    split=split,
                    card=card or "",
                    card_split=evaluation.data.splits.get(split, split) if card else "",
                    known_as=tuple(known_as),
                ),
                inputs={
                    "model": model,
                    "rows": (),
                    "media": (),
                    "contamination": contamination,
                    "data": (f"task_data/{name}",),
                },
                runtime=runtime("evaluate"),
            )
        )
    return nodes


def source_node(
    name: str,
    evaluation: EvaluationConfig,
    model: Slots,
    branches: Sequence[str],
    contamination: Slots,
    runtime: Runtime,
) -> Node:
    """An evaluation on what the rounds `branches` of a held-out source have kept."""
    return Node(
        key=f"evaluate/{name}",
        stage=_evaluate_on(runtime),
        config=EvaluateConfig(task=evaluation.task, options=evaluation.options, batch_size=evaluation.batch_size),
        inputs={
            "model": model,
            "rows": tuple(f"filter/{branch}" for branch in branches),
            "media": tuple(f"download/{branch}" for branch in branches),
            "contamination": contamination,
            "data": (),
        },
        runtime=runtime,
    )


def _evaluate_on(runtime: Runtime) -> Stage:
    """The stage with the CPUs that its processes may use where there is no GPU."""
    return replace(EVALUATE, run_part=functools.partial(evaluate_part, num_cpus=runtime.num_cpus))


def data_node(name: str, evaluation: EvaluationConfig, runtime: Runtime) -> Node:
    """The node that reads and packs what an evaluation needs. ConfigError for a card or split that does not exist."""
    data = evaluation.data
    assert data is not None
    card, splits = task_card(data, evaluation.needed_splits)
    places: dict[str, int] = {}
    files: dict[str, tuple[dict[str, int], ...]] = {}
    for split, paths in located(data, evaluation.needed_splits).items():
        files[split] = tuple(
            {role: places.setdefault(path, len(places)) for role, path in part.items()} for part in paths
        )
    config = TaskDataConfig(
        card=facts_of(card, splits),
        files=files,
        media_root=media_root(data, card),
        max_missing=data.max_missing,
        parts=data.parts,
    )
    sources = tuple(SourceFile(source_uri(path), card.id) for path in places)
    return Node(f"task_data/{name}", TASK_DATA, config, {"files": sources}, runtime)


def located(data: TaskFiles, needed: tuple[str, ...]) -> dict[str, list[dict[str, str]]]:
    """By split, for each of its parts, where the file of each role lies."""
    if data.card is None:
        return {split: [dict(data.roles(split))] for split in needed}
    card, splits = task_card(data, needed)
    return {split: part_paths(card, splits[split], root_of(card), data.data_root) for split in needed}


def task_card(data: TaskFiles, needed: tuple[str, ...]) -> tuple[TaskCard, dict[str, str]]:
    """The card, or one made of a user's own files; and our name of each split -> the card's."""
    if data.card is not None:
        card = load_task_card(card_file(data.card))
        splits = {name: data.splits.get(name, name) for name in needed}
        for original in splits.values():
            card.split(original)
        return card, splits
    assert data.reader is not None
    own = {
        name: TaskSplit(files={role: CardFile(path=role) for role in data.roles(name)}, options=data.options)
        for name in needed
    }
    card = TaskCard(id="own", title="", task="", licence="", availability="open", reader=data.reader, splits=own)
    return card, {name: name for name in needed}


def media_root(data: TaskFiles, card: TaskCard) -> str | None:
    """Where the images and clips lie."""
    return data.media_root or card.media_root or None


def _swap_node(name: str, evaluation: EvaluationConfig, model: Slots) -> Node:
    """The model with another text encoder. ConfigError for a folder that lacks a file."""
    assert evaluation.swap_text is not None
    folder = resolve(evaluation.swap_text)
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    names = text_folder_files(there, str(folder), f"evaluate.{name}.swap_text")
    if TOKENIZER not in there:
        raise ConfigError(f"evaluate.{name}.swap_text: {folder} has no {TOKENIZER}, the vocabulary of the encoder")
    files = tuple(SourceFile(source_uri(str(folder / file)), "swap_text") for file in (*names, TOKENIZER))
    tokens = evaluation.finetune.max_tokens if evaluation.finetune else None
    config = SwapConfig() if tokens is None else SwapConfig(max_tokens=tokens)
    return Node(f"swap/{name}", SWAP, config, {"model": model, "text": files}, Runtime())


def _finetune_node(
    name: str, evaluation: EvaluationConfig, model: Slots, train_runtime: TrainRuntime, runtime: Runtime
) -> Node:
    assert evaluation.finetune is not None
    config = FinetuneNodeConfig(task=evaluation.task, options=evaluation.options, finetune=evaluation.finetune)
    key = f"finetune/{name}"
    work = functools.partial(finetune_part, runtime=train_runtime, num_gpus=runtime.num_gpus, node=key)
    return Node(
        key=key,
        stage=replace(FINETUNE, run_part=work),
        config=config,
        inputs={"model": model, "data": (f"task_data/{name}",)},
        runtime=runtime,
        workers=workers_of(config, train_runtime),
    )
