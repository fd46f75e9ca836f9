"""The plans and their bonus: rules 3 and 4, and the plans file itself."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from program.plans import Plan, Plans, PlansError, Price, bonus_minutes, load_plans
from runtime.settings import PROJECT

PRO = """
[[plan]]
id = "pro"
name = "Pro"
minutes = 360
price_cents = 2900
lookup_keys = ["pro"]
"""


def by_hand(minutes: int) -> int:
    """A quarter of the minutes, a half to the even minute, in whole numbers alone."""
    whole, quarters = divmod(minutes, 4)
    return whole + (1 if quarters == 3 or (quarters == 2 and whole % 2 == 1) else 0)


@pytest.mark.parametrize(
    ("plan_id", "name", "price_cents", "minutes", "bonus"),
    [("starter", "Starter", 900, 90, 22), ("pro", "Pro", 2900, 360, 90), ("power", "Power", 7900, 1200, 300)],
)
def test_rule_3_the_plans_on_sale_are_those_of_the_page(
    plans: Plans, plan_id: str, name: str, price_cents: int, minutes: int, bonus: int
) -> None:
    plan = plans.named(plan_id)

    assert (plan.name, plan.price_cents, plan.minutes, plan.bonus) == (name, price_cents, minutes, bonus)


def test_rule_3_there_are_no_other_plans_and_they_come_in_the_page_s_order(plans: Plans) -> None:
    assert [plan.id for plan in plans] == ["starter", "pro", "power"]


def test_rule_3_a_plan_that_is_not_on_sale_has_no_name(plans: Plans) -> None:
    with pytest.raises(KeyError):
        plans.named("enterprise")


@pytest.mark.parametrize(
    ("minutes", "bonus"), [(90, 22), (94, 24), (91, 23), (93, 23), (6, 2), (2, 0), (10, 2), (1, 0), (3, 1), (4, 1)]
)
def test_rule_4_the_nearest_minute_a_half_to_the_even_one(minutes: int, bonus: int) -> None:
    assert bonus_minutes(minutes) == bonus


@given(st.integers(min_value=1, max_value=10**40))
@example(2**55 + 2)  # A float has no room for its half.
@example(4 * 10**30 + 3)
def test_rule_4_the_bonus_is_exact_for_any_number_of_minutes(minutes: int) -> None:
    assert bonus_minutes(minutes) == by_hand(minutes)


def test_rule_4_the_bonus_is_exact_for_every_plan_that_a_person_could_use_up() -> None:
    # A month has 44 640 minutes.
    assert [minutes for minutes in range(1, 44_641) if bonus_minutes(minutes) != by_hand(minutes)] == []


@pytest.mark.parametrize("minutes", [0, -1, -360])
def test_rule_4_a_plan_without_minutes_has_no_bonus(minutes: int) -> None:
    with pytest.raises(ValueError, match=str(minutes)):
        bonus_minutes(minutes)


@pytest.mark.parametrize("plan_id", ["starter", "pro", "power"])
@pytest.mark.parametrize("ending", ["", "_monthly", "_yearly"])
def test_rule_4_each_plan_is_sold_by_the_month_and_by_the_year(plans: Plans, plan_id: str, ending: str) -> None:
    assert plans.sold_by(Price("price_any", lookup_key=plan_id + ending)) is plans.named(plan_id)


def test_rule_4_a_price_is_known_by_its_id_then_its_lookup_key_then_its_product() -> None:
    by_id = Plan("by_id", "By id", 100, 1, prices=frozenset({"price_1"}))
    by_key = Plan("by_key", "By key", 200, 1, lookup_keys=frozenset({"key"}))
    by_product = Plan("by_product", "By product", 300, 1, products=frozenset({"prod_1"}))
    plans = Plans([by_product, by_key, by_id])

    assert plans.sold_by(Price("price_1", "key", "prod_1")) is by_id
    assert plans.sold_by(Price("price_2", "key", "prod_1")) is by_key
    assert plans.sold_by(Price("price_2", "other", "prod_1")) is by_product
    assert plans.sold_by(Price("price_2", None, "prod_1")) is by_product
    assert plans.sold_by(Price("price_2", "other", "prod_2")) is None
    assert plans.sold_by(Price("price_2")) is None


def test_rule_4_an_id_is_no_lookup_key_and_no_product() -> None:
    plans = Plans([Plan("pro", "Pro", 360, 2900, frozenset({"a"}), frozenset({"b"}), frozenset({"c"}))])

    for price in (Price("a"), Price("c"), Price("x", "b"), Price("x", "c"), Price("x", "y", "a"), Price("x", "y", "b")):
        assert plans.sold_by(price) is None


def load(folder: Path, text: str | bytes) -> Plans:
    path = folder / "plans.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_plans(path)


def pro(**changes: str) -> str:
    """The file with one plan, some of its values replaced; an empty one is left out."""
    values = {"id": '"pro"', "name": '"Pro"', "minutes": "360", "price_cents": "2900", "lookup_keys": '["pro"]'}
    return "[[plan]]\n" + "".join(f"{key} = {value}\n" for key, value in {**values, **changes}.items() if value)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "there is no plan"),
        ("# nothing\n", "there is no plan"),
        ("plan = []", "there is no plan"),
        ("[[plan]\n", "line 1"),
        (PRO + "minutes = 1\n", "line 8"),
        (b"\xff\xfe", "utf-8"),
        ("plan = 7", "[[plan]]"),
        ("plan = ['pro']", "plan 1: each plan is a table"),
        ('[plan]\nid = "pro"\n', "[[plan]]"),
        ("[[plans]]\n", "unknown: plans"),
        (PRO + "[extra]\n", "unknown: extra"),
        ("[[plan]]\n", "plan 1 (without an id): id must be a text"),
        (pro(id=""), "plan 1 (without an id): id must be a text"),
        (pro(id="7"), "plan 1 (7): id must be a text"),
        (pro(id='" "'), "id must be a text"),
        (pro(name=""), "plan 1 (pro): name must be a text"),
        (pro(name="['Pro']"), "plan 1 (pro): name must be a text"),
        (pro(minutes=""), "plan 1 (pro): minutes must be a whole number of at least 1"),
        (pro(minutes="360.0"), "minutes must be a whole number"),
        (pro(minutes="true"), "minutes must be a whole number"),
        (pro(minutes='"360"'), "minutes must be a whole number"),
        (pro(minutes="0"), "minutes must be a whole number"),
        (pro(minutes="-360"), "minutes must be a whole number"),
        (pro(minutes="1"), "plan 1 (pro): 1 minutes bring a bonus of none"),
        (pro(minutes="2"), "plan 1 (pro): 2 minutes bring a bonus of none"),
        (pro(price_cents=""), "plan 1 (pro): price_cents must be a whole number of at least 1"),
        (pro(price_cents="29.00"), "price_cents must be a whole number"),
        (pro(price_cents="true"), "price_cents must be a whole number"),
        (pro(price_cents="0"), "price_cents must be a whole number"),
        (pro(price_cents="-1"), "price_cents must be a whole number"),
        (pro(lookup_keys=""), "plan 1 (pro): no Stripe price sells it"),
        (pro(lookup_keys="[]"), "plan 1 (pro): no Stripe price sells it"),
        (pro(lookup_keys='"pro"'), "plan 1 (pro): lookup_keys must be a list of texts"),
        (pro(lookup_keys="[1]"), "lookup_keys must be a list of texts"),
        (pro(lookup_keys="['']"), "lookup_keys must be a list of texts"),
        (pro(prices="'price_1'"), "plan 1 (pro): prices must be a list of texts"),
        (pro(products="[true]"), "plan 1 (pro): products must be a list of texts"),
        (pro(minuts="360"), "plan 1 (pro): unknown: minuts"),
        (PRO + pro(id='"power"', minutes="0"), "plan 2 (power): minutes"),
        (PRO + pro(lookup_keys="['power']"), "'pro' stands for more than one plan"),
        (PRO + pro(id='"power"'), "lookup_keys: 'pro' stands for both 'pro' and 'power'"),
        (
            pro(prices="['price_1']") + pro(id="'power'", lookup_keys="", prices="['price_1']"),
            "prices: 'price_1' stands for both 'pro' and 'power'",
        ),
        (
            pro(products="['prod_1']") + pro(id="'power'", lookup_keys="", products="['prod_1']"),
            "products: 'prod_1' stands for both 'pro' and 'power'",
        ),
    ],
)
def test_rule_4_a_bad_plans_file_is_refused_with_file_and_place(tmp_path: Path, text: str | bytes, place: str) -> None:
    with pytest.raises(PlansError) as refused:
        load(tmp_path, text)

    assert str(tmp_path / "plans.toml") in str(refused.value)
    assert place in str(refused.value)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("not_plans = 7\n", "[not_plans]"),
        ("[not_plans]\nplans = ['x']\n", "not_plans: unknown: plans"),
        ("[not_plans]\nprices = 'price_x'\n", "not_plans: prices must be a list of texts"),
        ("[not_plans]\nlookup_keys = ['pro']\n", "lookup_keys: 'pro' stands for both 'pro' and what is no plan"),
    ],
)
def test_rule_14_a_bad_list_of_what_is_no_plan_is_refused_with_its_place(tmp_path: Path, text: str, place: str) -> None:
    first, second = (text, pro()) if text.startswith("not") else (pro(), text)
    with pytest.raises(PlansError) as refused:
        load(tmp_path, first + second)

    assert place in str(refused.value)


def test_rule_14_the_plans_file_may_list_what_is_no_plan(tmp_path: Path) -> None:
    known = load(tmp_path, pro() + '[not_plans]\nproducts = ["prod_extra"]\n')

    assert known.place(Price("price_1", product="prod_extra"))
    assert known.sold_by(Price("price_1", product="prod_extra")) is None


def test_rule_4_a_missing_plans_file_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.toml"

    with pytest.raises(PlansError, match="No such file") as refused:
        load_plans(missing)

    assert str(missing) in str(refused.value)


def test_rule_4_a_folder_is_no_plans_file(tmp_path: Path) -> None:
    with pytest.raises(PlansError, match="directory"):
        load_plans(tmp_path)


def test_rule_4_the_smallest_plan_brings_one_minute(tmp_path: Path) -> None:
    assert load(tmp_path, pro(minutes="3")).named("pro").bonus == 1


def test_rule_4_the_project_s_own_file_is_the_default(plans: Plans) -> None:
    assert list(load_plans(PROJECT / "plans.toml")) == list(plans)


names = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="_-. "), min_size=1).filter(
    str.strip
)
keys = st.lists(names, max_size=4, unique=True)


@st.composite
def assortments(draw: st.DrawFn) -> list[Plan]:
    """Any plans that can be sold together: no id and no key stands for two of them."""
    ids = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    return [
        Plan(
            id=plan_id,
            name=draw(names),
            minutes=draw(st.integers(min_value=3, max_value=10**6)),
            price_cents=draw(st.integers(min_value=1, max_value=10**6)),
            # The id of the plan makes them differ from plan to plan.
            lookup_keys=frozenset(f"{plan_id}/{key}" for key in draw(keys)),
            prices=frozenset(f"{plan_id}/{key}" for key in draw(keys)),
            products=frozenset(f"{plan_id}/{key}" for key in [*draw(keys), "one"]),
        )
        for plan_id in ids
    ]


def as_toml(plan: Plan) -> str:
    return "\n".join(
        [
            "[[plan]]",
            f"id = {json.dumps(plan.id)}",
            f"name = {json.dumps(plan.name)}",
            f"minutes = {plan.minutes}",
            f"price_cents = {plan.price_cents}",
            *(
                f"{field} = {json.dumps(sorted(getattr(plan, field)))}"
                for field in ("lookup_keys", "prices", "products")
                if getattr(plan, field)
            ),
            "",
        ]
    )


@given(plans=assortments())
@settings(max_examples=50, deadline=None)
def test_rule_4_plans_are_data_what_the_file_says_is_sold(
    plans: list[Plan], tmp_path_factory: pytest.TempPathFactory
) -> None:
    loaded = load(tmp_path_factory.getbasetemp(), "".join(map(as_toml, plans)))

    assert list(loaded) == plans
    for plan in plans:
        assert loaded.named(plan.id) == plan
        assert all(loaded.sold_by(Price(price)) == plan for price in plan.prices)
        assert all(loaded.sold_by(Price("?", key)) == plan for key in plan.lookup_keys)
        assert all(loaded.sold_by(Price("?", None, product)) == plan for product in plan.products)


scraps = st.sampled_from(
    """[[plan]]
[plan]
plan = [1]
id = "pro"
id = 1979-05-27
name = "Pro"
minutes = 3
minutes = 2
price_cents = 1
price_cents = nan
prices = ["p"]
products = [[]]
lookup_keys = {}
=""".splitlines()
)


@given(st.binary(max_size=40) | st.lists(scraps, max_size=12).map(lambda lines: "\n".join(lines).encode()))
@settings(max_examples=100, deadline=None)
def test_rule_4_any_other_file_is_refused_and_named(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    loaded: list[Plan] = []
    refusal = ""
    try:
        loaded = list(load(folder, content))
    except PlansError as refused:
        refusal = str(refused)

    assert bool(loaded) or str(folder / "plans.toml") in refusal
    assert all(plan.bonus >= 1 and (plan.prices or plan.products or plan.lookup_keys) for plan in loaded)
