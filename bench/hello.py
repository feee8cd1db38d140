"""The floor of the ingress: a bare aiohttp server that reads the body of a POST and says hello.

`python bench/hello.py PORT`; several processes can share the port.
"""

import asyncio
import sys

import uvloop
from aiohttp import web


async def hello(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(text="hello")


def main(port: int) -> None:
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", hello)
    web.run_app(app, host="127.0.0.1", port=port, reuse_port=True, access_log=None, print=lambda _: None)


if __name__ == "__main__":
    main(int(sys.argv[1]))
