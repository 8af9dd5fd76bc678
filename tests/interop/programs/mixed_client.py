"""What each kind of client asks of the three kinds of workers; prints what came of it as JSON."""

import json
import os
import time
from pathlib import Path

from celery import chain, chord, group
from mixed import STOPS, anywhere, celery54, celery57, fail, failed, merge, total, umbel

WAIT = 40
seen = {}

trails = [
    chain(*(STOPS[stop].s([]) if not at else STOPS[stop].s() for at, stop in enumerate(route.split())))
    for route in ("umbel celery54 celery57 umbel", "celery54 umbel celery57 umbel", "celery57 umbel umbel celery54")
]
seen["chains"] = [each.apply_async().get(timeout=WAIT) for each in trails]

# The body of each chord runs at another kind of worker than the parts do.
seen["chords"] = [
    chord([stop.s([]) for stop in (celery54, celery57, umbel, umbel)], body).apply_async().get(timeout=WAIT)
    for body in (
        merge.s().set(queue="umbel"),
        merge.s().set(queue="celery57"),
        merge.s().set(queue="celery54"),
    )
]
within = chain(umbel.s([]), chord([celery54.s(), umbel.s(), celery57.s()], merge.s().set(queue="umbel")), celery54.s())
seen["chain_with_chord"] = within.apply_async().get(timeout=WAIT)
seen["group"] = sorted(map(tuple, group(stop.s(["x"]) for stop in STOPS.values()).apply_async().get(timeout=WAIT)))

shared = [anywhere.delay(n) for n in range(150)]
done = [each.get(timeout=WAIT) for each in shared]
seen["shared"] = [number for _, number in done] == [2 * n for n in range(150)]
seen["by"] = sorted({node for node, _ in done})
seen["total"] = chord([anywhere.s(n) for n in range(20)], total.s()).apply_async().get(timeout=WAIT)

errors = []
for stop in STOPS:
    result = chain(STOPS[stop].s([]), fail.s().set(queue=stop, link_error=failed.s().set(queue="umbel"))).apply_async()
    error = result.get(timeout=WAIT, propagate=False)
    errors.append([type(error).__name__, [str(arg) for arg in error.args], result.state])
seen["errors"] = errors
header = [umbel.s([]), fail.s([]).set(queue="celery57"), celery54.s([])]
broken = chord(header, merge.s().set(queue="umbel")).apply_async()
error = broken.get(timeout=WAIT, propagate=False)
seen["broken_chord"] = [type(error).__name__, "LookupError" in str(error)]

moment = time.time()
delayed = [STOPS[stop].apply_async(([],), countdown=1) for stop in STOPS]
seen["delayed"] = [each.get(timeout=WAIT) for each in delayed]
seen["not_early"] = time.time() - moment >= 0.9
deadline = time.monotonic() + WAIT
told = Path(os.environ["FAILURES"])
while not told.exists() or len(told.read_text().splitlines()) < len(STOPS):
    assert time.monotonic() < deadline, "an errback was not called"
    time.sleep(0.05)
print(json.dumps(seen))
