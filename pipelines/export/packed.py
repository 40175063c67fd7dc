"""The packed shards of an experiment, as every export reads them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.flow.stage import Input, InputPart
from pipelines.flow.store.reading import StoreReader
from pipelines.flow.store.store import Store
from pipelines.s4_materialize.pack import FIRST_OPEN_VERSION
from x2vlm.data.shards.media_files import index_name, is_media_file
from x2vlm.data.shards.shard import ShardReader
from x2vlm.errors import ConfigError


def packed_shards(store: Store, experiment: str) -> Input:
    """The artifact of `pack/<experiment>`: one part per shard. `x2vlm.data.shards.webdataset` takes it as it is.

    ConfigError, naming the stage to run, if there is none in `store` or if an earlier release packed it.
    """
    node = f"pack/{experiment}"
    ref = store.read_ref(experiment, node)
    stored = None if ref is None else store.read_manifest(ref.manifest_path)
    remedy = f"run `jobs/run_stage.py {experiment} --only 'pack/*'` first"
    if stored is None:
        raise ConfigError(f"{store.uri} holds no shards of {experiment}; {remedy}")
    manifest = stored[0]
    if manifest.version < FIRST_OPEN_VERSION:
        raise ConfigError(
            f"{store.uri} holds shards of {experiment} by version {manifest.version} of the pack stage, which other "
            f"readers do not take (version {FIRST_OPEN_VERSION} on they do); {remedy}"
        )
    return store.as_input(manifest)


@contextmanager
def opened(store: Store, part: InputPart) -> Iterator[ShardReader]:
    """The shard of `part`, its files checked against their recorded sha256 and fetched if the store is remote."""
    data = next(file for file in part.files if is_media_file(file.path))
    with TemporaryDirectory(prefix="x2vlm-export-") as links:
        reader = StoreReader(store, Path(links), part.name)
        shard = ShardReader(reader.local_path(data), reader.local_path(part.file(index_name(data.path))))
        try:
            yield shard
        finally:
            shard.close()
