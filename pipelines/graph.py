"""The only place where nodes are wired: an experiment becomes a graph of stages bound to configs and inputs."""

import functools
from dataclasses import replace
from typing import TypeVar

import pydantic

from pipelines.deciding_nodes import deciding_nodes
from pipelines.evaluation_nodes import source_node, task_nodes
from pipelines.evaluations import EvaluationConfig, in_order
from pipelines.experiment import Experiment, SourceConfig, source_uri
from pipelines.flow.stage import Graph, Node, Runtime, SourceFile
from pipelines.idle_settings import check_settings
from pipelines.input_files import card_file, card_files, folder_files, phase_key, set_root, start_inputs
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.domains import DOMAIN_COUNTS, DOMAINS, DomainCountsConfig
from pipelines.s1_download.download import DOWNLOAD, RETRY
from pipelines.s1_download.media.encoding import OriginalBytes
from pipelines.s1_download.read import READ, read_config
from pipelines.s1_download.retry import parse_classes, round_names, source_of
from pipelines.s1_download.routes import LocalMedia
from pipelines.s1_download.sort import SORT, SortConfig
from pipelines.s2_filter import FILTER, FILTER_DOMAINS
from pipelines.s3_score import SCORE
from pipelines.s4_materialize.pack import PACK
from pipelines.s4_materialize.partition import PARTITION
from pipelines.s5_pretrain.config import PretrainConfig, workers_of
from pipelines.s5_pretrain.stage import PRETRAIN, pretrain_part
from x2vlm.config import did_you_mean, parse_config
from x2vlm.data.cards import Card, load_card
from x2vlm.errors import ConfigError

T = TypeVar("T")


def build_graph(experiment: Experiment) -> Graph:
    """Every node of `experiment`, producers before consumers.

    Raises ConfigError where a card or a folder that the experiment names does not exist, and for settings of the
    experiment that no node would have.
    """
    nodes: list[Node] = []
    for name, source in experiment.sources.items():
        nodes += _curation_nodes(experiment, name, source)
    sources = [name for name, source in experiment.sources.items() if source.role == "train"]
    # Retried rows come after all first rounds, so that a further round moves nothing that is there.
    branches = {name: _branches(experiment, name) for name in sources}
    train = sources + [branch for name in sources for branch in branches[name][1:]]
    deciding, decisions = deciding_nodes(experiment, train, functools.partial(_runtime, experiment))
    nodes += [*deciding, *_training_nodes(experiment, train, decisions)]
    for name in in_order(experiment.evaluate):
        nodes += _evaluation_nodes(experiment, name, experiment.evaluate[name])
    graph = Graph(nodes)
    check_settings(experiment, graph)
    return graph


def _evaluation_nodes(experiment: Experiment, name: str, evaluation: EvaluationConfig) -> list[Node]:
    """An evaluation of the last training's model, or of one that another evaluation has fine-tuned."""
    model = f"pretrain/{experiment.name}" if evaluation.model is None else f"finetune/{evaluation.model}"
    contamination = () if experiment.decontaminate is None else (f"decontaminate/{experiment.name}",)
    runtime = functools.partial(_runtime, experiment)
    if evaluation.source is None:
        return task_nodes(name, evaluation, (model,), contamination, experiment.train_runtime, runtime)
    branches = _branches(experiment, evaluation.source)
    return [source_node(name, evaluation, (model,), branches, contamination, runtime("evaluate"))]


