"""Who follows a link: a person, a machine, or a browser that only looks ahead (rule 17)."""

from collections.abc import Mapping
from enum import Enum, auto
from functools import lru_cache

from crawlerdetect import CrawlerDetect

LONGEST_AGENT = 1024
"""How much of a `User-Agent` is looked at, in characters: browsers in apps send some hundred, an attacker 60000."""

AGENTS_KEPT = 1000
"""Of how many agents it is remembered whether they are a machine's: a megabyte at most, whatever is sent."""

_PREFETCH_HEADERS = ("sec-purpose", "purpose", "x-purpose", "x-moz")
_PREFETCH_WORDS = ("prefetch", "prerender", "preview")


class Visitor(Enum):
    """Who follows a link."""

    PERSON = auto()
    MACHINE = auto()
    PREFETCH = auto()


def visitor(method: str, headers: Mapping[str, str]) -> Visitor:
    """Tell a person's click from a machine's (rule 17).

    Args:
        method: the request's method; `HEAD` is a machine's.
        headers: its headers, by lower-case name.
    """
    looks_ahead = any(word in headers.get(name, "").lower() for name in _PREFETCH_HEADERS for word in _PREFETCH_WORDS)
    if looks_ahead:
        return Visitor.PREFETCH
    agent = headers.get("user-agent", "").strip()[:LONGEST_AGENT]
    if method == "HEAD" or not agent or _is_crawler(agent):
        return Visitor.MACHINE
    return Visitor.PERSON


@lru_cache(maxsize=AGENTS_KEPT)
def _is_crawler(agent: str) -> bool:
    # A thousand patterns: a millisecond or more, and most visitors' browsers are alike.
    return bool(CrawlerDetect(user_agent=agent).isCrawler())
