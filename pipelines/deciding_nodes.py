"""The nodes that look at all sources at once: the search for test images and for duplicates."""

from collections.abc import Callable, Mapping, Sequence

from pipelines.experiment import Experiment, source_uri
from pipelines.flow.stage import Node, Runtime, SourceFile
from pipelines.input_files import card_file
from pipelines.s1_download.retry import round_names, source_of
from pipelines.s4_materialize.buckets.captions import REPEATED_CAPTIONS, RepeatsConfig
from pipelines.s4_materialize.buckets.evidence_rows import EVIDENCE, EvidenceConfig
from pipelines.s4_materialize.buckets.exact import EXACT
from pipelines.s4_materialize.buckets.leaks import FIND_LEAKS, TEST_INDEX
from pipelines.s4_materialize.buckets.near import COMPONENTS, NEAR, ComponentsConfig, NearConfig
from pipelines.s4_materialize.buckets.stars import STARS
from pipelines.s4_materialize.decontaminate import DECONTAMINATE, DecontaminateConfig
from pipelines.s4_materialize.deduplicate import DEDUPLICATE, DeduplicateConfig
from pipelines.s4_materialize.thresholds import ScoreThresholds
from x2vlm.data.cards import load_card
from x2vlm.data.duplicates.decontamination import DecontaminationConfig

RuntimeOf = Callable[[str], Runtime]


def deciding_nodes(
    experiment: Experiment, train: Sequence[str], runtime: RuntimeOf
) -> tuple[list[Node], tuple[str, ...]]:
    """decontaminate and deduplicate, where the experiment has them, with the nodes they are made of; and which decide.

    `train` are the branches of the training sources.
    """
    name = experiment.name
    decontaminate, deduplicate = experiment.decontaminate, _deduplicate_config(experiment)
    read = {
        "rows": tuple(f"filter/{branch}" for branch in train),
        "scores": tuple(f"score/{branch}" for branch in train),
    }
    if decontaminate is not None:
        tests = [
            branch
            for source, config in experiment.sources.items()
            if config.role == "held_out"
            for branch in round_names(source, len(experiment.retries))
        ]
        readers = {"readers": _readers(experiment, train), "test_readers": _readers(experiment, tests)}
        decontaminate = decontaminate.model_copy(update=readers)
    else:
        tests = []
    nodes: list[Node] = []
    exact: tuple[str, ...] = ()
    if deduplicate is not None or (decontaminate is not None and decontaminate.rule.policy == "strict"):
        nodes += _bucket_nodes(name, decontaminate, deduplicate, read, runtime)
        exact = (f"exact/{name}",)
    decisions: tuple[str, ...] = ()
    if decontaminate is not None:
        nodes += _decontaminate_nodes(name, decontaminate, tests, read, exact, runtime)
        decisions = (f"decontaminate/{name}",)
    if deduplicate is not None:
        nodes += _deduplicate_nodes(name, deduplicate, read, exact, decisions, runtime)
        decisions = (*decisions, f"deduplicate/{name}")
    return nodes, decisions


def _deduplicate_config(experiment: Experiment) -> DeduplicateConfig | None:
    if experiment.deduplicate is None:
        return None
    thresholds = {field: getattr(experiment.partition, field) for field in ScoreThresholds.model_fields}
    return experiment.deduplicate.model_copy(update={"thresholds": ScoreThresholds(**thresholds)})


def _readers(experiment: Experiment, branches: Sequence[str]) -> tuple[str, ...]:
    """The reader of the source of each branch."""
    sources = [experiment.sources[source_of(branch)] for branch in branches]
    return tuple(load_card(card_file(source.card)).reader or "" for source in sources)


def _link_files(config: DecontaminateConfig) -> tuple[SourceFile, ...]:
    return tuple(SourceFile(source_uri(file.path), file.format) for file in config.links)


def duplicate_nodes(
    name: str, config: DeduplicateConfig, read: Mapping[str, tuple[str, ...]], runtime: RuntimeOf = lambda _: Runtime()
) -> list[Node]:
    """deduplicate/<name> of `read` (keys of nodes in slots rows and scores), and the nodes it is made of."""
    nodes = _bucket_nodes(name, None, config, read, runtime)
    return [*nodes, *_deduplicate_nodes(name, config, read, (nodes[-1].key,), (), runtime)]