def _curation_nodes(experiment: Experiment, name: str, source: SourceConfig) -> list[Node]:
    """From upstream files to scored rows: read, download, domains, filter and score of one source."""
    card_path = card_file(source.card)
    card = load_card(card_path)
    if card.root and source.data_root is not None:
        raise ConfigError(
            f"{experiment.name}: sources.{name}.data_root: has no effect, because the card {card.id} says where its "
            f"files are (`root: {card.root}`); take out one of the two"
        )
    nodes = [
        Node(
            key=f"read/{name}",
            stage=READ,
            config=read_config(card, rows_per_file=source.rows_per_part, key_ranges=source.key_ranges),
            inputs={
                "card": (SourceFile(source_uri(str(card_path)), card.id),),
                "files": card_files(card, source.data_root),
            },
            runtime=_runtime(experiment, "read"),
        )
    ]
    if source.key_ranges is not None:
        ranges = SortConfig(key_ranges=source.key_ranges)
        nodes.append(Node(f"sort/{name}", SORT, ranges, {"rows": (nodes[-1].key,)}, _runtime(experiment, "read")))
    config = _download_config(experiment, name, source, card)
    nodes.append(
        Node(f"download/{name}", DOWNLOAD, config, {"rows": (nodes[-1].key,)}, _runtime(experiment, "download"))
    )
    nodes += _retry_nodes(experiment, name, config)
    rounds, runtime = (
        tuple(node.key for node in nodes if node.stage.name == "download"),
        _runtime(experiment, "domains"),
    )
    if source.key_ranges is not None:
        nodes.append(Node(f"domain_counts/{name}", DOMAIN_COUNTS, DomainCountsConfig(), {"downloads": rounds}, runtime))
        rounds = (nodes[-1].key,)
    nodes.append(Node(f"domains/{name}", DOMAINS, experiment.domains, {"downloads": rounds}, runtime))
    for branch in _branches(experiment, name):
        nodes += _judging_nodes(experiment, name, branch, source.role)
    return nodes


def _branches(experiment: Experiment, name: str) -> list[str]:
    """The rounds in which a source is downloaded: the first, and what each later one adds to it."""
    return round_names(name, len(experiment.retries))


def _retry_nodes(experiment: Experiment, name: str, config: pydantic.BaseModel) -> list[Node]:
    """One download node for each later round, which reads all rounds before it."""
    branches = _branches(experiment, name)
    return [
        Node(
            key=f"download/{branches[number]}",
            stage=RETRY,
            config=config.model_copy(update={"retry": parse_classes(",".join(classes))}),
            inputs={
                "rows": (f"{'read' if experiment.sources[name].key_ranges is None else 'sort'}/{name}",),
                "earlier": tuple(f"download/{branch}" for branch in branches[:number]),
            },
            runtime=_runtime(experiment, "download"),
        )
        for number, classes in enumerate(experiment.retries, start=1)
    ]


def _judging_nodes(experiment: Experiment, name: str, branch: str, role: str) -> list[Node]:
    """filter and score of one round of a source. Only a later round may come out empty.

    What is held out is scored too, to find it among what is trained on.
    """
    may_be_empty = branch != name
    drops_domains = experiment.domains.flagged_domains == "drop"
    nodes = [
        Node(
            key=f"filter/{branch}",
            stage=replace(FILTER_DOMAINS if drops_domains else FILTER, allow_zero_rows=may_be_empty),
            config=experiment.sources[name].filter or experiment.filter,
            inputs={"rows": (f"download/{branch}",)} | ({"flagged": (f"domains/{name}",)} if drops_domains else {}),
            runtime=_runtime(experiment, "filter"),
        )
    ]
    if role == "train" or experiment.decontaminate is not None:
        nodes.append(
            Node(
                key=f"score/{branch}",
                stage=replace(SCORE, allow_zero_rows=may_be_empty),
                config=experiment.score.model_copy(update={"variants": role == "held_out"}),
                inputs={
                    "rows": (f"filter/{branch}",),
                    "media": (f"download/{branch}",),
                    "model": folder_files(experiment.clip_model, "clip_model"),
                },
                runtime=_runtime(experiment, "score"),
            )
        )
    return nodes


def _training_nodes(experiment: Experiment, train: list[str], decisions: tuple[str, ...]) -> list[Node]:
    """From training sources to one model, phase by phase.

    In an experiment of several phases each has shards of what its own streams name: a video source that only the
    second trains on then never makes the first due again.
    """
    nodes: list[Node] = []
    for phase, config in experiment.phases.items():
        nodes += _phase_nodes(experiment, phase_key(experiment.name, phase), config, train, decisions)
    return nodes + _phase_nodes(experiment, experiment.name, experiment.pretrain, train, decisions)


