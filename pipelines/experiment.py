"""One experiment is one frozen value: every decision that makes one model differ from another.

An experiment file is plain YAML without inheritance or interpolation; its header comment gives the command, the
hardware, the hours and the numbers to expect. Its name is the file's name. What several sources of a file share is
written once, below `filters`, and named: `filter: web`.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic_core import InitErrorDetails

from pipelines.evaluations import EvaluationConfig, check_known, in_order
from pipelines.flow.safe_text import has_secret, mask_url
from pipelines.flow.stage import Runtime
from pipelines.flow.store.blobs import PROJECT_SCHEME
from pipelines.project import PROJECT_ROOT, STORE_VARIABLE, lasting_root, project_path
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.domains import DomainsConfig
from pipelines.s2_filter import FilterConfig
from pipelines.s3_score import ScoreConfig
from pipelines.s4_materialize.decontaminate_config import DecontaminateConfig
from pipelines.s4_materialize.deduplicate_config import DeduplicateConfig
from pipelines.s4_materialize.pack import PackConfig
from pipelines.s4_materialize.partition import PartitionConfig
from pipelines.s5_pretrain.config import PretrainConfig, check_trainings
from x2vlm.config import FrozenConfig, did_you_mean, field_problem, parse_config, read_yaml
from x2vlm.errors import ConfigError
from x2vlm.train.config import TrainRuntime

# By name in `runtime`. Of trainings, whose workers Ray Train starts, only the GPUs are set there.
STAGES = (
    *("read", "download", "domains", "filter", "score", "evidence", "near", "components", "exact"),
    *("test_index", "leaks", "decontaminate", "repeated_captions", "stars", "deduplicate", "partition", "pack"),
    *("pretrain", "task_data", "finetune", "evaluate"),
)
TRAININGS = ("pretrain", "finetune")
EXPERIMENTS = PROJECT_ROOT / "pipelines" / "experiments"

# Fields that `pipelines.graph` fills in for each node: what an experiment says there could not take effect. With where
# it belongs. What graph and sources replace beyond these is refused by `pipelines.idle_settings`.
FILLED_IN: Mapping[tuple[str, str], str] = {
    ("download", "url_base"): "a fact of one dataset: write `url_base` into its card",
    ("download", "yt_dlp_domains"): "a fact of one dataset: write `yt_dlp_domains`, with `terms`, into its card",
    ("download", "set_root"): "follows from the `root` of a card, or from `data_root` of the source",
    ("download", "retry"): "later rounds are written beside `download`: `retries: [[dns, timeout]]`",
    ("score", "variants"): "follows from the `role` of each source: held-out images have variants, others have none",
    ("decontaminate", "readers"): "follows from the cards of the sources",
    ("decontaminate", "test_readers"): "follows from the cards of the sources",
    ("partition", "decided_as"): "follows from the sources that the phases read",
    ("deduplicate", "thresholds"): "rows that `partition` will drop are no duplicates: write its thresholds there",
}


class SourceConfig(FrozenConfig):
    """One upstream dataset in this experiment. `data_root` holds a folder `<card id>/` with its files; not for cards
    whose files are shipped."""

    card: str  # below datasets/, without .yaml: "sample/coco"
    data_root: str | None = None
    # A folder or bucket with this source's media: then nothing is asked of the web. Its files are called `media_name`,
    # by default the card's `local_name`; fields as in `s1_download.routes.LocalMedia`.
    media_root: str | None = None
    media_name: str | None = None
    role: Literal["train", "held_out"] = "train"
    filter: FilterConfig | None = None  # instead of the experiment's, as a whole; a file may name one of its `filters`
    rows_per_part: int = pydantic.Field(default=10_000, gt=0)
    # Instead of it, for lists of more than about 10 million images: rows leave in the order of their keys, cut into
    # this many ranges, each a part of the download (`pipelines.s1_download.sort`). Rows added later change every range.
    key_ranges: int | None = pydantic.Field(default=None, gt=0)

    @pydantic.model_validator(mode="after")
    def _parts_are_cut_in_one_way(self) -> "SourceConfig":
        if self.key_ranges is not None and "rows_per_part" in self.model_fields_set:
            raise ValueError("key_ranges and rows_per_part both say how rows are cut into parts; give one of them")
        return self

    @pydantic.model_validator(mode="after")
    def _media_have_a_root(self) -> "SourceConfig":
        if self.media_name is not None and self.media_root is None:
            raise ValueError("media_name has no effect without `media_root`, the folder or bucket with your copy")
        return self


class Experiment(FrozenConfig):
    """All decisions of one run, from upstream files to evaluation. Relative paths start at the project's root.

    In a job submitted to Ray the store, and files that its package does not hold, start at
    `pipelines.project.lasting_root`.
    """

    name: str = pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    store: str = "runs/store"
    # Filters that sources of this file name. They are written out at each source: nothing else reads them.
    filters: dict[str, FilterConfig] = pydantic.Field(default={}, exclude=True)
    sources: dict[str, SourceConfig]
    download: DownloadConfig = DownloadConfig()
    # Later rounds of every download, each the classes of failures it tries again: [[dns, timeout, 5xx]].
    retries: tuple[tuple[str, ...], ...] = ()
    domains: DomainsConfig = DomainsConfig()
    filter: FilterConfig = FilterConfig()
    score: ScoreConfig = ScoreConfig()
    clip_model: str | None = None  # a folder with open_clip_config.json and weights, where `score.model` is "folder"
    decontaminate: DecontaminateConfig | None = DecontaminateConfig()  # None: nothing is looked for
    deduplicate: DeduplicateConfig | None = None  # the paper removes no duplicates
    partition: PartitionConfig
    pack: PackConfig = PackConfig()
    vocabulary: str  # a WordPiece vocab.txt, or the tokenizer.json of XLM-R
    # Trainings before `pretrain`, by name; `pretrain` is the last. Each has shards of its own, of the sources that its
    # streams name, and is started from by name: `start: {node: phase1}`.
    phases: dict[str, PretrainConfig] = {}
    pretrain: PretrainConfig = PretrainConfig()
    train_runtime: TrainRuntime = TrainRuntime()  # how trainings are watched, saved and placed; never in a fingerprint
    evaluate: dict[str, EvaluationConfig] = {}
    runtime: dict[str, Runtime] = {}  # by stage name

    @pydantic.field_validator("sources", mode="before")
    @classmethod
    def _write_named_filters_out(cls, sources: Any, info: pydantic.ValidationInfo) -> Any:
        """Every name of a filter becomes the filter itself. An unknown name is an error, and so is an idle filter."""
        if not isinstance(sources, Mapping):
            return sources
        named = {key: value["filter"] for key, value in sources.items() if _names_a_filter(value)}
        # Where `filters` have problems of their own, those are told once and not at every source.
        filters: Mapping[str, FilterConfig] | None = info.data.get("filters")
        if filters is not None and (problems := _naming_problems(named, filters)):
            raise pydantic.ValidationError.from_exception_data(cls.__name__, problems)
        return dict(sources) | {
            key: {**sources[key], "filter": filters and filters[name]} for key, name in named.items()
        }

    @pydantic.field_validator("runtime")
    @classmethod
    def _runtimes_take_effect(cls, runtimes: dict[str, Runtime]) -> dict[str, Runtime]:
        if problems := _runtime_problems(runtimes):
            raise pydantic.ValidationError.from_exception_data(cls.__name__, problems)
        return runtimes

    @pydantic.model_validator(mode="after")
    def _nothing_is_secret(self) -> "Experiment":
        """No string of the file holds a password: what is decided here is written into manifests and reports."""
        problems = [
            field_problem(path, told) for path, text in _strings(self.model_dump()) if (told := secret_in(text))
        ]
        if problems:
            raise pydantic.ValidationError.from_exception_data(type(self).__name__, problems)
        return self

    @pydantic.model_validator(mode="after")
    def _nothing_is_replaced(self) -> "Experiment":
        """No field is set that the graph fills in."""
        problems = [
            field_problem((section, name), f"would be replaced: {where}; take it out here")
            for (section, name), where in FILLED_IN.items()
            if (value := getattr(self, section)) is not None and is_set(value, name)
        ]
        if problems:
            raise pydantic.ValidationError.from_exception_data(type(self).__name__, problems)
        return self

    @pydantic.model_validator(mode="after")
    def _evaluations_name_held_out_sources(self) -> "Experiment":
        for name, task in self.evaluate.items():
            if task.source is None:
                continue
            source = self.sources.get(task.source)
            if source is None or source.role != "held_out":
                held_out = sorted(key for key, value in self.sources.items() if value.role == "held_out")
                raise ValueError(
                    f"evaluate.{name}.source: {task.source!r} is not a held-out source; "
                    f"{did_you_mean(task.source, held_out)}"
                )
        in_order(self.evaluate)
        check_known(self.evaluate, [test.name for test in self.decontaminate.tests] if self.decontaminate else [])
        return self

    @pydantic.model_validator(mode="after")
    def _the_runtime_fits_every_training(self) -> "Experiment":
        trainings = {**{f"phases.{name}": phase for name, phase in self.phases.items()}, "pretrain": self.pretrain}
        try:
            check_trainings(trainings, self.train_runtime, self.partition.num_shards)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    @pydantic.model_validator(mode="after")
    def _phases_follow_each_other(self) -> "Experiment":
        known: list[str] = []
        used = set()
        for name, phase in (*self.phases.items(), ("pretrain", self.pretrain)):
            if name in known or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ValueError(f"phases.{name}: a name of letters, digits, - and _ that is not `pretrain`")
            start = phase.start.node if phase.start else None
            if start is not None and start not in known:
                hint = did_you_mean(start, known)
                raise ValueError(f"{name}.start.node: {start!r} is no phase before this one; {hint}")
            used.add(start)
            known.append(name)
        # A branch goes on from what came out of the phases before it.
        has_branch = any(one.start and one.start.run for one in (*self.phases.values(), self.pretrain))
        if (idle := sorted(set(self.phases) - used)) and not has_branch:
            raise ValueError(f"nothing starts from {', '.join(idle)}: name it in a later `start: {{node: ...}}`")
        return self

    @property
    def store_uri(self) -> str:
        """Where artifacts go: a URI, or an absolute local path. Errors as in `store_location`."""
        return store_location(self.store)


def is_set(config: pydantic.BaseModel, name: str) -> bool:
    """Whether the field has another value than its default."""
    return bool(getattr(config, name) != type(config).model_fields[name].get_default(call_default_factory=True))


def secret_in(text: str) -> str:
    """What to tell somebody who wrote a password or a token into the name of an input or a store; "" without one."""
    if not has_secret(text):
        return ""
    return (
        f"{mask_url(text)} holds a password or a token, which would be written into manifests and reports; give "
        "credentials by the environment (AWS_ACCESS_KEY_ID and the like) or the file of the storage's own client"
    )


def _strings(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """(path, text) of every string in a value of mappings and sequences."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(item, (*path, str(key)))
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _strings(item, (*path, number))


