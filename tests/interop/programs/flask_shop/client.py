"""What a page does, and what a shell with the app does."""

import json

from make_celery import celery_app, flask_app
from tasks import add_together, forget, order

web = flask_app.test_client()
first = web.get("/add/2/3").get_json()
with flask_app.app_context():
    eager = add_together.apply((1, 1)).get()
print(
    json.dumps(
        {
            "added": first["value"],
            "again": web.get("/add/4/3").get_json()["value"],
            "ordered": order.delay(7).get(timeout=20),
            "forgotten": [forget.delay().get(timeout=20), forget.ignore_result, forget.delay().state],
            "stored": str(celery_app.AsyncResult(first["id"]).state),
            "eager": eager,
            "direct": add_together(5, 5),
            "names": sorted(name for name in celery_app.tasks if not name.startswith("celery.")),
            "default": [add_together.app is celery_app, celery_app.main],
        }
    )
)
