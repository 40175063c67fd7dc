"""The parts of a paged manifest as their consumers see them, made when they are asked for and not kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

from pipelines.flow.stage import InputFile, InputPart
from pipelines.flow.store.layout import part_below, parts_folder
from pipelines.flow.store.manifests.paged import PagedParts
from pipelines.flow.store.manifests.part_table import Chunk
from x2vlm.errors import StageFailed

OpenSegments = Callable[[InputPart, InputFile], Mapping[str, InputFile]]


class InputParts(Sequence[InputPart]):
    """The parts of an artifact of `stage`; `uri_of` says where a path of the store lies."""

    def __init__(
        self, parts: PagedParts, stage: str, uri_of: Callable[[str], str], open_segments: OpenSegments
    ) -> None:
        self._parts, self._folder, self._open_segments = parts, uri_of(parts_folder(stage)), open_segments

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
        return _StoredPart(chunk, row, self._folder, self._open_segments)


class _StoredPart(InputPart):
    """A part whose files and summary are made of its chunk's columns when they are asked for."""

    def __init__(self, chunk: Chunk, row: int, parts_uri: str, open_segments: OpenSegments) -> None:
        self.__dict__.update(name=chunk.names[row], _chunk=chunk, _row=row, _uri=parts_uri, _open=open_segments)

    _chunk: Chunk
    _row: int
    _uri: str
    _open: OpenSegments

    @property
    def files(self) -> tuple[InputFile, ...]:
        """All files of the part."""
        places = self._chunk.file_places
        folder = self._folder
        return tuple(self._file(place, folder) for place in range(places[self._row], places[self._row + 1]))

    @property
    def summary(self) -> Mapping[str, Any]:
        """What the stage said of the part."""
        return self._chunk.summary(self._row)

    def file(self, path: str) -> InputFile:
        """The file called `path`; StageFailed if the part has none."""
        places, paths = self._chunk.file_places, self._chunk.file_columns[0]
        for place in range(places[self._row], places[self._row + 1]):
            if paths[place] == path:
                return self._file(place, self._folder)
        there = ", ".join(paths[places[self._row] : places[self._row + 1]])
        raise StageFailed(f"part {self.name} has no file {path}; it has {there}")

    def segments(self, path: str) -> Mapping[str, InputFile]:
        """The segments of the file called `path` by name, in the file's order; StageFailed if it has none."""
        return self._open(self, self.file(path))

    @property
    def _folder(self) -> str:
        return part_below(self._uri, self._chunk.fingerprint(self._row))

    def _file(self, place: int, folder: str) -> InputFile:
        paths, sizes, digests, rows, locations = self._chunk.file_columns
        path = paths[place]
        return InputFile(path, sizes[place], digests[place].hex(), f"{folder}/{locations[place] or path}", rows[place])
