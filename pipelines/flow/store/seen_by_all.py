"""Whether all machines of a run see one and the same folder.

A part's worker says that it committed; if its machine has a folder of the same name of its own, the bytes are there,
and nowhere where the driver or the next stage looks.
"""

import contextlib
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path

from x2vlm.errors import ConfigError


@dataclass(frozen=True)
class SharedFolder:
    """A local store with a mark that the driver left in it; small enough to travel with every part."""

    root: str
    mark_name: str
    hostname: str  # of the machine that left the mark

    @classmethod
    def mark(cls, root: Path) -> "SharedFolder":
        """Leave a mark in the store at `root`, which is made if it is not there."""
        shared = cls(str(root), f".seen-{uuid.uuid4().hex}", socket.gethostname())
        shared.path.parent.mkdir(parents=True, exist_ok=True)
        shared.path.touch()
        return shared

    @property
    def path(self) -> Path:
        return Path(self.root) / "leases" / self.mark_name

    def problem(self) -> str:
        """What is wrong with the folder as this machine sees it; "" if nothing is."""
        if self.path.is_file():
            return ""
        return (
            f"store {self.root}: {socket.gethostname()} does not see the folder of {self.hostname}, where the run was "
            "started; what it wrote would be lost. Give a store that all machines share: --store s3://bucket/prefix, "
            "or a folder on a network file system, or set X2VLM_STORE to either"
        )

    def check(self) -> None:
        """ConfigError if this machine sees another folder."""
        if problem := self.problem():
            raise ConfigError(problem)

    def remove(self) -> None:
        """Take the mark away."""
        with contextlib.suppress(OSError):
            self.path.unlink()