def _names_a_filter(source: Any) -> bool:
    return isinstance(source, Mapping) and isinstance(source.get("filter"), str)


def _naming_problems(named: Mapping[str, str], filters: Mapping[str, FilterConfig]) -> list[InitErrorDetails]:
    """What is wrong with the names of filters that sources give, by source: unknown ones, and filters none names."""
    unknown = [
        field_problem((key, "filter"), f"no filter of `filters` is called {name!r}; {did_you_mean(name, filters)}")
        for key, name in named.items()
        if name not in filters
    ]
    idle = sorted(set(filters) - set(named.values()))
    return unknown + [
        field_problem((), f"none names the filter `{name}` of `filters`; write `filter: {name}` at one, or take it out")
        for name in idle
    ]


def _runtime_problems(runtimes: Mapping[str, Runtime]) -> list[InitErrorDetails]:
    """Runtimes that change nothing: of no stage, or of workers that another setting describes."""
    found = [
        field_problem((stage,), f"no stage has that name; {did_you_mean(stage, STAGES)}")
        for stage in runtimes
        if stage not in STAGES
    ]
    default = Runtime()
    for stage, (name, value) in [(key, item) for key in TRAININGS for item in runtimes.get(key, default)]:
        if name != "num_gpus" and value != getattr(default, name):
            words = "has no effect, Ray Train starts the workers: see `cpus_per_worker`, `max_failures` and `placement`"
            found.append(field_problem((stage, name), f"{words} of `train_runtime`"))
    return found


