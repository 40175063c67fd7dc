"""The readers of sets: which there are, and how each reads one group of files."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from x2vlm.data.readers.own.files import Located, SetFile, group_names, local_files
from x2vlm.data.readers.own.folder import read_folder_group
from x2vlm.data.readers.own.rows import SetOptions
from x2vlm.data.readers.own.webdataset import read_webdataset_group
from x2vlm.data.readers.source import Source
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import Drop, Sample

SetReader = Callable[[Source, Sequence[SetFile], Counter[str], SetOptions], Iterator[Located | Drop]]

SET_READERS: Mapping[str, SetReader] = {"folder": read_folder_group, "webdataset": read_webdataset_group}


def read_folder(source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    """All rows of a local folder (its only role), see `own.folder`; where their media lie is left out."""
    return _read_all("folder", source, seen)


def read_webdataset(source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    """All rows of the tars and Parquet files below a local folder (its only role), see `own.webdataset`."""
    return _read_all("webdataset", source, seen)


def _read_all(reader: str, source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    roots = list(source.files.values())
    if len(roots) != 1 or not Path(roots[0]).is_dir():
        raise SourceUnavailable(f"card {source.card}: reader {reader} reads one folder; {roots or 'nothing'} was given")
    files = {file.name: file for file in local_files(Path(roots[0]))}
    for names in group_names(reader, files).values():
        for item in SET_READERS[reader](source, [files[name] for name in names], seen, SetOptions()):
            yield item.sample if isinstance(item, Located) else item