def _phase_nodes(
    experiment: Experiment, name: str, config: PretrainConfig, train: list[str], decisions: tuple[str, ...]
) -> list[Node]:
    """partition, pack and pretrain of one phase."""
    decided = {source: place for place, source in enumerate(train)}
    of_streams = _branches_of_streams(experiment, name, config, train)
    train = of_streams if experiment.phases else train
    decided_as = tuple(decided[source] for source in train)
    return [
        Node(
            key=f"partition/{name}",
            stage=PARTITION,
            config=experiment.partition.model_copy(update={"decided_as": decided_as}),
            inputs={
                "rows": tuple(f"filter/{source}" for source in train),
                "scores": tuple(f"score/{source}" for source in train),
                "media": tuple(f"download/{source}" for source in train),
                "decisions": decisions,
            },
            runtime=_runtime(experiment, "partition"),
        ),
        Node(
            key=f"pack/{name}",
            stage=PACK,
            config=experiment.pack,
            inputs={"buckets": (f"partition/{name}",), "media": tuple(f"download/{source}" for source in train)},
            runtime=_runtime(experiment, "pack"),
        ),
        Node(
            key=f"pretrain/{name}",
            stage=replace(
                PRETRAIN,
                run_part=functools.partial(
                    pretrain_part,
                    runtime=experiment.train_runtime,
                    num_gpus=_runtime(experiment, "pretrain").num_gpus,
                    node=f"pretrain/{name}",
                ),
            ),
            config=config.model_copy(update={"start": config.start.recorded() if config.start else None}),
            inputs={
                "shards": (f"pack/{name}",),
                **start_inputs(config.start, experiment),
                "vocabulary": (SourceFile(source_uri(experiment.vocabulary), "vocabulary"),),
            },
            runtime=_runtime(experiment, "pretrain"),
            workers=workers_of(config, experiment.train_runtime),
        ),
    ]


def _branches_of_streams(experiment: Experiment, name: str, config: PretrainConfig, train: list[str]) -> list[str]:
    """The training branches that the streams of a phase name; all, if a stream names none.

    ConfigError for a name that is the card of no training source.
    """
    streams = config.data.streams
    named = {source for stream in streams for source in (*stream.sources, *stream.aux_sources)}
    named |= {source for stream in streams for source in (*stream.weights, *stream.region_captions)}
    cards = {
        key: load_card(card_file(source.card)).id
        for key, source in experiment.sources.items()
        if source.role == "train"
    }
    if unknown := sorted(named - set(cards.values())):
        hints = " ".join(f"`{one}`: {did_you_mean(one, cards.values())}" for one in unknown)
        raise ConfigError(f"{name}: streams name sources by their cards, and no training source has these. {hints}")
    if any(not stream.sources for stream in streams):
        return train
    return [branch for branch in train if cards[source_of(branch)] in named]


def _download_config(experiment: Experiment, name: str, source: SourceConfig, card: Card) -> DownloadConfig:
    """The experiment's limits with what the card allows: a loopback server, networks beyond the public ones, and ports.

    Networks and ports that the experiment allows hold for all its sources, those of a card for its own rows.

    Where the user holds the media, that copy is the only way to them. Held-out images are stored as they came and
    decoded at once: tasks read them at sizes of their own, and have nothing to put in the place of one that breaks.
    """
    facts: dict[str, object] = {
        "url_base": card.url_base,
        "allow_networks": _joined(experiment.download.allow_networks, card.allow_networks),
        "allow_ports": _joined(experiment.download.allow_ports, card.allow_ports),
        "yt_dlp_domains": card.yt_dlp_domains,
        "set_root": set_root(card, source.data_root),
    }
    if source.role != "train":
        facts["store"] = OriginalBytes(check="decode")
    if source.media_root is None:
        return experiment.download.model_copy(update=facts)
    where = f"{experiment.name}: sources.{name}"
    if facts["set_root"] is not None:
        raise ConfigError(f"{where}.media_root: the media of card {card.id} lie in its own files; take the field out")
    if (file_name := source.media_name or card.local_name) is None:
        raise ConfigError(f"{where}: card {card.id} has no `local_name`; say how the files are called in `media_name`")
    local = parse_config(LocalMedia, {"root": source.media_root, "name": file_name}, where)
    return experiment.download.model_copy(update={**facts, "url_base": None, "local_media": local})


def _joined(*lists: tuple[T, ...]) -> tuple[T, ...]:
    """All values, each once."""
    return tuple(dict.fromkeys(value for values in lists for value in values))


def _runtime(experiment: Experiment, stage: str) -> Runtime:
    return experiment.runtime.get(stage, Runtime())
