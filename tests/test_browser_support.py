"""What the tests of the pages would complain of: a page that has everything that none of ours may have."""

import pytest

from tests.browser_support import PHONE, Person, Site, Wire, assert_stands_still

pytestmark = pytest.mark.asyncio(loop_scope="module")

BAD = """<!doctype html><html lang="en"><head><title>Bad</title><script src="/bad.js"></script></head><body>
<h1>Bad</h1><p id="pale">Pale words</p><p style="color: red">Red words</p><img src="http://elsewhere.example/a.png">
<button id="bare"></button><div id="wide">wide</div><a href="/bad">unmarked</a></body></html>"""
STYLE = (
    "#pale { color: #ccc } #wide { width: 500px; background: #eee } a:focus { outline: none } #wide { margin-top: 0 }"
)
SCRIPT = """
console.error('said aloud');
fetch('/nowhere').then((answer) => answer.text());
addEventListener('load', () => { undefinedName; });
requestAnimationFrame(() => requestAnimationFrame(() => {
    document.querySelector('h1').before(Object.assign(document.createElement('div'), {innerHTML: '<h2>late</h2>'}));
}));
"""


async def _show(person: Person) -> None:
    page = person.page
    policy = {"Content-Security-Policy": "default-src 'self'; img-src *; style-src 'self'"}
    head = '<link rel="stylesheet" href="/bad.css"></head>'
    await page.route("**/bad", lambda route: route.fulfill(body=BAD.replace("</head>", head), headers=policy))
    await page.route("**/bad.js", lambda route: route.fulfill(body=SCRIPT, content_type="text/javascript"))
    await page.route("**/bad.css", lambda route: route.fulfill(body=STYLE, content_type="text/css"))
    await page.route("http://elsewhere.example/**", lambda route: route.abort())


async def test_a_bad_page_is_complained_of(site: Site) -> None:
    async with site.person(viewport={"width": 360, "height": 740}) as person:
        await _show(person)
        await person.page.goto(f"{site.address}/bad", wait_until="networkidle")
        with pytest.raises(AssertionError, match="wide"):
            await person.assert_nothing_hangs_over()
        with pytest.raises(AssertionError, match="not marked"):
            await person.tabbed_through()
        with pytest.raises(AssertionError) as found:
            await person.assert_accessible()
        for rule in ("color-contrast", "image-alt", "button-name"):
            assert f"\n{rule}: " in str(found.value)
        with pytest.raises(AssertionError, match="moves"):
            await assert_stands_still(person.page)
        with pytest.raises(AssertionError) as complaints:
            person.assert_content()
        person.complaints.clear()
    for complaint in (
        "console: said aloud",
        "status 404: GET",
        "script: undefinedName is not defined",
        "another host is asked: http://elsewhere.example/a.png",
        "failed: GET http://elsewhere.example/a.png",
        "Content Security Policy",
    ):
        assert complaint in str(complaints.value)


async def test_what_comes_over_the_wire_is_counted(site: Site) -> None:
    async with site.person(PHONE) as person:
        wire = await Wire().watch(person)
        await person.open("/healthz")
        assert list(wire.sizes) == [f"{site.address}/healthz"]
        assert 100 < wire.total < 1_000, str(wire)
