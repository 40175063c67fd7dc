"""Every stage's defaults and fingerprint are pinned: a change that forgets to bump `Stage.version` shows here."""

import pytest

from pipelines.flow.stage import InputFile, Part, Read, Stage, part_fingerprint
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.domains import DOMAIN_COUNTS, DOMAINS, DomainCountsConfig, DomainsConfig
from pipelines.s1_download.download import DOWNLOAD
from pipelines.s1_download.read import READ, ReadConfig
from pipelines.s1_download.sort import SORT, SortConfig
from pipelines.s2_filter import FILTER, FilterConfig
from pipelines.s3_score import SCORE, ScoreConfig
from pipelines.s4_materialize.buckets.captions import REPEATED_CAPTIONS, RepeatsConfig
from pipelines.s4_materialize.buckets.evidence_rows import EVIDENCE, EvidenceConfig
from pipelines.s4_materialize.buckets.exact import EXACT
from pipelines.s4_materialize.buckets.leaks import FIND_LEAKS, TEST_INDEX
from pipelines.s4_materialize.buckets.near import COMPONENTS, NEAR, ComponentsConfig, NearConfig
from pipelines.s4_materialize.buckets.stars import STARS
from pipelines.s4_materialize.decontaminate import DECONTAMINATE, DecontaminateConfig
from pipelines.s4_materialize.deduplicate import DEDUPLICATE, DeduplicateConfig
from pipelines.s4_materialize.pack import PACK, PackConfig
from pipelines.s4_materialize.partition import PARTITION, PartitionConfig
from pipelines.s5_pretrain.config import PretrainConfig
from pipelines.s5_pretrain.finetune.config import FinetuneNodeConfig
from pipelines.s5_pretrain.finetune.stage import FINETUNE
from pipelines.s5_pretrain.stage import PRETRAIN
from pipelines.s6_evaluate.config import EvaluateConfig
from pipelines.s6_evaluate.import_model import IMPORT, ImportConfig
from pipelines.s6_evaluate.stage import EVALUATE
from pipelines.s6_evaluate.swap_text import SWAP, SwapConfig
from pipelines.s6_evaluate.task_data import TASK_DATA, TaskDataConfig
from tests.support.flow.fingerprint_goldens import check_defaults, check_golden
from x2vlm.config import FrozenConfig
from x2vlm.data.task_cards import TaskCard
from x2vlm.tasks.catalog import TASKS

CARD = TaskCard.model_validate(
    {
        **{"id": "toy", "title": "", "task": "", "licence": "", "availability": "open", "reader": "own_labels"},
        "splits": {"val": {"files": {"rows": {"path": "rows"}}}},
    }
)
CASES: list[tuple[Stage, FrozenConfig]] = [
    (READ, ReadConfig(reader="cc3m", source="toy", card="toy", files={"pairs": "toy.tsv"})),
    (SORT, SortConfig(key_ranges=4)),
    (DOWNLOAD, DownloadConfig()),
    (DOMAINS, DomainsConfig()),
    (DOMAIN_COUNTS, DomainCountsConfig()),
    (FILTER, FilterConfig()),
    (SCORE, ScoreConfig()),
    (EVIDENCE, EvidenceConfig()),
    (NEAR, NearConfig()),
    (COMPONENTS, ComponentsConfig()),
    (EXACT, ComponentsConfig()),
    (TEST_INDEX, DecontaminateConfig()),
    (FIND_LEAKS, DecontaminateConfig()),
    (DECONTAMINATE, DecontaminateConfig()),
    (REPEATED_CAPTIONS, RepeatsConfig()),
    (STARS, DeduplicateConfig()),
    (DEDUPLICATE, DeduplicateConfig()),
    (PARTITION, PartitionConfig(num_shards=4)),
    (PACK, PackConfig()),
    (PRETRAIN, PretrainConfig()),
    (TASK_DATA, TaskDataConfig(card=CARD, files={"val": ({"rows": 0},)})),
    (FINETUNE, FinetuneNodeConfig(task="grounding")),
    (EVALUATE, EvaluateConfig(task="retrieval")),
    (IMPORT, ImportConfig()),
    (SWAP, SwapConfig()),
]


@pytest.mark.parametrize(("stage", "config"), CASES, ids=[stage.name for stage, _ in CASES])
def test_fingerprint_and_defaults_are_the_pinned_ones(stage: Stage, config: FrozenConfig) -> None:
    part = Part("00000", reads=(Read(stage.slots[0], InputFile("rows.parquet", 1, "ab" * 32, "")),))
    key = f"{stage.name}@{stage.version}"
    check_golden(key, part_fingerprint(stage, config, part))
    check_defaults(key, config)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_default_options_of_a_task_are_the_pinned_ones(name: str) -> None:
    check_defaults(f"task {name}@{TASKS[name].version}", EvaluateConfig(task=name).options)
