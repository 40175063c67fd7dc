"""What the download stage may contact: URLs and resolved addresses, checked before any connection.

URLs are untrusted input. Names are resolved once, every address is checked, and the connection goes to the checked
address, so DNS rebinding has no effect, nor has a host in decimal, octal or hex.
"""

import functools
import ipaddress
import re
import urllib.parse
import urllib.request
from dataclasses import dataclass

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# `is_global` alone depends on the registry of the Python release; forbidden networks are listed explicitly.
FORBIDDEN_NETWORKS = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local; cloud metadata
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved, broadcast
        "2001::/23",  # Teredo and other protocol assignments
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
    )
)
# Loopback, link-local, unique local, multicast, v4-compatible, v4-mapped and NAT64 addresses are all outside.
GLOBAL_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")
CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
# A name or v4 address, or a v6 address without scope; UTS 46 maps to spaces and slashes too, so this comes after it.
USABLE_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f.]*:[0-9a-f:.]+")

# A URL that is already in wire form, as most are, needs no parsing and joining (20 us, in two processes).
PLAIN_URL = re.compile(
    r"(https?)://([a-z0-9._-]+)(?::([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}))?"
    r"(/[A-Za-z0-9/%:@!$&'()*+,;=~._-]*(?:\?[A-Za-z0-9/?%:@!$&'()*+,;=~._\[\]|-]+)?)"
)
ALLOWS = "a card, or `download` of the experiment, allows it by"
DEFAULT_PORTS = {"http": 80, "https": 443}


class Refusal(OSError):
    """A URL that will not be fetched, or was not fetched completely. `rule` is the reason that is counted."""

    def __init__(self, rule: str, reason: str = "", http_status: int = 0) -> None:
        super().__init__(f"{rule}: {reason}" if reason else rule)
        self.rule = rule
        self.reason = reason
        self.http_status = http_status


@dataclass(frozen=True)
class Policy:
    """What may be contacted beyond public addresses on ports 80 and 443."""

    allowed_networks: tuple[str, ...] = ()  # for example ("10.1.0.0/16",): an internal mirror
    allowed_ports: tuple[int, ...] = (80, 443)
    allowed_endpoints: tuple[tuple[str, int], ...] = ()  # (address, port): our own loopback server


@dataclass(frozen=True)
class Target:
    """A parsed URL in wire form."""

    url: str
    scheme: str
    host: str
    port: int
    path: str  # with query


@functools.lru_cache(maxsize=256)  # a URL is parsed at three places in turn
def parse_target(url: str) -> Target:
    """`url` parsed; Refusal with rule scheme_forbidden, userinfo_forbidden or url_malformed."""
    if plain := PLAIN_URL.fullmatch(url):
        return _plain_target(*plain.groups())
    return take_apart(url)


def take_apart(url: str) -> Target:
    """`parse_target` of a URL in any spelling."""
    text = url.strip()
    if CONTROL_CHARACTER.search(text):
        raise Refusal("url_malformed", "control characters")
    try:
        parts = urllib.parse.urlsplit(text)
        scheme, host, port = parts.scheme.lower(), parts.hostname or "", parts.port
    except ValueError as error:
        raise Refusal("url_malformed", str(error)) from None
    if scheme not in ("http", "https"):
        raise Refusal("scheme_forbidden", f"{scheme or 'no scheme'}; only http and https are fetched")
    if "@" in parts.netloc:
        raise Refusal("userinfo_forbidden", "a user name or password in the address")
    try:
        if ":" not in host and ("%" in host or not host.isascii()):
            # Imported here: few URLs have such a host, and the tables of Unicode take 20 ms.
            from pipelines.s1_download.http.host_names import wire_host

            host = wire_host(host)
        path = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        query = urllib.parse.quote(parts.query, safe="/?%:@!$&'()*+,;=~-._[]|")
    except UnicodeError as error:
        raise Refusal("url_malformed", str(error)) from None
    if not USABLE_HOST.fullmatch(host) or port == 0:
        raise Refusal("url_malformed", "no usable host")
    path = f"{path}?{query}" if query else path
    netloc = f"[{host}]" if ":" in host else host
    default_port = DEFAULT_PORTS[scheme]
    netloc += f":{port}" if port not in (None, default_port) else ""
    return Target(f"{scheme}://{netloc}{path}", scheme, host, port or default_port, path)


def _plain_target(scheme: str, host: str, digits: str | None, path: str) -> Target:
    default_port = DEFAULT_PORTS[scheme]
    port = int(digits) if digits else default_port
    netloc = host if port == default_port else f"{host}:{port}"
    return Target(f"{scheme}://{netloc}{path}", scheme, host, port, path)


@functools.lru_cache(maxsize=4096)  # hosts have many images; only allowed addresses are cached
def check_address(address: str, port: int, policy: Policy) -> None:
    """Refusal with rule address_forbidden or port_forbidden unless `address` may be contacted on `port`."""
    ip = ipaddress.ip_address(address.split("%", 1)[0])  # a scope id never makes an address public
    if (str(ip), port) in policy.allowed_endpoints:
        return
    is_allowed = any(ip in ipaddress.ip_network(network) for network in policy.allowed_networks)
    if not is_allowed and not is_public(ip):
        raise Refusal("address_forbidden", f"{ip} is not a public address; {ALLOWS} `allow_networks`")
    if port not in policy.allowed_ports:
        raise Refusal("port_forbidden", f"port {port}; {ALLOWS} `allow_ports`")


def is_public(ip: IpAddress) -> bool:
    """Whether `ip` is an ordinary address of the public internet, not translated to another network."""
    if isinstance(ip, ipaddress.IPv6Address) and ip not in GLOBAL_UNICAST_V6:
        return False
    return ip.is_global and not any(ip in network for network in FORBIDDEN_NETWORKS if network.version == ip.version)
