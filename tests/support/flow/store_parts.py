"""Parts of a few texts, committed to a store."""

from pipelines.flow.store.artifact import CountRecord, PartRecord
from pipelines.flow.store.store import Store

FP = "ab" + "0" * 62


def record(fingerprint: str = FP, **changes) -> PartRecord:
    return PartRecord(
        stage="toy",
        version=1,
        fingerprint=fingerprint,
        files=[],
        counts={"rows": CountRecord(num_in=1, num_out=1)},
    ).model_copy(update=changes)


def commit_texts(store: Store, texts: dict[str, str], fingerprint: str = FP, **options) -> PartRecord:
    writer = store.begin_part("toy", fingerprint)
    for name, text in texts.items():
        path = writer.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    changes = options.pop("changes", {})
    return store.commit_part(writer, record(fingerprint, **changes), **options)
