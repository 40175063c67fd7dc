"""The parts of a paged manifest as their consumers see them, made when they are asked for and not kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

from pipelines.flow.stage import InputFile, InputPart
from pipelines.flow.store.layout import part_folder
from pipelines.flow.store.manifests.paged import PagedParts
from pipelines.flow.store.manifests.part_table import Chunk
from x2vlm.errors import StageFailed

OpenSegments = Callable[[InputPart, InputFile], Mapping[str, InputFile]]


class InputParts(Sequence[InputPart]):
    """The parts of an artifact of `stage`; `uri_of` says where a path of the store lies."""

    def __init__(
        self, parts: PagedParts, stage: str, uri_of: Callable[[str], str], open_segments: OpenSegments
    ) -> None:
        self._parts, self._stage, self._uri_of, self._open_segments = parts, stage, uri_of, open_segments

    @property
    def names(self) -> list[str]:
        """Names of all parts."""
        return self._parts.names

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, place: int) -> InputPart: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[InputPart]: ...
    def __getitem__(self, place: int | slice) -> InputPart | Sequence[InputPart]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        return self._part(*self._parts.locate(place))

    def __iter__(self) -> Iterator[InputPart]:
        for chunk in self._parts.chunks():
            for row in range(chunk.num_parts):
                yield self._part(chunk, row)

    def _part(self, chunk: Chunk, row: int) -> InputPart:
        folder = self._uri_of(part_folder(self._stage, chunk.fingerprint(row)))
        return _StoredPart(chunk, row, folder, self._open_segments)


class _StoredPart(InputPart):
    """A part whose files and summary are made of its chunk's columns when they are asked for."""

    def __init__(self, chunk: Chunk, row: int, folder: str, open_segments: OpenSegments) -> None:
        self.__dict__.update(name=chunk.names[row], _chunk=chunk, _row=row, _folder=folder, _open=open_segments)

    _chunk: Chunk
    _row: int
    _folder: str
    _open: OpenSegments

    @property
    def files(self) -> tuple[InputFile, ...]:
        """All files of the part."""
        first = self._chunk.first_file(self._row)
        return tuple(self._file(first + number) for number in range(len(self._chunk.paths(self._row))))

    @property
    def summary(self) -> Mapping[str, Any]:
        """What the stage said of the part."""
        return self._chunk.summary(self._row)

    def file(self, path: str) -> InputFile:
        """The file called `path`; StageFailed if the part has none."""
        paths = self._chunk.paths(self._row)
        if path not in paths:
            raise StageFailed(f"part {self.name} has no file {path}; it has {', '.join(paths)}")
        return self._file(self._chunk.first_file(self._row) + paths.index(path))

    def segments(self, path: str) -> Mapping[str, InputFile]:
        """The segments of the file called `path` by name, in the file's order; StageFailed if it has none."""
        return self._open(self, self.file(path))

    def _file(self, place: int) -> InputFile:
        found = self._chunk.file(place)
        uri = f"{self._folder}/{found.location or found.path}"
        return InputFile(found.path, found.bytes, found.sha256, uri, found.rows)
