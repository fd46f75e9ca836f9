"""The plans, which are data (rule 4), and the bonus that each brings (rule 3)."""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

BONUS_SHARE = Fraction(25, 100)
"""What each side gets of the referee's plan minutes (rule 3)."""


class PlansError(Exception):
    """The plans file cannot be used; the message says where and why."""


def bonus_minutes(plan_minutes: int, share: Fraction = BONUS_SHARE) -> int:
    """The bonus for each side in whole minutes: 25% of the plan's, a half rounded to the even minute (rules 3 and 4).

    Args:
        plan_minutes: of a month of the plan.
        share: another one, where one is only tried.

    Raises:
        ValueError: a plan with no minutes, or fewer.
    """
    if plan_minutes < 1:
        raise ValueError(f"a plan has at least one minute, not {plan_minutes}")
    return round(plan_minutes * share)


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan as it is sold.

    Args:
        id: its name in answers, search attributes and the journal.
        name: its name for people.
        minutes: what one month of it holds, also where it is paid by the year (rule 14).
        price_cents: its monthly price in US cents.
        lookup_keys: the Stripe price lookup keys that sell it.
        prices: Stripe price ids that sell it and carry no lookup key.
        products: Stripe product ids all of whose prices sell it.
    """

    id: str
    name: str
    minutes: int
    price_cents: int
    lookup_keys: frozenset[str] = frozenset()
    prices: frozenset[str] = frozenset()
    products: frozenset[str] = frozenset()

    @property
    def bonus(self) -> int:
        """What each side gets when a referee first pays for this plan, in minutes (rule 3)."""
        return bonus_minutes(self.minutes)


@dataclass(frozen=True, slots=True)
class Price:
    """A Stripe price, as far as it is known: the lookup key and product may not have been seen yet."""

    id: str
    lookup_key: str | None = None
    product: str | None = None


@dataclass(frozen=True, slots=True)
class NotPlans:
    """What is sold and known to be no plan: nothing that was paid for it qualifies, and nobody is asked about it.

    Args:
        lookup_keys: Stripe price lookup keys.
        prices: Stripe price ids.
        products: Stripe product ids.
    """

    lookup_keys: frozenset[str] = frozenset()
    prices: frozenset[str] = frozenset()
    products: frozenset[str] = frozenset()


class Plans:
    """All plans on sale, and which of them a Stripe price sells."""

    def __init__(self, plans: Iterable[Plan], not_plans: NotPlans | None = None) -> None:
        """Take the plans in the order in which they are shown, and what is none.

        Raises:
            PlansError: no plan at all, or one id, lookup key, price or product that stands for two plans, or for one
                and for what is none.
        """
        self._plans = tuple(plans)
        self._not_plans = not_plans or NotPlans()
        if not self._plans:
            raise PlansError("there is no plan")
        ids = [plan.id for plan in self._plans]
        if twice := sorted({plan_id for plan_id in ids if ids.count(plan_id) > 1}):
            raise PlansError(f"id: {', '.join(map(repr, twice))} stands for more than one plan")
        self._by_price = self._index("prices")
        self._by_lookup_key = self._index("lookup_keys")
        self._by_product = self._index("products")

    def _index(self, field: str) -> Mapping[str, Plan | None]:
        index: dict[str, Plan | None] = dict.fromkeys(getattr(self._not_plans, field))
        for plan in self._plans:
            for key in getattr(plan, field):
                if key in index:
                    other = index[key]
                    both = f"{other.id!r} and {plan.id!r}" if other else f"{plan.id!r} and what is no plan"
                    raise PlansError(f"{field}: {key!r} stands for both {both}")
                index[key] = plan
        return index

    def __iter__(self) -> Iterator[Plan]:
        """The plans, in the order of the file."""
        return iter(self._plans)

    @property
    def not_plans(self) -> NotPlans:
        """What is sold and known to be no plan."""
        return self._not_plans

    def named(self, plan_id: str) -> Plan:
        """The plan of that id.

        Raises:
            KeyError: there is none.
        """
        for plan in self._plans:
            if plan.id == plan_id:
                return plan
        raise KeyError(plan_id)

    def sold_by(self, price: Price) -> Plan | None:
        """The plan that a price sells, by its id, else its lookup key, else its product; none if none is known to be.

        Whichever of the three is listed first decides, as a plan's or as what is no plan.
        """
        return next(self._listed(price), None)

    def place(self, price: Price) -> bool:
        """Whether it is known what a price sells: a plan, or what is none (rule 14)."""
        return any(True for _ in self._listed(price))

    def _listed(self, price: Price) -> Iterator[Plan | None]:
        named = ((self._by_price, price.id), (self._by_lookup_key, price.lookup_key), (self._by_product, price.product))
        return (index[key] for index, key in named if key is not None and key in index)


_TEXTS = ("id", "name")
_NUMBERS = ("minutes", "price_cents")
_LISTS = ("lookup_keys", "prices", "products")


def _lists(where: str, entry: Mapping[str, object]) -> dict[str, frozenset[str]]:
    """The lists by which prices are recognised."""
    lists: dict[str, frozenset[str]] = {}
    for key in _LISTS:
        values = entry.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
            raise PlansError(f"{where}: {key} must be a list of texts")
        lists[key] = frozenset(values)
    return lists


def _not_plans(entry: object) -> NotPlans:
    if not isinstance(entry, dict):
        raise PlansError("what is no plan is one table, [not_plans]")
    if unknown := sorted(set(entry) - {*_LISTS}):
        raise PlansError(f"not_plans: unknown: {', '.join(unknown)}")
    return NotPlans(**_lists("not_plans", entry))


def _plan(number: int, entry: object) -> Plan:
    if not isinstance(entry, dict):
        raise PlansError(f"plan {number}: each plan is a table, [[plan]]")
    where = f"plan {number} ({entry.get('id', 'without an id')})"
    if unknown := sorted(set(entry) - {*_TEXTS, *_NUMBERS, *_LISTS}):
        raise PlansError(f"{where}: unknown: {', '.join(unknown)}")
    for key in _TEXTS:
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise PlansError(f"{where}: {key} must be a text")
    for key in _NUMBERS:
        if type(entry.get(key)) is not int or entry[key] < 1:
            raise PlansError(f"{where}: {key} must be a whole number of at least 1")
    if bonus_minutes(entry["minutes"]) < 1:
        raise PlansError(f"{where}: {entry['minutes']} minutes bring a bonus of none")
    lists = _lists(where, entry)
    if not any(lists.values()):
        raise PlansError(f"{where}: no Stripe price sells it; give it lookup_keys, prices or products")
    return Plan(
        id=entry["id"],
        name=entry["name"],
        minutes=entry["minutes"],
        price_cents=entry["price_cents"],
        **lists,
    )


def load_plans(path: Path) -> Plans:
    """Read ``plans.toml``.

    Raises:
        PlansError: the file is missing, is no TOML, or holds what is no plan; the message names file and place.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        if unknown := sorted(set(document) - {"plan", "not_plans"}):
            raise PlansError(f"unknown: {', '.join(unknown)}")
        entries = document.get("plan", [])
        if not isinstance(entries, list):
            raise PlansError("plans are a list of tables, [[plan]]")
        plans = [_plan(number, entry) for number, entry in enumerate(entries, start=1)]
        return Plans(plans, _not_plans(document.get("not_plans", {})))
    except OSError as error:
        raise PlansError(f"{path}: {error.strerror}") from error
    except (PlansError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlansError(f"{path}: {error}") from error
