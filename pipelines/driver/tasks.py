"""Fine-tuning and evaluating a model without an experiment: the same nodes in a small graph."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.driver.experiment import run_experiment, run_plan
from pipelines.driver.job import Outcome
from pipelines.driver.stores import open_store
from pipelines.evaluation_nodes import Slots, task_nodes
from pipelines.evaluations import EvaluationConfig
from pipelines.experiment import default_store, resolve, source_uri, store_location
from pipelines.flow.fingerprint import sha256_of
from pipelines.flow.run.finishing import reused
from pipelines.flow.run.planner import check_due, explain, plan
from pipelines.flow.stage import Graph, Node, Runtime, SourceFile
from pipelines.flow.store.artifact import Manifest
from pipelines.flow.store.layout import part_folder
from pipelines.flow.store.store import Store
from pipelines.report.comparison import comparison_table
from pipelines.report.comparison_formats import as_json, as_text
from pipelines.report.summary import evaluation_results
from pipelines.s6_evaluate.import_model import IMPORT, ImportConfig
from pipelines.s6_evaluate.stage import SELECTION_FILE
from x2vlm.command_line import EXIT_DUE, EXIT_OK
from x2vlm.config import parse_config
from x2vlm.errors import ConfigError
from x2vlm.models.files import HEAD_FILE, MODEL_FILES, PROCESSOR_FILE, TASK_FILE, TOKENIZER_FILES
from x2vlm.tasks.catalog import task_spec
from x2vlm.tasks.training.splits import DROPS_FILE
from x2vlm.train.config import TrainRuntime

READERS = {
    "retrieval": "own_captions",
    "captioning": "own_captions",
    "grounding": "own_boxes",
    "vqa": "own_questions",
    "classification": "own_labels",
}
CHECKPOINTS = (".th", ".pth", ".pt", ".bin")
# What an option of the command line replaces in `FinetuneConfig`.
SETTINGS = ("epochs", "batch_size", "image_res", "world_size", "precision", "seed", "selection")


def finetune(options: argparse.Namespace) -> Outcome:
    """Fine-tune the model that is named, or that of an experiment, and measure it."""
    if not is_model(options.model):
        options.experiment = options.model
        targets = [f"{stage}/{options.task}*" for stage in ("task_data", "finetune", "evaluate")]
        return run_experiment(options, targets)
    values = {"task": options.task, "data": own_data(options), "options": _pairs(options.option)}
    settings = {name: getattr(options, name) for name in SETTINGS if getattr(options, name) is not None}
    if options.lr is not None:
        settings["optimizer"] = {"lr": options.lr}
    if options.lora:
        settings["lora"] = {}
    if "val" not in values["data"]["files"]:
        settings.setdefault("selection", "last")
    values["finetune"] = {**({"preset": options.preset} if options.preset else {}), **settings}
    measured = [split for split in ("test", "val") if split in values["data"]["files"]][:1]
    values["split"] = measured or ["train"]
    return _run(options, values, measured)


def evaluate(options: argparse.Namespace) -> Outcome:
    """Measure a model on a file of the user's own, or on a split of a card."""
    if options.card:
        data: dict[str, Any] = {"card": options.card, "media_root": options.media_root}
        data |= {"data_root": options.data_root} if options.data_root else {}
        split = options.split or "test"
    else:
        data, split = own_data(options, "test"), "test"
    values = {"task": options.task, "data": data, "split": split, "options": _pairs(options.option)}
    if options.batch_size:
        values["batch_size"] = options.batch_size
    return _run(options, values, [split])


def is_model(name: str) -> bool:
    """Whether a word of the command line names a model's folder or checkpoint, and no experiment."""
    return resolve(name).is_dir() or name.endswith(CHECKPOINTS)


def own_data(options: argparse.Namespace, main: str = "train") -> dict[str, Any]:
    """`data` of an evaluation: the files that the command line names, by split. ConfigError without a reader."""
    try:
        task_spec(options.task)
    except ValueError as error:
        raise ConfigError(f"--task: {error}") from None
    if options.task not in READERS and not options.reader:
        raise ConfigError(
            f"--reader: say how the files of task {options.task} are read (docs/your_data.md lists readers)"
        )
    given = [(main, options.data), *((split, getattr(options, split, None)) for split in ("val", "test"))]
    paths = {split: str(_file(path)) for split, path in given if path}
    if not paths:
        raise ConfigError("--data: name a file of examples")
    answers = {"answers": str(_file(options.answers))} if options.answers else {}
    root = options.media_root or str(Path(next(iter(paths.values()))).parent)
    return {
        "reader": options.reader or READERS[options.task],
        "files": {split: {"rows": path, **answers} for split, path in paths.items()},
        "media_root": root if "://" in root else str(Path(root).resolve()),
    }