def resolve(path: str) -> Path:
    """`path` as an absolute path; relative ones as in `pipelines.project.project_path`."""
    return project_path(path)


def default_store() -> str:
    """The store of whoever names none: X2VLM_STORE, or the folder runs/store."""
    return os.environ.get(STORE_VARIABLE) or "runs/store"


def store_location(store: str) -> str:
    """A store as a URI or an absolute local path; a relative one lies below the folder that outlives a job.

    ConfigError where there is none: in a submitted job whose code came as a package into a container.
    """
    if "://" in store or Path(store).expanduser().is_absolute():
        return store if "://" in store else str(Path(store).expanduser().resolve())
    root = lasting_root()
    if root is None:
        raise ConfigError(
            f"store {store}: a relative folder would lie in {PROJECT_ROOT}, the copy of the code that Ray made for "
            "this job and deletes after it. Give --store s3://bucket/prefix, or a folder that all machines share; or "
            f"set {STORE_VARIABLE} in the cluster's environment to either. Nothing has run"
        )
    return str((root / store).resolve())


def source_uri(uri: str) -> str:
    """The URI under which an upstream file is recorded: relative to the project for its own files."""
    if "://" in uri:
        return uri
    path = resolve(uri)
    for root in (PROJECT_ROOT, lasting_root()):
        if root is not None and path.is_relative_to(root):
            return f"{PROJECT_SCHEME}{path.relative_to(root).as_posix()}"
    return str(path)


def shipped_experiments() -> dict[str, Path]:
    """The file of every experiment below pipelines/experiments, by name, in the order of names.

    ConfigError if two are called alike: folders only sort them, and a store keeps them apart by name alone.
    """
    found: dict[str, Path] = {}
    for path in sorted(EXPERIMENTS.rglob("*.yaml"), key=lambda path: path.stem):
        if path.stem in found:
            raise ConfigError(f"two experiments are called {path.stem}: {found[path.stem]} and {path}; rename one")
        found[path.stem] = path
    return found


def load_experiment(name_or_path: str, store: str | None = None) -> Experiment:
    """The experiment of that name, or in that YAML file. `store` replaces the store it names.

    Where neither names one, X2VLM_STORE does, and without it the folder is runs/store.

    Raises ConfigError for unknown names, unknown keys ("did you mean") and values out of range.
    """
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        known = shipped_experiments()
        if name_or_path not in known:
            raise ConfigError(
                f"no experiment is called {name_or_path!r}; {did_you_mean(name_or_path, known)} "
                "Or give the path of a YAML file"
            )
        path = known[name_or_path]
    values = {"name": path.stem, **read_yaml(path)}
    if store is not None:
        values["store"] = store
    values.setdefault("store", default_store())
    return parse_config(Experiment, values, origin=str(path))
