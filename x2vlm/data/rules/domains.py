"""Whose site a URL is on: the name that somebody registered, and that somebody else can buy when it expires."""

import ipaddress
import urllib.parse

# Second-level names under which two-letter countries register: "example.co.uk" is one owner, "co.uk" is none. The full
# Public Suffix List (9,000 rules, changing weekly) is not worth a dependency here: a rule we lack joins owners, and a
# joined domain is judged by all its rows together, which the report shows by name.
SECOND_LEVEL = frozenset(
    ["ac", "co", "com", "edu", "gen", "go", "gob", "gov", "gouv", "ltd", "me", "mil", "ne", "net", "nom", "or", "org"]
)
# Hosts whose subdomains belong to different people.
SHARED = frozenset(
    [
        "amazonaws.com",
        "appspot.com",
        "blogspot.com",
        "cloudfront.net",
        "github.io",
        "livejournal.com",
        "tumblr.com",
        "typepad.com",
        "wordpress.com",
    ]
)


def registered_domain(url: str) -> str:
    """The registered domain of `url`'s host, in lower case: "cdn.shop.example.co.uk" is on "example.co.uk".

    A subdomain of a host that lends them to many ("anna.blogspot.com") counts by itself, an IP address is its own
    domain, and "" stands for a URL without a host.
    """
    try:
        host = (urllib.parse.urlsplit(url.strip()).hostname or "").rstrip(".")
    except ValueError:  # a broken IPv6 address, for example
        return ""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    is_second_level = len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in SECOND_LEVEL
    is_shared = ".".join(labels[-2:]) in SHARED
    return ".".join(labels[-3 if is_second_level or is_shared else -2 :])