def _bucket_nodes(
    name: str,
    decontaminate: DecontaminateConfig | None,
    deduplicate: DeduplicateConfig | None,
    read: Mapping[str, tuple[str, ...]],
    runtime: RuntimeOf,
) -> list[Node]:
    """evidence, near, components and exact, once for both searches: with the looser limit of the two."""
    strict = decontaminate if decontaminate is not None and decontaminate.rule.policy == "strict" else None
    evidence, near = bucket_configs(strict, deduplicate)
    links = _link_files(strict) if strict else ()
    nothing = ComponentsConfig()
    between = {"evidence": (f"evidence/{name}",), "components": (f"components/{name}",)}
    return [
        Node(f"evidence/{name}", EVIDENCE, evidence, {**read, "links": links}, runtime("evidence")),
        Node(f"near/{name}", NEAR, near, {"evidence": (f"evidence/{name}",)}, runtime("near")),
        Node(f"components/{name}", COMPONENTS, nothing, {"links": (f"near/{name}",)}, runtime("components")),
        Node(f"exact/{name}", EXACT, nothing, between, runtime("exact")),
    ]


def bucket_configs(
    strict: DecontaminateConfig | None, deduplicate: DeduplicateConfig | None
) -> tuple[EvidenceConfig, NearConfig]:
    """What `evidence` and `near` have to find for both searches; at least one is there."""
    rules = [one.rule for one in (strict, deduplicate) if one is not None]
    cosines = [one.min_cosine for one in rules if one.min_cosine is not None]
    by_hash = [one for one in rules if one.radius is not None]
    radius = max((one.radius for one in by_hash if one.radius is not None), default=None)
    evidence = EvidenceConfig(
        radius=radius,
        score="mean" if deduplicate is None else deduplicate.thresholds.score,
        embeddings=bool(cosines),
        texts=deduplicate is not None and (deduplicate.merge_captions or deduplicate.merge_concepts),
        readers=strict.readers if strict else (),
        links=strict.links if strict else (),
    )
    if deduplicate is not None:
        evidence = evidence.model_copy(update={"rows_per_bucket": deduplicate.rows_per_bucket})
    correlation = min((one.min_correlation for one in by_hash), default=1.0)
    near = NearConfig(radius=radius, min_correlation=correlation, min_cosine=min(cosines) if cosines else None)
    return evidence, near


def _decontaminate_nodes(
    name: str,
    config: DecontaminateConfig,
    tests: Sequence[str],
    read: Mapping[str, tuple[str, ...]],
    exact: tuple[str, ...],
    runtime: RuntimeOf,
) -> list[Node]:
    """test_index, leaks and decontaminate. What is done about leaks is a matter of the last alone."""
    index = {"index": (f"test_index/{name}",)}
    default = DecontaminationConfig()
    undecided = {"policy": default.policy, "paper_sources": default.paper_sources}
    search = config.model_copy(update={"rule": config.rule.model_copy(update=undecided)})
    held_out: dict[str, tuple[str | SourceFile, ...]] = {
        "test_rows": tuple(f"filter/{branch}" for branch in tests),
        "test_scores": tuple(f"score/{branch}" for branch in tests),
        "tests": tuple(SourceFile(source_uri(file.path), file.name) for file in config.tests),
        "links": _link_files(config),
    }
    found = {"leaks": (f"leaks/{name}",), **index, "exact": exact}
    return [
        Node(f"test_index/{name}", TEST_INDEX, search, held_out, runtime("test_index")),
        Node(f"leaks/{name}", FIND_LEAKS, search, {**read, **index}, runtime("leaks")),
        Node(f"decontaminate/{name}", DECONTAMINATE, config, found, runtime("decontaminate")),
    ]


def _deduplicate_nodes(
    name: str,
    config: DeduplicateConfig,
    read: Mapping[str, tuple[str, ...]],
    exact: tuple[str, ...],
    decisions: tuple[str, ...],
    runtime: RuntimeOf,
) -> list[Node]:
    """stars and deduplicate, and repeated_captions where these are limited."""
    nodes, gone = [], decisions
    decided: tuple[str, ...] = (f"stars/{name}",)
    if config.max_rows_per_caption is not None:
        repeats = RepeatsConfig(max_rows_per_caption=config.max_rows_per_caption, thresholds=config.thresholds)
        slots = {**read, "decisions": decisions, "exact": exact}
        key = f"repeated_captions/{name}"
        nodes.append(Node(key, REPEATED_CAPTIONS, repeats, slots, runtime("repeated_captions")))
        gone, decided = (*gone, key), (*decided, key)
    return [
        *nodes,
        Node(f"stars/{name}", STARS, config, {"rows": exact, "decisions": gone}, runtime("stars")),
        Node(f"deduplicate/{name}", DEDUPLICATE, config, {**read, "decisions": decided}, runtime("deduplicate")),
    ]