def model_slot(name: str, vocabulary: str | None) -> tuple[list[Node], Slots]:
    """The model as an input of nodes, and the node that makes a folder of a checkpoint of the reference."""
    path = Path(name).resolve() if Path(name).exists() else resolve(name)
    if path.is_dir():
        names = (*MODEL_FILES, PROCESSOR_FILE, *TOKENIZER_FILES.values(), TASK_FILE, HEAD_FILE, SELECTION_FILE)
        files = tuple(SourceFile(source_uri(str(path / file)), "model") for file in names if (path / file).is_file())
        missing = [file for file in (*MODEL_FILES, PROCESSOR_FILE) if not (path / file).is_file()]
        if missing:
            raise ConfigError(f"{path}: is no model folder: {', '.join(missing)} missing")
        return [], files
    if not path.is_file():
        raise ConfigError(f"{path}: no such model; give a folder with {', '.join(MODEL_FILES)}, or a checkpoint file")
    if vocabulary is None:
        raise ConfigError(f"{path}: a checkpoint file holds no vocabulary; give its vocab.txt with --vocabulary")
    node = Node(
        key=f"import/{path.stem}",
        stage=IMPORT,
        config=ImportConfig(),
        inputs={
            "checkpoint": (SourceFile(source_uri(str(path)), "checkpoint"),),
            "vocabulary": (SourceFile(source_uri(str(_file(vocabulary))), "vocabulary"),),
        },
    )
    return [node], (node.key,)


def _run(options: argparse.Namespace, values: Mapping[str, Any], measured: Sequence[str]) -> Outcome:
    evaluation = parse_config(EvaluationConfig, dict(values), "command line")
    before, model = model_slot(options.model, options.vocabulary)
    runtime = TrainRuntime(checkpoint_every=options.checkpoint_every)
    nodes = before + task_nodes(options.task, evaluation, model, (), runtime, lambda stage: Runtime())
    if not measured:
        nodes = [node for node in nodes if node.stage.name != "evaluate"]
    graph = Graph(nodes)
    # One name for one question, so that the same command goes on with its own work, and others do not replace it.
    asked = {"values": evaluation, "model": str(model)}
    name = f"{'evaluate' if evaluation.finetune is None else 'finetune'}-{options.task}-{sha256_of(asked)[:8]}"
    store = open_store(store_location(options.store or default_store()))
    planned = plan(graph, store, name)
    if options.dry_run:
        text = "\n".join([f"{name}: {'nothing to do' if planned.is_noop else 'work is due'}; store {store.uri}"])
        code = EXIT_OK if planned.is_noop else EXIT_DUE
        nodes_told = [{"key": node.key, "action": str(node.action)} for node in planned.selected]
        return Outcome(code, "\n".join([text, *explain(planned)]), {"name": name, "nodes": nodes_told})
    check_due(graph, planned)
    result = reused(planned, store) or run_plan(name, graph, planned, store, options)
    manifests = {key: result.nodes[key].manifest for key in graph if key in result.nodes}
    results = evaluation_results(store, manifests)
    table = comparison_table({key.partition("/")[2]: value for key, value in results.items()})
    lines = [f"model    {_folder(store, manifests[key])}" for key in manifests if key.startswith("finetune/")]
    lines += [line for manifest in manifests.values() for line in _dropped(store, manifest)]
    text = "\n".join([*([as_text(table), ""] if results else []), *lines, f"store    {store.uri}"])
    return Outcome(EXIT_OK, text, {"name": name, "results": results, "table": as_json(table), "model": lines})


def _dropped(store: Store, manifest: Manifest) -> list[str]:
    """What task data lost on the way, a line for each part that lost anything."""
    lines = []
    for part in manifest.parts if manifest.stage == "task_data" else ():
        count = part.record.counts["rows"]
        if count.dropped:
            rules = ", ".join(f"{rule} {number}" for rule, number in sorted(count.dropped.items()))
            where = store.uri_of(part_folder(manifest.stage, part.record.fingerprint))
            lines.append(
                f"dropped  {sum(count.dropped.values())} of {count.num_in} rows of {part.name} ({rules}): "
                f"{where}/{DROPS_FILE} says which"
            )
    return lines


def _folder(store: Store, manifest: Any) -> str:
    """Where the only part of a node lies."""
    return store.uri_of(part_folder(manifest.stage, manifest.parts[0].record.fingerprint))


def _file(name: str) -> Path:
    path = Path(name).resolve() if Path(name).exists() else resolve(name)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    return path


def _pairs(words: Sequence[str]) -> dict[str, Any]:
    """`name=value` words as options of a task, values as YAML writes them."""
    import yaml

    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"--option {word}: write name=value")
        found[name] = yaml.safe_load(value)
    return found
