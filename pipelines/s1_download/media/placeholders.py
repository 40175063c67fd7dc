"""A list of placeholder images that sites return with HTTP 200 for removed ones ("photo unavailable")."""

import hashlib
from pathlib import Path

from x2vlm.errors import ConfigError


def read_placeholders(path: Path) -> tuple[frozenset[str], str]:
    """The sha256 digests in a file and the sha256 of its bytes: a digest a line, `#` begins a comment.

    ConfigError names the file and the invalid line.
    """
    try:
        data = path.read_bytes()
        lines = data.decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"list of placeholders {path}: {error}; correct `download.placeholders`") from None
    digests = set()
    for number, line in enumerate(lines, start=1):
        entry = line.partition("#")[0].strip().lower()
        if entry and (len(entry) != 64 or set(entry) - set("0123456789abcdef")):
            raise ConfigError(
                f"list of placeholders {path}, line {number}: {entry[:80]!r} is no sha256 (64 hex digits)"
            )
        digests.add(entry)
    return frozenset(digests - {""}), hashlib.sha256(data).hexdigest()
