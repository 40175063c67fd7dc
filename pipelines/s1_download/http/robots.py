"""robots.txt by RFC 9309: the paths of a site that our crawler may request, and for what use.

Python's robotparser supports neither wildcards nor the longest match and takes the first matching rule, so a site's
`Allow: /photos/` after `Disallow: /` would be ignored.
"""

import re
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field

from pipelines.s1_download.http.guard import Refusal, Target
from pipelines.s1_download.http.opt_out import usage_signal

MAX_ROBOTS_BYTES = 500 << 10  # RFC 9309 2.5: at least this much must be read; the rest is ignored
ASK_AGAIN_SECONDS = 60.0  # after a site failed to respond


@dataclass(frozen=True)
class Rule:
    """One line that applies to us: `pattern` is normalised, `text` is quoted in the ledger."""

    pattern: str
    allows: bool
    text: str

    def matches(self, path: str) -> bool:
        """Whether `path` matches the pattern; in linear time, because patterns are untrusted."""
        ends = self.pattern.endswith("$")
        first, *others = (self.pattern[:-1] if ends else self.pattern).split("*")
        if not others:
            return path == first if ends else path.startswith(first)
        if not path.startswith(first):
            return False
        position = len(first)
        last = others.pop() if ends else ""
        for text in others:
            if (found := path.find(text, position)) < 0:
                return False
            position = found + len(text)
        return path.endswith(last) and len(path) - len(last) >= position


@dataclass(frozen=True)
class Robots:
    """The rules of a site for our crawler. Without rules everything is allowed."""

    rules: tuple[Rule, ...] = ()

    def refusal(self, path: str) -> str:
        """The line that forbids `path` (with query), or "". The longest match decides; of equals the one that allows.

        `/robots.txt` itself is always allowed (RFC 9309 2.2.2).
        """
        if not self.rules:
            return ""
        path = normalised(path)
        if path == "/robots.txt":
            return ""
        matching = [rule for rule in self.rules if rule.matches(path)]
        best = max(matching, key=lambda rule: (len(rule.pattern), rule.allows), default=None)
        return "" if best is None or best.allows else best.text


def parse_robots(body: bytes, token: str, honours_usage: bool = True) -> Robots:
    """The rules in `body` for the crawler `token`: all groups that name it, else all groups for `*`.

    Lines that are not rules are skipped, as the RFC requires. `Content-Usage` (IETF AI preferences) and
    `Content-Signal` lines that reserve training count as `Disallow` of the path they name, or of everything.
    """
    ours: list[Rule] = []
    wildcard_groups: list[Rule] = []
    is_named, in_header = False, False
    groups: list[list[Rule]] = []
    for line in body[:MAX_ROBOTS_BYTES].decode("utf-8", "replace").lstrip("\ufeff").splitlines():
        name, colon, value = line.partition("#")[0].partition(":")
        name, value = name.strip().lower(), value.strip()
        if not colon:
            continue
        if name == "user-agent":
            groups = groups if in_header else []
            in_header = True
            if _product(value) == token.lower():
                is_named = True
                groups.append(ours)
            elif value == "*":
                groups.append(wildcard_groups)
        elif name in ("allow", "disallow"):
            in_header = False
            if value.startswith(("/", "*")):  # an empty Disallow forbids nothing; other text is no path
                for group in groups:
                    group.append(Rule(normalised(value), name == "allow", f"{name}: {value}"[:200]))
        elif name in ("content-usage", "content-signal"):
            in_header = False
            path, preference = value.split(None, 1) if value.startswith("/") and " " in value else ("/", value)
            if honours_usage and usage_signal(preference):
                for group in groups:
                    group.append(Rule(normalised(path), False, f"{name}: {value}"[:200]))
    return Robots(tuple(ours if is_named else wildcard_groups))


def _product(value: str) -> str:
    """The product token of a User-agent line: letters, `_` and `-` (RFC 9309 2.2.1), without a version."""
    match = re.match(r"[A-Za-z0-9_-]+", value)
    return match[0].lower() if match else ""


def normalised(path: str) -> str:
    """A path with a canonical spelling of each octet: escaped only where necessary.

    An escaped delimiter stays distinct from the plain one, as does an escaped `*` or `$`.
    """
    pieces = re.split(r"(%[0-9A-Fa-f]{2})", path)
    return "".join(_octet(piece) if index % 2 else _escaped(piece) for index, piece in enumerate(pieces))


def _octet(escape: str) -> str:
    character = chr(int(escape[1:], 16))
    is_unreserved = character.isascii() and (character.isalnum() or character in "-._~")
    return character if is_unreserved else escape.upper()


def _escaped(piece: str) -> str:
    return urllib.parse.quote(piece, safe="/?:@!$&'()*+,;=~-._[]|", errors="replace")


@dataclass
class _Entry:
    """The cache entry of one site. `failures` counts unusable responses, until `ask_again_at`."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    robots: Robots | None = None
    failures: int = 0
    failure: str = ""
    ask_again_at: float = 0.0


class RobotsCache:
    """Every site's robots.txt, fetched once per process. Thread-safe."""

    def __init__(
        self, token: str, honours_usage: bool = True, tries: int = 2, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._token, self._honours_usage, self._tries, self._now = token, honours_usage, tries, now
        self._entries: dict[str, _Entry] = {}
        self._lock = threading.Lock()

    def check(self, target: Target, fetch: Callable[[str], tuple[int, bytes]]) -> str:
        """ "allowed" or "no_file"; Refusal with rule robots_disallowed or robots_unreachable.

        `fetch` returns status and body of a URL, following redirects. A status of 4xx means that there is no file
        (RFC 9309 2.3.1.3), any other but 2xx that everything is forbidden (2.3.1.4). Exceptions of `fetch` are
        propagated and not cached.
        """
        site = target.url[: target.url.index("/", len(target.scheme) + 3)]
        with self._lock:
            entry = self._entries.setdefault(site, _Entry())
        with entry.lock:
            if entry.robots is None:
                self._ask(entry, f"{site}/robots.txt", fetch)
            robots = entry.robots
        assert robots is not None
        if forbids := robots.refusal(target.path):
            raise Refusal("robots_disallowed", forbids)
        return "allowed" if robots.rules else "no_file"

    def _ask(self, entry: _Entry, url: str, fetch: Callable[[str], tuple[int, bytes]]) -> None:
        if entry.failures >= self._tries and self._now() < entry.ask_again_at:
            raise Refusal("robots_unreachable", entry.failure)
        status, body = fetch(url)
        if 200 <= status < 300:
            entry.robots = parse_robots(body, self._token, self._honours_usage)
        elif 400 <= status < 500:
            entry.robots = Robots()
        else:
            entry.failures += 1
            answered = f"answered {status}" if status else "gave no answer that can be read"
            entry.failure = f"robots.txt {answered}, so nothing may be asked for"
            entry.ask_again_at = self._now() + ASK_AGAIN_SECONDS
            raise Refusal("robots_unreachable", entry.failure)
