from typing import Any
async def test_smoke(service, decider):
    body = {"product_id": 1001, "product_name": "phone", "price": 19.90, "stock": 2,
        "start_time": "2020-01-01T00:00:00Z", "end_time": "2090-01-01T00:00:00Z", "status": "active"}
    async with service.admin.post("/api/v1/seckill/activity/prewarm", json=body) as r:
        print(r.status, await r.text())
    for u in ("a","a","b","c"):
        async with service.public.post("/api/v1/seckill/purchase", json={"product_id": 1001, "user_id": u}) as r:
            print(r.status, await r.text())
    async with service.public.post("/api/v1/seckill/purchase/async", json={"product_id": 1001, "user_id": u}) as r:
        print(r.status, await r.text()); i=(await r.json())["request_id"]
    for p in ("/api/v1/seckill/requests/"+i+"?wait_ms=1000","/api/v1/seckill/requests/"+i+"/events","/api/v1/seckill/stats/1001","/api/v1/seckill/purchased/1001/a","/api/v1/system/stats","/health","/nope","/api/v1/seckill/purchase","/openapi.json"):
        async with service.public.get(p) as r:
            print(r.status, (await r.text())[:1000])
