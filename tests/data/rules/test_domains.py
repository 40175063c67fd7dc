"""Whose site a URL is on."""

import pytest

from x2vlm.data.rules.domains import registered_domain


@pytest.mark.parametrize(
    ("url", "domain"),
    [
        ("http://Example.COM/a.jpg", "example.com"),
        ("https://cdn.img.example.com:8443/a?b", "example.com"),
        ("http://cdn.shop.example.co.uk/x", "example.co.uk"),
        ("http://example.co.uk/x", "example.co.uk"),
        ("http://co.uk/x", "co.uk"),
        ("http://a.b.t.co/x", "t.co"),
        ("http://anna.blogspot.com/x", "anna.blogspot.com"),
        ("http://img.anna.blogspot.com/x", "anna.blogspot.com"),
        ("http://blogspot.com/x", "blogspot.com"),
        ("http://example.com./x", "example.com"),
        ("http://192.0.2.7/x", "192.0.2.7"),
        ("http://[2001:db8::1]:80/x", "2001:db8::1"),
        ("http://localhost/x", "localhost"),
        ("http://[broken/x", ""),
        ("no url", ""),
    ],
)
def test_the_registered_domain(url: str, domain: str) -> None:
    assert registered_domain(url) == domain
