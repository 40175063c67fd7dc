"""Which parts read a source: one for a small source, else one for each slice of each of its files of rows.

A slice is a range of bytes, of `bytes_per_part` each, and has the records that begin in it: lines, rows of a CSV with
the line ends inside their quotes, row groups of Parquet. Its rows have the keys and the order that they have when the
source is read as a whole, and bytes appended to a file change no slice before them. Packed files (.gz, .zst) are one
slice each. Readers that join several files, or a JSON file with itself (COCO, Visual Genome, OpenImages, ...), are one
part: any of their rows may need any byte.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.flow.stage import InputFile, Part, Read
from x2vlm.data.readers import SLICED
from x2vlm.data.tables.files import is_packed
from x2vlm.data.tables.rows import ByteRange

PACKED = (".gz", ".zst")


@dataclass(frozen=True)
class Slice:
    """What a part reads: a file of rows by its role, the bytes of it, and the files before it whose ids count."""

    role: str
    within: ByteRange
    earlier: tuple[str, ...] = ()

    @classmethod
    def of(cls, part: Part, bytes_per_part: int) -> "Slice | None":
        """The slice that a part of `slice_parts` reads, None for the only part of a source."""
        if "slice" not in part.spec:
            return None
        start = int(part.spec["slice"]) * bytes_per_part
        return cls(part.spec["role"], ByteRange(start, start + bytes_per_part), tuple(part.spec.get("earlier", ())))

    def of_file(self, path: Path) -> ByteRange | None:
        """The range to read of the file, None for all of it."""
        is_all = self.within.start == 0 and (is_packed(path) or path.stat().st_size <= self.within.stop)
        return None if is_all else self.within

    def is_empty(self, path: Path) -> bool:
        """Whether the file turns out to be packed, contrary to its name: then its first slice has all rows."""
        return self.within.start > 0 and is_packed(path)


def slice_parts(
    reader: str, reads: Sequence[Read], files: Mapping[str, InputFile], bytes_per_part: int, unique_ids: bool
) -> list[Part]:
    """The parts that read `files` (by role), which are among `reads`; one part where that is enough.

    `unique_ids`: a row is dropped if one before it in the source has its id, so a part reads the files before its own.
    """
    roles = sorted(role for role in files if role == "rows" or role.startswith("rows-"))
    if reader not in SLICED or sum(files[role].bytes for role in roles) <= bytes_per_part:
        return [Part("all", tuple(reads))]
    of_rows = {files[role] for role in roles}
    shared = tuple(read for read in reads if read.file not in of_rows)
    parts = []
    for number, role in enumerate(roles):
        file = files[role]
        earlier = roles[:number] if unique_ids else []
        is_whole = file.path.lower().endswith(PACKED)
        for at in range(1 if is_whole else max(1, -(-file.bytes // bytes_per_part))):
            parts.append(
                Part(
                    f"{number:05d}-{at:05d}",
                    (*shared, *(Read("files", files[one]) for one in (*earlier, role))),
                    {"role": role, "slice": at, **({"earlier": earlier} if earlier else {})},
                )
            )
    return parts
