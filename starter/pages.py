"""The few pages that the links need."""

from markupsafe import Markup

_PAGE = Markup("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>{title}</title>
{head}</head>
<body>
<main>
<h1>{title}</h1>
<p>{text}</p>
<p><a rel="nofollow" href="{href}">{action}</a></p>
</main>
</body>
</html>
""")

_OPEN_GRAPH = Markup("""<meta property="og:type" content="website">
<meta property="og:site_name" content="KallyAI">
<meta property="og:title" content="{title}">
<meta property="og:description" content="{text}">
<meta property="og:url" content="{url}">
<meta name="description" content="{text}">
<meta name="twitter:card" content="summary">
""")

_INVITATION = "Get KallyAI with bonus minutes"
_OFFER = (
    "KallyAI makes phone calls for you. Sign up with this link: when you first pay for a plan, "
    "you and the friend who shared it both get 25% of your plan minutes as a bonus."
)


def preview(public_url: str, code: str, signup_url: str) -> str:
    """What a machine that unfurls a link sees, with a way on for a person who was taken for one (rule 17)."""
    head = _OPEN_GRAPH.format(title=_INVITATION, text=_OFFER, url=f"{public_url}/r/{code}")
    return str(_PAGE.format(title=_INVITATION, text=_OFFER, head=head, href=signup_url, action="Sign up"))


def unknown_link(signup_url: str) -> str:
    """What whoever mistyped a link sees."""
    return str(
        _PAGE.format(
            title="This invitation link does not work",
            text="It may have been mistyped or taken back. You are welcome all the same.",
            head="",
            href=signup_url,
            action="Sign up without an invitation",
        )
    )
