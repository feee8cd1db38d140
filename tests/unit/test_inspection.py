"""Answers about the tables: which rows are current here, which follower has the others, and how they are shown."""

import pytest

from pipeline.errors import KafkaUnavailable
from pipeline.followers.tables import html
from pipeline.followers.tables.backlog import Backlog
from pipeline.followers.tables.inspection import (
    ROWS_MAX,
    Document,
    Inspection,
    InspectionRefused,
    OwnerResponse,
)
from pipeline.followers.tables.tally import Row, Tally
from pipeline.kafka.records import Bounds
from pipeline.kafka.topics import partition_of

PARTITIONS = 4
OWN, OTHER = "http://127.0.0.1:1", "http://127.0.0.1:2"


def product_row(product_id: str, sold: int = 1, **fields: object) -> Row:
    return {
        "product_id": product_id,
        "name": "Phone",
        "partition": partition_of(product_id, PARTITIONS),
        "state": "active",
        "opened": 5,
        "adjusted": 0,
        "remaining": 5 - sold,
        "sold": sold,
        "decided": sold,
        "by_code": {"1": sold, "-3": 2},
        "source_offset": 7,
        "time_ms": 1_700_000_000_123,
        **fields,
    }


def product_in(partition: int) -> str:
    return next(str(number) for number in range(1, 99) if partition_of(str(number), PARTITIONS) == partition)


class FakeOwners:
    """The other followers; `processes` are those that answer."""

    def __init__(self) -> None:
        self.assignments: dict[str, frozenset[int]] = {}
        self.processes: dict[str, Inspection] = {}
        self.asked: list[str] = []

    own = OWN

    def others(self) -> dict[str, frozenset[int]]:
        return self.assignments

    def other_with(self, partition: int) -> str | None:
        return next((url for url, partitions in self.assignments.items() if partition in partitions), None)

    async def fetch(self, url: str, path: str) -> OwnerResponse | None:
        self.asked.append(url + path)
        if (process := self.processes.get(url)) is None:
            return None
        _, _, table, *key = path.split("/")
        try:
            if key:
                one = process.product if table == "products" else process.partition
                return OwnerResponse(200, await one(key[0], True))
            many = {"": process.index, "products": process.products, "partitions": process.partitions}[table]
            return OwnerResponse(200, await many(True))
        except InspectionRefused as refusal:
            return OwnerResponse(refusal.status, {"detail": str(refusal)})


class NoBacklog:
    async def undecided(self, partition: int, source_offset: int) -> int | None:
        return None


def inspection(others: FakeOwners, owned: set[int], *products: Row, **partitions: Row) -> Inspection:
    tally = Tally({row["product_id"]: row for row in products}, partitions)
    return Inspection(tally, PARTITIONS, lambda: frozenset(owned), others, NoBacklog())


HERE, THERE = product_in(0), product_in(1)


@pytest.fixture
def others() -> FakeOwners:
    others = FakeOwners()
    others.assignments = {OTHER: frozenset({1, 2, 3})}
    # It still has an old row of a partition that it no longer owns.
    others.processes[OTHER] = inspection(FakeOwners(), {1, 2, 3}, product_row(THERE, 4), product_row(HERE, 0))
    return others


@pytest.fixture
def own(others: FakeOwners) -> Inspection:
    return inspection(others, {0}, product_row(HERE, 2), product_row(THERE, 3))


async def test_a_row_comes_from_the_follower_that_owns_its_partition(
    own: Inspection, others: FakeOwners
) -> None:
    assert (await own.product(HERE, False))["sold"] == 2
    assert others.asked == []
    assert (await own.product(THERE, False))["sold"] == 4
    assert others.asked == [f"{OTHER}/tables/products/{THERE}"]
    assert (await own.partition("2", False))["partition"] == 2


async def test_a_follower_does_not_forward_what_another_one_asks(own: Inspection, others: FakeOwners) -> None:
    with pytest.raises(InspectionRefused, match="has no follower at the moment") as refusal:
        await own.product(THERE, True)
    assert refusal.value.status == 503
    assert (await own.products(True))["missing_partitions"] == [1, 2, 3]
    assert others.asked == []


async def test_lists_have_the_rows_of_all_owners_and_no_old_ones(own: Inspection) -> None:
    document = await own.products(False)
    assert {row["product_id"]: row["sold"] for row in document["rows"]} == {int(HERE): 2, int(THERE): 4}
    assert (document["partitions"], document["missing_partitions"]) == ([0, 1, 2, 3], [])
    partitions = await own.partitions(False)
    assert [row["partition"] for row in partitions["rows"]] == [0, 1, 2, 3]
    index = await own.index(False)
    assert [(table["name"], table["rows"]) for table in index["tables"]] == [
        ("products", 2),
        ("partitions", 4),
    ]


async def test_an_owner_that_does_not_answer_is_named(own: Inspection, others: FakeOwners) -> None:
    others.processes.clear()
    document = await own.products(False)
    assert [row["product_id"] for row in document["rows"]] == [int(HERE)]
    assert (document["missing_partitions"], document["owners_without_answer"]) == ([1, 2, 3], [OTHER])
    with pytest.raises(InspectionRefused, match=OTHER) as refusal:
        await own.product(THERE, False)
    assert refusal.value.status == 503
    assert (await own.index(False))["owners"][1] == {"url": OTHER, "partitions": [1, 2, 3], "answers": False}


