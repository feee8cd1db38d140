import asyncio, gzip
from contract.serving import *
async def raw(port, data, wait=1.5, half=False):
    r,w = await asyncio.open_connection("127.0.0.1",port)
    w.write(data); await w.drain()
    if half: await asyncio.sleep(0.2); w.transport.abort(); return b""
    try:
        async with asyncio.timeout(wait): return await r.read(-1)
    except TimeoutError: return b"TIMEOUT"
async def test_x(service, caplog):
    p=service.settings.public_port
    H=b"Host: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    J=b'{"product_id":5,"user_id":"u"}'
    A=b"POST /api/v1/seckill/purchase/async HTTP/1.1\r\n"
    cases={
    "badpath": b"GET /\xff\xfe HTTP/1.1\r\n"+H+b"\r\n",
    "badpath%": b"GET /%ff%fe HTTP/1.1\r\n"+H+b"\r\n",
    "badid%": b"GET /api/v1/seckill/requests/%ff HTTP/1.1\r\n"+H+b"\r\n",
    "badstats%": b"GET /api/v1/seckill/stats/%ff HTTP/1.1\r\n"+H+b"\r\n",
    "badct": A+b"Host: x\r\nConnection: close\r\nContent-Type: \xff\xfe\r\nContent-Length: %d\r\n\r\n"%len(J)+J,
    "badkey": A+H+b"Idempotency-Key: \xff\xfe\r\nContent-Length: %d\r\n\r\n"%len(J)+J,
    "badgzip": A+H+b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"%len(J)+J,
    "gzip": A+H+b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"%len(gzip.compress(J))+gzip.compress(J),
    "bomb": A+H+b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"%len(gzip.compress(b"x"*10**7))+gzip.compress(b"x"*10**7),
    "badchunk": A+H+b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "badlate": A+H+b"Transfer-Encoding: chunked\r\n\r\n3\r\n{\"a\r\nzz\r\n",
    "nolen": A+H+b"\r\n",
    "nothttp": b"hello\r\n\r\n",
    "badwait": b"GET /api/v1/seckill/requests/0-0-0?wait_ms=%ff HTTP/1.1\r\n"+H+b"\r\n",
    "short": A+H+b"Content-Length: 100\r\n\r\n"+J,
    "method": b"FOO /health HTTP/1.1\r\n"+H+b"\r\n",
    "expect": A+H+b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"%len(J)+J,
    "expectbad": A+H+b"Expect: nonsense\r\nContent-Length: %d\r\n\r\n"%len(J)+J,
    }
    for n,d in cases.items():
        print("==",n, (await raw(p,d))[:420])
    await raw(p, A+H+b"Content-Length: 100\r\n\r\n"+J, half=True)
    await raw(p, A+H+b"Transfer-Encoding: chunked\r\n\r\n3\r\n{\"a\r\n", half=True)
    x=(await service.buy_async(5,"u9")).json()["request_id"]
    await raw(p, f"GET /api/v1/seckill/requests/{x}/events HTTP/1.1\r\n".encode()+H+b"\r\n", half=True)
    await asyncio.sleep(2)
    print((await service.call("GET", SYSTEM)).json()["service_stats"])
    print("LOG", [ (r.name, r.levelname, r.getMessage()[:200]) for r in caplog.records if r.levelno>=30])
