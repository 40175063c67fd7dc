"""Where a source's media are: folders of this machine, and hosts that need leave."""

import ipaddress
import os
import posixpath
import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.s1_download.http.guard import DEFAULT_PORTS, Refusal, is_public, parse_target
from pipelines.s1_download.routes import asked_url
from x2vlm.data.readers.own.places import LOCAL_HOST, path_of
from x2vlm.errors import ConfigError

PROBED = 50  # paths that are looked for
MAX_PARENTS = 4  # of the table's folder that are tried as the folder where paths begin
PRIVATE_ENDINGS = (".local", ".internal", ".lan", ".home", ".corp", ".localhost", ".intranet", ".test")


def served_folder(folder: Path, addresses: Sequence[str], media: Path | None) -> tuple[Path | None, list[str]]:
    """The folder to serve for paths in a table in `folder`, and what is to be said of it; None without any path.

    ConfigError where the folder would be that of a whole machine, or where no path leads to a file.
    """
    if not addresses:
        return None, []
    paths = [path_of(address) for address in addresses]
    outer = [posixpath.normpath(posixpath.join(str(folder), path)) for path in paths if path.startswith("../")]
    outer += [path for path in paths if os.path.isabs(path)]
    inner = [path for path in paths if not os.path.isabs(path) and not path.startswith("../")]
    candidates = [media.resolve()] if media else [folder, *list(folder.parents)[:MAX_PARENTS]]
    if media is None and outer:
        common = Path(os.path.commonpath([os.path.dirname(path) for path in outer]))
        candidates = [common] if not inner else [one for one in candidates if common.is_relative_to(one)]
    probed = [*inner[:PROBED], *outer[:PROBED]]
    counts = {one: sum((one / path).is_file() for path in probed) for one in candidates if one != Path(one.anchor)}
    best = max(counts, key=lambda one: counts[one], default=None)
    if best is None or not counts[best]:
        tried = ", ".join(map(str, counts)) or "/"
        raise ConfigError(
            f"paths such as {paths[0]!r} lead to no file; they were looked for below {tried}. Give the folder where "
            "they begin with --media, or, if they are addresses of the web, write them with https://"
        )
    missing = len(probed) - counts[best]
    note = f"paths begin in {best}, which is served on this machine only, while media are fetched"
    return best, [note, *([f"{missing} of the first {len(probed)} files are not there"] if missing else [])]


@dataclass(frozen=True)
class Hosts:
    """What the addresses of a source need beyond public hosts on ports 80 and 443."""

    ports: tuple[int, ...]
    private: dict[str, tuple[str, ...]]  # host -> its networks

    @property
    def networks(self) -> tuple[str, ...]:
        return tuple(sorted({network for networks in self.private.values() for network in networks}))


def hosts_of(urls: Iterable[str]) -> Hosts:
    """Ports and private hosts of addresses; names are looked up only where they look private."""
    seen: Counter[tuple[str, int]] = Counter()
    for url in urls:
        if url.startswith(LOCAL_HOST):
            continue
        try:
            target = parse_target(asked_url(url))
        except Refusal:
            continue  # counted when it is fetched
        seen[target.host, target.port] += 1
    ports = tuple(sorted({port for _, port in seen} - set(DEFAULT_PORTS.values())))
    private = {host: networks for host in sorted({host for host, _ in seen}) if (networks := _private_networks(host))}
    return Hosts(ports, private)


def _private_networks(host: str) -> tuple[str, ...]:
    """The networks of one address each that a host's own address is in, if it is not public."""
    try:
        addresses = [ipaddress.ip_address(host)]
    except ValueError:
        if "." in host and not host.endswith(PRIVATE_ENDINGS):
            return ()
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError:
            return ()
        addresses = [ipaddress.ip_address(str(one[4][0]).partition("%")[0]) for one in found]
    return tuple(sorted({f"{one}/{one.max_prefixlen}" for one in addresses if not is_public(one)}))
