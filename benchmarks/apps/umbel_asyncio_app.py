"""The benchmark's coroutine task, apart from the others: what imports asyncio needs more memory."""

import asyncio

from apps.umbel_app import app


@app.task(name="nap")
async def nap(seconds: float) -> None:
    await asyncio.sleep(seconds)
