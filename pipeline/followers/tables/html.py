"""Renders what `inspection.py` returns as HTML without scripts or assets."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from pipeline.followers.tables.inspection import Document

REFRESH_S = 2
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "Cache-Control": "no-store",
}

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #2a9d5c; --bad: #d1495b; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
nav a { margin-right: 1rem; } a { color: #3a7bd5; text-decoration: none; } a:hover { text-decoration: underline; }
h1 { font-size: 1.4rem; margin: 1rem 0 .5rem; } .note { color: var(--bad); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; } tr:hover td { background: var(--soft); } td.number, th.number { text-align: right; }
.tag { border-radius: 1rem; padding: .05rem .6rem; background: var(--soft); }
.tag.active, .tag.closed-breaker { color: var(--good); } .tag.open-breaker { color: var(--bad); }
footer { margin-top: 2rem; opacity: .65; font-size: .85rem; }
"""
_NUMBERS = {
    *("opened", "remaining", "sold", "decided", "partition", "source_offset", "results_offset"),
    *("records", "purchases", "lag", "rows"),
}


class Html(str):
    """Text that is HTML already; all other text is escaped."""

    __slots__ = ()


def page(title: str, *parts: Html) -> str:
    heading = escape(title)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="refresh" content="{REFRESH_S}"><meta name="viewport" content="width=device-width">'
        f"<title>{heading} · seckill</title>"
        f"<style>{_STYLE}</style></head><body><nav>"
        '<a href="/tables/">tables</a><a href="/tables/products">products</a>'
        f'<a href="/tables/partitions">partitions</a></nav><h1>{heading}</h1>{"".join(parts)}'
        f"<footer>Read again every {REFRESH_S} s. The same as JSON: add <code>?format=json</code>.</footer>"
        "</body></html>\n"
    )


def index_page(document: Document) -> str:
    tables = [
        {"table": _link(table["url"], table["name"]), "rows": table["rows"]} for table in document["tables"]
    ]
    owners = [
        {
            "follower": owner["url"],
            "has partitions": ", ".join(map(str, owner["partitions"])),
            "answers": "yes" if owner["answers"] else Html('<span class="note">no</span>'),
        }
        for owner in document["owners"]
    ]
    return page("Tables", _missing(document), _table(tables), Html("<h1>Followers</h1>"), _table(owners))


def products_page(document: Document) -> str:
    return page("Products", _missing(document), _table(map(_product, document["rows"])), _left_out(document))


def partitions_page(document: Document) -> str:
    return page(
        "Partitions", _missing(document), _table(map(_partition, document["rows"])), _left_out(document)
    )


def product_page(document: Document) -> str:
    codes = [
        {"code": each["code"], "meaning": _words(each["name"]), "decided": each["count"]}
        for each in document["by_code"]
    ]
    parts = [_fields({name: cell for name, cell in _product(document).items() if name != "by code"})]
    if codes:
        parts += [Html("<h1>By code</h1>"), _table(codes)]
    return page(f"Product {document['product_id']}", *parts)


def partition_page(document: Document) -> str:
    return page(f"Partition {document['partition']}", _fields(_partition(document)))


def refusal_page(document: Document) -> str:
    return page(str(document["title"]), Html(f'<p class="note">{escape(document["detail"])}</p>'))


# --- pieces ----------------------------------------------------------------------------------------------------------


def _product(row: Document) -> Document:
    codes = ", ".join(f"{_words(each['name'])} {each['count']:,}" for each in row["by_code"])
    return {
        "product": _link(f"/tables/products/{row['product_id']}", row["product_id"]),
        "name": row["name"],
        "state": _tag(row["state"], row["state"]),
        **{name: row[name] for name in ("opened", "remaining", "sold", "decided")},
        "by code": codes,
        "limit": _limit(row),
        "partition": _link(f"/tables/partitions/{row['partition']}", row["partition"]),
        "source_offset": row["source_offset"],
        "last": row["time"],
    }


def _limit(row: Document) -> str | None:
    rule = row["rate_limit"]
    if rule is None:
        return None
    words = f"{rule['requests_per_second']:,}/s, burst {rule['burst']:,}, {_words(rule['algorithm'])}"
    return f"{words}, now {row['limiter']}" if row["limiter"] else words


def _partition(row: Document) -> Document:
    return {
        "partition": _link(f"/tables/partitions/{row['partition']}", row["partition"]),
        **{name: row[name] for name in ("source_offset", "results_offset", "records", "purchases")},
        "lag": "not known" if row["lag"] is None else row["lag"],
        "breaker": _tag(row["breaker"], f"{row['breaker']}-breaker"),
        "last": row["time"],
    }


def _missing(document: Document) -> Html:
    """What this answer can not tell, and whom to ask."""
    if not document["missing_partitions"]:
        return Html()
    silent = document.get("owners_without_answer", [])
    by = f"; no answer from {', '.join(silent)}" if silent else ""
    text = f"Without partitions {', '.join(map(str, document['missing_partitions']))}{by}."
    return Html(f'<p class="note">{escape(text)}</p>')


def _left_out(document: Document) -> Html:
    count = document["rows_left_out"]
    return Html(f'<p class="note">{count:,} more rows are not shown.</p>') if count else Html()


def _table(rows: Iterable[Document]) -> Html:
    documents = list(rows)
    if not documents:
        return Html("<p>Nothing yet.</p>")
    head = "".join(_cell("th", name, name) for name in documents[0])
    body = "".join(_row(_cell("td", name, value) for name, value in row.items()) for row in documents)
    return Html(f"<table><thead>{_row([head])}</thead><tbody>{body}</tbody></table>")


def _fields(row: Document) -> Html:
    lines = (_row([_cell("th", "", name), _cell("td", "", value)]) for name, value in row.items())
    return Html(f"<table>{''.join(lines)}</table>")


def _row(cells: Sequence[str] | Iterable[str]) -> str:
    return f"<tr>{''.join(cells)}</tr>"


def _cell(element: str, column: str, value: Any) -> str:
    kind = ' class="number"' if column in _NUMBERS else ""
    return f"<{element}{kind}>{_shown(value)}</{element}>"


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, Html):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return escape(str(value).replace("_", " ") if value in _NUMBERS else str(value))


def _link(path: str, text: object) -> Html:
    return Html(f'<a href="{escape(path)}">{escape(str(text))}</a>')


def _tag(text: str, kind: str) -> Html:
    return Html(f'<span class="tag {escape(kind)}">{escape(_words(text))}</span>')


def _words(name: str) -> str:
    return name.replace("_", " ")
