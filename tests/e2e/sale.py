"""What the tests of a whole system sell."""

from datetime import UTC, datetime, timedelta
from typing import Any


def opening(product_id: int, stock: int) -> dict[str, Any]:
    """The body of a prewarm: on sale for the next hour."""
    now = datetime.now(UTC)
    return {
        "product_id": product_id,
        "product_name": "Phone",
        "price": 1999,
        "stock": stock,
        "start_time": (now - timedelta(minutes=1)).isoformat(),
        "end_time": (now + timedelta(hours=1)).isoformat(),
        "status": "active",
    }
