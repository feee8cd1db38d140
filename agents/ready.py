"""GET /ready on the web port of an agents process: 200 if all checks pass, otherwise 503 with the reasons."""

from collections.abc import Callable, Mapping
from typing import Any

import faust


def attach_ready(
    app: faust.App, checks: Callable[[], Mapping[str, str]], report: Callable[[], Mapping[str, Any]]
) -> None:
    """`checks` returns "ok" or the problem by name, `report` further fields: lag and progress by partition."""

    @app.page("/ready")
    async def ready(web: Any, request: Any) -> Any:
        results = checks()
        healthy = all(result == "ok" for result in results.values())
        body = {"status": "ready" if healthy else "not ready", "checks": dict(results), **report()}
        return web.json(body, status=200 if healthy else 503)
