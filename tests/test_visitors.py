"""Who follows a link: persons, machines, prefetches (rule 17)."""

import time

import pytest

from starter.visitors import Visitor, visitor

PERSONS = {
    "Safari on iPhone": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) Version/18.6 Mobile/15E148 Safari/604.1",
    "Chrome on Android": "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/139.0.0.0 Mobile Safari/537.36",
    "Samsung Internet": "Mozilla/5.0 (Linux; Android 14; SAMSUNG SM-S918B) AppleWebKit/537.36 (KHTML, like Gecko) "
    "SamsungBrowser/28.0 Chrome/130.0.0.0 Mobile Safari/537.36",
    "Chrome on Windows": "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/139.0.0.0 Safari/537.36",
    "Edge on Windows": "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/139.0.0.0 Safari/537.36 Edg/139.0.0.0",
    "Firefox on Linux": "Mozilla/5.0 (X11; Linux x86_64; rv:142.0) Gecko/20100101 Firefox/142.0",
    "Safari on a Mac": "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.6 Safari/605.1.15",
    "Chrome on iPhone": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) CriOS/139.0.7258.76 Mobile/15E148 Safari/604.1",
    "inside Instagram": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) Mobile/15E148 Instagram 391.0.0.30.84 (iPhone15,3; iOS 18_6; en_US; en; scale=3.00; "
    "1290x2796; 768011632)",
    "inside Facebook on iPhone": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) Mobile/15E148 [FBAN/FBIOS;FBAV/524.0.0.35.90;FBBV/762349132;FBDV/iPhone15,3;FBMD/iPhone;"
    "FBSN/iOS;FBSV/18.6;FBSS/3;FBCR/;FBID/phone;FBLC/en_US;FBOP/80]",
    "inside Facebook on Android": "Mozilla/5.0 (Linux; Android 14; SM-S918B Build/UP1A.231005.007; wv) "
    "AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 Chrome/139.0.7258.62 Mobile Safari/537.36 "
    "[FB_IAB/FB4A;FBAV/524.0.0.33.58;IABMV/1;]",
    "inside Messenger": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) Mobile/15E148 [FBAN/MessengerForiOS;FBAV/520.0.0.37.108;FBDV/iPhone15,3;FBSN/iOS;FBSV/18.6]",
    "inside LinkedIn": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) Mobile/15E148 [LinkedInApp]/9.31.1665",
    "inside X": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Mobile/15E148 Twitter for iPhone/11.11",
    "inside TikTok": "Mozilla/5.0 (Linux; Android 14; SM-S918B Build/UP1A.231005.007; wv) AppleWebKit/537.36 "
    "(KHTML, like Gecko) Version/4.0 Chrome/138.0.7204.179 Mobile Safari/537.36 musical_ly_2024105030 "
    "JsSdk/1.0 NetType/WIFI Channel/googleplay AppName/musical_ly app_version/41.5.3 ByteLocale/en",
    "inside WeChat": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) Mobile/15E148 MicroMessenger/8.0.61(0x18003d2c) NetType/WIFI Language/en",
    "inside Line": "Mozilla/5.0 (Linux; Android 14; SM-S918B Build/UP1A.231005.007; wv) AppleWebKit/537.36 "
    "(KHTML, like Gecko) Version/4.0 Chrome/139.0.7258.62 Mobile Safari/537.36 Line/15.12.1/IAB",
    "inside Snapchat": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) Mobile/15E148 Snapchat/13.54.0.50 (like Safari/8621.3.11, panda)",
    "inside the Google app": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) GSA/382.0.794785026 Mobile/15E148 Safari/604.1",
    "on a phone whose maker is called Cubot": "Mozilla/5.0 (Linux; Android 13; CUBOT_X70) AppleWebKit/537.36 "
    "(KHTML, like Gecko) Chrome/139.0.0.0 Mobile Safari/537.36",
}

MACHINES = {
    "WhatsApp": "WhatsApp/2.24.20.89 A",
    "WhatsApp on iPhone": "WhatsApp/2.24.21.79 i",
    "Facebook": "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
    "Facebook's catalogue": "facebookcatalog/1.0",
    "iMessage": "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_11_1) AppleWebKit/601.2.4 (KHTML, like Gecko) "
    "Version/9.0.1 Safari/601.2.4 facebookexternalhit/1.1 Facebot Twitterbot/1.0",
    "X": "Twitterbot/1.0",
    "Slack": "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)",
    "Telegram": "TelegramBot (like TwitterBot)",
    "Discord": "Mozilla/5.0 (compatible; Discordbot/2.0; +https://discordapp.com)",
    "LinkedIn": "LinkedInBot/1.0 (compatible; Mozilla/5.0; Apache-HttpClient +http://www.linkedin.com)",
    "Skype and Teams": "Mozilla/5.0 (Windows NT 6.1; WOW64) SkypeUriPreview Preview/0.5 "
    "skype-url-preview@microsoft.com",
    "Google": "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Google for phones": "Mozilla/5.0 (Linux; Android 6.0.1; Nexus 5X Build/MMB29P) AppleWebKit/537.36 "
    "(KHTML, like Gecko) Chrome/139.0.0.0 Mobile Safari/537.36 (compatible; Googlebot/2.1; "
    "+http://www.google.com/bot.html)",
    "Bing": "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
    "curl": "curl/8.5.0",
    "wget": "Wget/1.21.4",
    "Python": "python-requests/2.32.3",
    "Go": "Go-http-client/2.0",
    "nobody": "",
    "blanks": "   ",
}


@pytest.mark.parametrize("agent", PERSONS.values(), ids=PERSONS.keys())
def test_rule_17_a_person_is_a_person_in_whatever_browser(agent: str) -> None:
    assert visitor("GET", {"user-agent": agent}) is Visitor.PERSON


@pytest.mark.parametrize("agent", MACHINES.values(), ids=MACHINES.keys())
def test_rule_17_link_previews_and_crawlers_are_machines(agent: str) -> None:
    assert visitor("GET", {"user-agent": agent}) is Visitor.MACHINE


def test_rule_17_who_names_no_browser_is_a_machine() -> None:
    assert visitor("GET", {}) is Visitor.MACHINE


def test_rule_17_head_is_a_machines_method() -> None:
    assert visitor("HEAD", {"user-agent": PERSONS["Safari on iPhone"]}) is Visitor.MACHINE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sec-purpose", "prefetch"),
        ("sec-purpose", "prefetch;prerender"),
        ("sec-purpose", "prefetch;anonymous-client-ip"),
        ("purpose", "prefetch"),
        ("purpose", "Prefetch"),
        ("x-purpose", "preview"),
        ("x-moz", "prefetch"),
    ],
)
def test_rule_17_a_browser_that_looks_ahead_is_a_prefetch(name: str, value: str) -> None:
    assert visitor("GET", {"user-agent": PERSONS["Chrome on Android"], name: value}) is Visitor.PREFETCH


def test_rule_17_a_fetch_with_another_purpose_is_a_visit() -> None:
    assert visitor("GET", {"user-agent": PERSONS["Chrome on Android"], "sec-purpose": "navigate"}) is Visitor.PERSON


@pytest.mark.parametrize("piece", ["a", "(", "Mozilla/5.0 ", "bo ", "\xff"])
def test_an_endless_user_agent_costs_no_time(piece: str) -> None:
    # What is made at the first one of all is not of its length.
    visitor("GET", {"user-agent": "Mozilla/5.0 (endless)"})
    began = time.thread_time()
    visitor("GET", {"user-agent": piece * (60_000 // len(piece))})
    took = time.thread_time() - began
    assert took < 0.25
