"""What a browser says that it would rather have: languages, encodings."""

_LONGEST = 200
"""How much of a header is looked at, in characters."""


def preferences(header: str) -> list[str]:
    """What a header like `Accept-Language` names, in small letters, the most wanted first; not what it refuses."""
    weighted: list[tuple[float, str]] = []
    for part in header[:_LONGEST].lower().split(","):
        name, _, parameter = part.partition(";")
        quality = parameter.strip().removeprefix("q=")
        try:
            weighted.append((float(quality or 1), name.strip()))
        except ValueError:
            continue
    return [name for weight, name in sorted(weighted, key=lambda each: -each[0]) if weight > 0]


def takes_gzip(accept_encoding: str) -> bool:
    """Whether an answer may be compressed."""
    return "gzip" in preferences(accept_encoding)
