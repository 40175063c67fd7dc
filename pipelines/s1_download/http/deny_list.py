"""A list of sites and addresses that are never fetched, for any source."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.s1_download.http.guard import Refusal, Target, parse_target
from pipelines.s1_download.http.robots import normalised
from x2vlm.errors import ConfigError


@dataclass(frozen=True)
class DenyList:
    """Domains with their subdomains, and URL prefixes by host (for both schemes)."""

    domains: frozenset[str] = frozenset()
    prefixes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def check(self, target: Target) -> None:
        """Refusal with rule denied_by_list, naming the entry, if `target` is on the list."""
        if not self.domains and not self.prefixes:
            return
        labels = target.host.rstrip(".").split(".")
        for start in range(len(labels)):
            if (domain := ".".join(labels[start:])) in self.domains:
                raise Refusal("denied_by_list", domain)
        if target.host not in self.prefixes:
            return
        path = normalised(target.path)
        for prefix in self.prefixes.get(target.host, ()):
            if path.startswith(prefix):
                raise Refusal("denied_by_list", f"{target.host}{prefix}")


def read_deny_list(path: Path) -> tuple[DenyList, str]:
    """The list in a file and the sha256 of its bytes: a domain or a URL prefix a line, `#` begins a comment.

    ConfigError names the file and the line that is neither.
    """
    try:
        data = path.read_bytes()
        lines = data.decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"deny list {path}: {error}; correct `download.deny_list`") from None
    domains: set[str] = set()
    prefixes: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        try:
            target = parse_target(entry if "://" in entry else f"http://{entry}")
        except Refusal as refusal:
            raise ConfigError(
                f"deny list {path}, line {number}: {entry!r} is neither a domain nor a URL prefix ({refusal})"
            ) from None
        if target.path == "/":
            domains.add(target.host.rstrip("."))
        else:
            prefixes.setdefault(target.host, []).append(normalised(target.path))
    denied = DenyList(frozenset(domains), {host: tuple(paths) for host, paths in prefixes.items()})
    return denied, hashlib.sha256(data).hexdigest()
