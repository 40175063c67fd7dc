"""Host names in wire form: Unicode names as browsers resolve them, so that the domain asked is the one that is meant.

Python's own codec follows IDNA 2003, under which `straße.de` is asked as `strasse.de`: somebody else's domain.
"""

import urllib.parse

import idna

MAX_NAME_CHARACTERS = 253  # RFC 1035 3.1, without the root's dot
MAX_LABEL_CHARACTERS = 63
JOINERS = ("\u200c", "\u200d")


def wire_host(host: str) -> str:
    """`host` in ASCII: percent-escapes undone, mapped by UTS 46 without transitional rules, labels in Punycode.

    As the URL standard of browsers has it, symbols (`i❤.ws`) and underscores are allowed, although IDNA 2008 excludes
    them: such names are registered. UnicodeError for what is no name: forbidden characters, joiners out of context,
    mixed directions, labels of more than 63 and names of more than 253 characters.
    """
    if "%" in host:
        host = urllib.parse.unquote(host, errors="strict")
    if host.isascii():
        return host.lower()
    if len(host) > MAX_NAME_CHARACTERS:  # Punycode never has fewer characters
        raise UnicodeError(f"a host name of {len(host)} characters")
    labels = [_wire_label(label) for label in idna.uts46_remap(host, std3_rules=False, transitional=False).split(".")]
    name = ".".join(labels)
    if len(name) > MAX_NAME_CHARACTERS + name.endswith("."):
        raise UnicodeError(f"a host name of {len(name)} characters")
    return name


def _wire_label(label: str) -> str:
    if label.isascii():
        return label
    idna.check_initial_combiner(label)
    idna.check_bidi(label)
    for position, character in enumerate(label):
        if character in JOINERS and not idna.valid_contextj(label, position):
            raise UnicodeError(f"a joiner at position {position + 1} of {label!r}")
    wire = f"xn--{label.encode('punycode').decode('ascii')}"
    if len(wire) > MAX_LABEL_CHARACTERS:
        raise UnicodeError(f"a label of {len(wire)} characters in a host name")
    return wire
