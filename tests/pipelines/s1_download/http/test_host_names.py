"""Whose host is asked for an international name: browsers' rules (UTS 46), with the vectors of its own documents."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.s1_download.http.guard import Refusal, parse_target


@pytest.mark.parametrize(
    ("host", "wire"),
    [
        # Deviations: IDNA 2003, and so Python's codec, asks other domains for these four (UTS 46, section 7, table 1).
        ("straße.de", "xn--strae-oqa.de"),
        ("βόλος.com", "xn--nxasmm1c.com"),
        ("ශ්‍රී.com", "xn--10cl1a0b660p.com"),
        ("نامه‌ای.com", "xn--mgba3gch31f060k.com"),
        # Its capital is the same letter since Unicode 15.1.
        ("STRAẞE.de", "xn--strae-oqa.de"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.Example", "xn--bcher-kva.example"),
        ("b\u0075\u0308cher.example", "xn--bcher-kva.example"),
        ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
        ("ｅｘａｍｐｌｅ．com", "example.com"),
        ("i❤.ws", "xn--i-7iq.ws"),
        ("ü_1.example", "xn--_1-wka.example"),
        ("xn--bcher-kva.müller.example", "xn--bcher-kva.xn--mller-kva.example"),
        ("b%C3%BCcher.example", "xn--bcher-kva.example"),
        ("ex%61mple.com", "example.com"),
    ],
)
def test_a_name_is_asked_as_browsers_ask_it(host: str, wire: str) -> None:
    assert parse_target(f"http://{host}/x.jpg").url == f"http://{wire}/x.jpg"


@pytest.mark.parametrize(
    "host",
    ["a\u200db.com", "\u0301a.com", "ü" * 64, "ü." * 150, "a\u2028ü.com", "\u05d0b.com", "%FF.com", "%2F.com", "a%00ü",
     "ü%40b.com", "\ufdd0.com"],
)  # fmt: skip
def test_what_is_no_name_is_refused_by_name(host: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse_target(f"http://{host}/x.jpg")
    assert caught.value.rule == "url_malformed"


@pytest.mark.parametrize("host", ["①②⑦.⓪.⓪.①", "%31%32%37.0.0.1", "１２７.0.0.1", "127。0。0。1"])
def test_an_address_in_other_digits_is_an_address(host: str) -> None:
    assert parse_target(f"http://{host}/").host == "127.0.0.1"


@settings(max_examples=50)
@given(st.text(st.characters(min_codepoint=0x80), min_size=1, max_size=70), st.text("ab.-%_ß\u200d", max_size=20))
def test_any_name_is_ascii_that_means_itself_or_a_refusal(name: str, more: str) -> None:
    try:
        target = parse_target(f"http://{name}{more}/")
    except Refusal:
        return
    assert target.url.isascii()
    assert parse_target(target.url) == target