async def test_a_former_owner_has_no_row(own: Inspection, others: FakeOwners) -> None:
    others.processes[OTHER] = inspection(FakeOwners(), set(), product_row(THERE))
    with pytest.raises(InspectionRefused) as refusal:
        await own.product(THERE, False)
    assert refusal.value.status == 503
    document = await own.products(False)
    assert (len(document["rows"]), document["missing_partitions"]) == (1, [1, 2, 3])


async def test_two_owners_of_a_partition_give_one_row(others: FakeOwners) -> None:
    own = inspection(others, {0, 1}, product_row(HERE, 2), product_row(THERE, 3))
    document = await own.products(False)
    assert {row["product_id"]: row["sold"] for row in document["rows"]} == {int(HERE): 2, int(THERE): 3}


@pytest.mark.parametrize(
    ("text", "status"), [("x", 400), ("-1", 400), ("4", 400), ("²", 400), ("٣", 400), ("1_0", 400), ("", 400)]
)
async def test_an_invalid_partition_is_refused(own: Inspection, text: str, status: int) -> None:
    with pytest.raises(InspectionRefused, match="from 0 to 3") as refusal:
        await own.partition(text, False)
    assert refusal.value.status == status


async def test_an_unknown_product_is_not_found_and_a_bad_id_is_refused(own: Inspection) -> None:
    unknown = next(name for name in ("a", "b", "c", "d", "e", "f") if partition_of(name, PARTITIONS) == 0)
    with pytest.raises(InspectionRefused) as refusal:
        await own.product(unknown, False)
    assert refusal.value.status == 404
    for text in ("a b", "<script>", "x" * 65):
        with pytest.raises(InspectionRefused, match="product_id") as refusal:
            await own.product(text, False)
        assert refusal.value.status == 400


async def test_a_long_list_is_cut_and_says_so() -> None:
    rows = [product_row(str(number), partition=0) for number in range(1, ROWS_MAX + 4)]
    document = await inspection(FakeOwners(), {0}, *rows).products(False)
    assert (len(document["rows"]), document["rows_left_out"]) == (ROWS_MAX, 3)
    assert [row["product_id"] for row in document["rows"][:3]] == [1, 2, 3]


async def test_a_row_is_shown_with_the_names_of_its_codes_and_its_time(own: Inspection) -> None:
    row = await own.product(HERE, False)
    assert row["by_code"] == [
        {"code": 1, "name": "success", "count": 2},
        {"code": -3, "name": "already_bought", "count": 2},
    ]
    assert row["time"] == "2023-11-14T22:13:20.123Z"


async def test_a_partition_without_decisions_still_has_a_row(own: Inspection) -> None:
    assert await own.partition("0", False) == {
        "partition": 0,
        "source_offset": -1,
        "results_offset": -1,
        "records": 0,
        "purchases": 0,
        "lag": None,
        "breaker": "closed",
        "time": None,
    }


HOSTILE = "<script>alert('x')</script>\"&"


async def test_html_escapes_whatever_it_shows() -> None:
    row = product_row("1", name=HOSTILE, state=HOSTILE, partition=partition_of("1", PARTITIONS))
    own = inspection(FakeOwners(), set(range(PARTITIONS)), row)
    list_document, document = await own.products(False), await own.product("1", False)
    list_document["owners_without_answer"], list_document["missing_partitions"] = [HOSTILE], [1]
    index: Document = {
        "tables": [{"name": HOSTILE, "rows": 1, "url": HOSTILE}],
        "owners": [{"url": HOSTILE, "partitions": [1], "answers": True}],
        "missing_partitions": [],
    }
    pages = [
        html.products_page(list_document),
        html.product_page(document),
        html.index_page(index),
        html.refusal_page({"title": HOSTILE, "detail": HOSTILE}),
    ]
    for page in pages:
        assert "&lt;script&gt;" in page
        assert "<script" not in page
        assert "alert('x')" not in page


class Ends:
    def __init__(self, *answers: dict[int, Bounds] | Exception) -> None:
        self.answers = list(answers)

    async def bounds_of(self, topic: str, partitions: object) -> dict[int, Bounds]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_the_lag_is_what_follows_the_last_decided_command() -> None:
    backlog = Backlog(Ends({0: Bounds(0, 10), 1: Bounds(6, 10), 2: Bounds(0, 0)}), "requests", 3)
    assert [await backlog.undecided(0, offset) for offset in (-1, 4, 9, 12)] == [10, 5, 0, 0]
    assert await backlog.undecided(1, 2) == 4
    assert await backlog.undecided(2, -1) == 0


async def test_without_an_answer_from_kafka_the_lag_is_unknown() -> None:
    backlog = Backlog(Ends(KafkaUnavailable("down")), "requests", 1)
    assert await backlog.undecided(0, 3) is None
    # Not asked again at once: `Ends` has no second answer.
    assert await backlog.undecided(0, 3) is None
