"""Where webhooks may go."""

from __future__ import annotations

import ipaddress

import pytest

from service.contract.errors import BadWebhook
from service.contract.jobs.webhooks import check_address, check_webhook_url


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/hooks/ppl?x=1",
        "http://example.org:8080",
        "https://93.184.216.34/",
        "https://[2606:2800:220:1:248:1893:25c8:1946]:444/a",
        "https://localhost.example.org/",
    ],
)
def test_public_addresses_are_taken(url):
    assert check_webhook_url(url, private=False) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        None,
        7,
        "example.org/hooks",
        "ftp://example.org/",
        "file:///etc/passwd",
        "https://",
        "https://user:secret@example.org/",
        "https://example.org:99999/",
        "https://example.org:0/",
        "https://exa mple.org/",
        "https://exämple.org/",
        "https://example.org/\nx",
        "https://[::1/",
        "https://example.org/" + "a" * 2000,
    ],
)
@pytest.mark.parametrize("private", [False, True])
def test_what_is_no_address_is_refused(url, private):
    with pytest.raises(BadWebhook, match="webhook_url"):
        check_webhook_url(url, private=private)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "0x7f000001",
        "2130706433",
        "0177.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "[::1]",
        "[::]",
        "[fe80::1]",
        "[fe80::1%25eth0]",
        "[fc00::1]",
        "[ff02::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:10.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fec0::1]",
        "[::127.0.0.1]",
        "[::ffff:0:127.0.0.1]",
        "[64:ff9b:1::7f00:1]",
        "localhost",
        "LOCALHOST.",
        "x.localhost",
    ],
)
def test_private_addresses_are_refused_unless_allowed(host):
    url = f"http://{host}:8080/hook"
    with pytest.raises(BadWebhook, match="private"):
        check_webhook_url(url, private=False)
    assert check_webhook_url(url, private=True) == url


def test_what_a_name_leads_to_is_checked_the_same_way():
    with pytest.raises(BadWebhook, match=r"evil\.example \(10\.0\.0\.8\)"):
        check_address(ipaddress.ip_address("10.0.0.8"), "evil.example")
    for public in ("8.8.8.8", "64:ff9b::808:808", "::ffff:8.8.8.8", "2606:4700::1111"):
        check_address(ipaddress.ip_address(public), "dns.example")
