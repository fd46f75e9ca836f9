"""The picture that a shared link unfurls with, drawn from the plans."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

from program.plans import Plan, Plans

NAME = "invitation.png"
"""What it is called among the assets."""

WIDTH, HEIGHT = 1200, 630
"""Its size in pixels: what messengers and networks show whole."""

MOST_PLANS = 4
"""How many plans find room; of more, the first are shown."""

# The colours of the light scheme: a picture cannot know which one its reader prefers.
_PAPER = "#fffaf3"
_RAISED = "#ffffff"
_INK = "#221a14"
_SOFT_INK = "#665a4f"
_LINE = "#e6d9c8"
_ACCENT = "#ff7a59"
_ACCENT_DEEP = "#b23a18"

# Shapes are drawn twice as large and then made smaller, for smooth edges; letters are smooth by themselves.
_FINER = 2

_MARGIN = 64
_GAP = 20

Box = tuple[int, int, int, int]
"""Left, top, right and bottom, in pixels of the picture."""


def shown_plans(plans: Plans) -> Sequence[Plan]:
    """The plans that the picture has room for."""
    return tuple(plans)[:MOST_PLANS]


def alternative(plans: Plans) -> str:
    """What the picture shows, in words."""
    each = ", ".join(f"{plan.name} {plan.bonus}" for plan in shown_plans(plans))
    return f"KallyAI: bonus minutes for you and for the friend who invites you. Each gets, by plan: {each}."


def draw(plans: Plans) -> bytes:
    """The picture as a PNG, the same bytes for the same plans."""
    shown = shown_plans(plans)
    picture = _shapes(len(shown))
    letters = _Letters(ImageDraw.Draw(picture))
    _write_headline(letters)
    for said in _CONVERSATION:
        letters.write(said.left + _INSET, said.top + 46, said.words, *_SAID, _INK)
    best = max(shown, key=lambda plan: plan.bonus)
    for plan, box in zip(shown, _plan_boxes(len(shown)), strict=True):
        _write_plan(letters, plan, box, stands_out=plan is best)
    out = BytesIO()
    # Few colours and large areas: a palette makes it a fifth of the size, and nobody sees it.
    picture.quantize(128, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


_INSET = 28
_SAID = ("SemiBold", 27)


@dataclass(frozen=True, slots=True)
class _Said:
    """One bubble of the conversation; the reader's own are on the right."""

    words: str
    top: int
    own: bool

    @property
    def width(self) -> int:
        return round(_font(*_SAID).getlength(self.words)) + 2 * _INSET

    @property
    def left(self) -> int:
        return WIDTH - _MARGIN - self.width if self.own else 704


_CONVERSATION = (
    _Said("Try KallyAI with my link.", 66, own=False),
    _Said("What do I get?", 154, own=True),
    _Said("Bonus minutes. Me too.", 242, own=False),
)


def _plan_boxes(count: int) -> list[Box]:
    width = (WIDTH - 2 * _MARGIN - (count - 1) * _GAP) // count
    return [(left, 384, left + width, 572) for left in (_MARGIN + place * (width + _GAP) for place in range(count))]


def _shapes(plans: int) -> Image.Image:
    """Everything but the letters."""
    fine = Image.new("RGB", (WIDTH * _FINER, HEIGHT * _FINER), _PAPER)
    pen = ImageDraw.Draw(fine)
    _mark(pen, _MARGIN - 5, 60)
    for said in _CONVERSATION:
        box = (said.left, said.top, said.left + said.width, said.top + 72)
        _bubble(pen, box, 32, fill=_ACCENT if said.own else _RAISED, sharp_right=said.own, outlined=not said.own)
    for box in _plan_boxes(plans):
        _bubble(pen, box, 36, fill=_RAISED, sharp_right=False, outlined=True)
    return fine.reduce(_FINER)


def _bubble(pen: ImageDraw.ImageDraw, box: Box, radius: int, *, fill: str, sharp_right: bool, outlined: bool) -> None:
    """A speech bubble: round but for the lower corner on the side of who speaks."""
    left, top, right, bottom = (side * _FINER for side in box)
    outline, width = (_LINE, 2 * _FINER) if outlined else (None, 1)
    corners = (True, True, not sharp_right, sharp_right)
    pen.rounded_rectangle((left, top, right, bottom), radius * _FINER, fill, outline, width, corners=corners)


def _mark(pen: ImageDraw.ImageDraw, left: int, top: int) -> None:
    """KallyAI's mark: a bubble with a voice in it."""
    side = 56

    def at(x: float, y: float) -> tuple[float, float]:
        return (left + x * side / 32) * _FINER, (top + y * side / 32) * _FINER

    pen.ellipse((*at(3, 3), *at(29, 27)), fill=_ACCENT)
    pen.polygon([at(3, 29), at(5.2, 20), at(12, 26.4)], fill=_ACCENT)
    for x, upper, lower in ((10, 13, 17), (14, 10, 20), (18, 12, 18), (22, 14, 16)):
        (x0, y0), (x1, y1) = at(x - 1.2, upper - 1.2), at(x + 1.2, lower + 1.2)
        pen.rounded_rectangle((x0, y0, x1, y1), (x1 - x0) / 2, _INK)


@cache
def _font(weight: str, size: int) -> ImageFont.FreeTypeFont:
    file = files("font_manrope") / "files" / f"Manrope-{weight}.ttf"
    return ImageFont.truetype(BytesIO(file.read_bytes()), size)


class _Letters:
    """Writes on the picture."""

    def __init__(self, pen: ImageDraw.ImageDraw) -> None:
        self._pen = pen

    def write(self, x: float, y: float, words: str, weight: str, size: int, colour: str) -> float:
        """Write from `x` on the base line `y`; gives where it ends."""
        font = _font(weight, size)
        self._pen.text((x, y), words, colour, font, anchor="ls")
        return x + font.getlength(words)

    def fit(self, words: str, weight: str, size: int, smallest: int, width: int) -> tuple[str, int]:
        """The words, shortened if need be, and the size in which they are no wider than that."""
        while _font(weight, size).getlength(words) > width and size > smallest:
            size -= 2
        font, whole = _font(weight, size), words
        while words and font.getlength(words) > width:
            whole = whole[:-1]
            words = f"{whole.rstrip()}…" if whole else ""
        return words, size


def _write_headline(letters: _Letters) -> None:
    end = letters.write(_MARGIN + 66, 99, "Kally", "Bold", 36, _INK)
    letters.write(end, 99, "AI", "ExtraBold", 36, _ACCENT_DEEP)
    # A wide letter's own margin would make the lines begin a little to the right of what stands below.
    letters.write(_MARGIN - 4, 204, "Bonus minutes", "ExtraBold", 78, _INK)
    letters.write(_MARGIN - 2, 288, "for both of you", "ExtraBold", 78, _INK)
    letters.write(_MARGIN, 360, "With the first payment for a plan:", "Medium", 26, _SOFT_INK)


def _write_plan(letters: _Letters, plan: Plan, box: Box, *, stands_out: bool) -> None:
    left, top, right, _ = box
    x, room = left + 32, right - left - 2 * 32
    name, size = letters.fit(plan.name, "SemiBold", 30, 22, room)
    letters.write(x, top + 54, name, "SemiBold", size, _SOFT_INK)
    # A number is never shortened.
    minutes, size = letters.fit(f"+{plan.bonus}", "ExtraBold", 72, 20, room)
    letters.write(x - 2, top + 124, minutes, "ExtraBold", size, _ACCENT_DEEP if stands_out else _INK)
    letters.write(x, top + 160, "minutes each", "Medium", 24, _SOFT_INK)
