"""Which requests go through which proxy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstream.config import Settings
from bootstream.errors import InvalidInput
from bootstream.proxies import (
    NO_PROXIES,
    Proxies,
    is_loopback,
    proxy_authorization,
    without_credentials,
)

URL = "https://objectstorage.us-ashburn-1.oraclecloud.com/n"
PLAIN = "http://registry.example.com:5000/v2/"


def chosen(url: str = URL, **environ: str) -> str | None:
    """What is chosen for a URL in an environment."""
    return Proxies.from_environment(environ).for_url(url)


def test_nothing_is_set() -> None:
    """An empty environment has no proxies."""
    assert Proxies.from_environment({}) == NO_PROXIES
    assert NO_PROXIES.for_url(URL) is None
    assert NO_PROXIES.for_url(PLAIN) is None


def test_each_scheme_has_its_own() -> None:
    """A variable holds for URLs of its scheme alone."""
    assert chosen(HTTPS_PROXY="http://p:3128") == "http://p:3128"
    assert chosen(PLAIN, HTTPS_PROXY="http://p:3128") is None
    assert chosen(PLAIN, HTTP_PROXY="http://p:3128") == "http://p:3128"
    assert chosen(HTTP_PROXY="http://p:3128") is None


def test_all_proxy_is_for_those_that_have_none() -> None:
    """ALL_PROXY is asked last, and not where the scheme's variable is empty on purpose."""
    assert chosen(ALL_PROXY="http://all:1") == "http://all:1"
    assert chosen(all_proxy="http://all:1", https_proxy="http://p:2") == "http://p:2"
    assert chosen(all_proxy="http://all:1", https_proxy="") is None


def test_lower_case_wins() -> None:
    """Of two spellings, the lower case one counts, also when it is empty."""
    both = {"https_proxy": "http://lower:1", "HTTPS_PROXY": "http://upper:2"}
    assert chosen(**both) == "http://lower:1"
    assert chosen(https_proxy="", HTTPS_PROXY="http://upper:2") is None


def test_cgi_requests_choose_no_proxy() -> None:
    """Under CGI, HTTP_PROXY is what a stranger sent; lower case and HTTPS_PROXY are not."""
    assert chosen(PLAIN, HTTP_PROXY="http://evil:1", REQUEST_METHOD="GET") is None
    assert chosen(PLAIN, http_proxy="http://p:1", REQUEST_METHOD="GET") == "http://p:1"
    assert chosen(HTTPS_PROXY="http://p:1", REQUEST_METHOD="GET") == "http://p:1"


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ("p:3128", "http://p:3128"),
        ("http://p", "http://p:80"),
        ("https://p/", "https://p:443"),
        ("http://user:pa%40ss@p:1/", "http://user:pa%40ss@p:1"),
        ("http://[fd00::1]:3128", "http://[fd00::1]:3128"),
    ],
)
def test_the_url_is_made_whole(given: str, whole: str) -> None:
    """Scheme and port are added where they are left out."""
    assert chosen(HTTPS_PROXY=given) == whole


@pytest.mark.parametrize(
    "text", ["socks5://user:secret@p:1080", "http://", "http://secret@p:port", "http://se cret"]
)
def test_what_is_no_proxy_is_an_error_on_use(text: str) -> None:
    """A value that cannot be used is told without being repeated; and only when needed."""
    proxies = Proxies.from_environment({"HTTPS_PROXY": text, "NO_PROXY": "near.example"})
    assert proxies.for_url("https://near.example/") is None
    with pytest.raises(InvalidInput) as caught:
        proxies.for_url(URL)
    assert caught.value.object == "HTTPS_PROXY"
    assert "secret" not in f"{caught.value} {caught.value.remedy}"


@pytest.mark.parametrize(
    ("entry", "host", "direct"),
    [
        ("*", "a.example.com", True),
        ("example.com", "example.com", True),
        ("example.com", "a.b.EXAMPLE.com", True),
        ("example.com", "notexample.com", False),
        (".example.com", "a.example.com", True),
        ("*.example.com", "a.example.com", True),
        ("example.com", "example.com.", True),
        ("other, example.com", "example.com", True),
        ("other example.com", "example.com", True),
        ("example.com:8443", "example.com:8443", True),
        ("example.com:8443", "example.com", False),
        ("example.com:443", "example.com", True),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.0.0.0/99", "10.1.2.3", False),
        ("10.0.0.0/8", "ten.example.com", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("2.3", "10.1.2.3", False),
        ("10.1.2.3:80", "10.1.2.3", False),
        ("fd00::1", "[fd00::0001]", True),
        ("[fd00::1]", "[fd00::1]", True),
        ("[fd00::1]:8443", "[fd00::1]:8443", True),
        ("fd00::/8", "[fd12::1]", True),
        (".", "example.com", False),
        ("", "example.com", False),
    ],
)
def test_no_proxy(entry: str, host: str, direct: bool) -> None:
    """Entries name hosts, suffixes, addresses, networks and ports."""
    found = chosen(f"https://{host}/x", HTTPS_PROXY="http://p:1", NO_PROXY=entry)
    assert (found is None) == direct


@pytest.mark.parametrize(
    "host", ["127.0.0.1:99", "127.9.9.9", "[::1]:99", "localhost", "LOCALHOST.", "a.localhost"]
)
def test_loopback_is_never_asked_through_a_proxy(host: str) -> None:
    """What is on this machine is asked directly, whatever the variables say."""
    assert chosen(f"https://{host}/", ALL_PROXY="http://p:1") is None


def test_mapped_loopback() -> None:
    """An IPv4 loopback address in IPv6 clothes is one, too."""
    assert is_loopback("::ffff:127.0.0.1")
    assert not is_loopback("::ffff:10.0.0.1")


def test_credentials_are_sent_and_never_shown() -> None:
    """User and password are percent-decoded for the header, and in no text for people."""
    environ = {"HTTPS_PROXY": "http://us%3Aer:pa%40ss@p:1"}
    proxies = Proxies.from_environment(environ)
    assert "pa%40ss" not in repr(proxies)
    url = proxies.for_url(URL)
    assert url is not None
    assert proxy_authorization(url) == "Basic dXM6ZXI6cGFAc3M="
    assert without_credentials(url) == "http://p:1"
    assert proxy_authorization("http://p:1") is None


def test_settings_have_them() -> None:
    """The settings of a process have its proxies, and do not show their passwords."""
    settings = Settings.from_environment({"HTTPS_PROXY": "http://u:secret@p:1"})
    assert settings.proxies.for_url(URL) == "http://u:secret@p:1"
    assert "secret" not in repr(settings)


@given(st.dictionaries(st.sampled_from(["http_proxy", "HTTPS_PROXY", "NO_PROXY"]), st.text()))
def test_any_environment_gives_a_proxy_none_or_an_error(environ: dict[str, str]) -> None:
    """No value of a variable does anything else."""
    proxies = Proxies.from_environment(environ)
    for url in (URL, PLAIN, "https://10.0.0.1:8443/", "ftp://x/", "nonsense"):
        try:
            found = proxies.for_url(url)
        except InvalidInput:
            continue
        assert found is None or found.startswith(("http://", "https://"))
