import json
import os

os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
import django

django.setup()
from celery import chord  # noqa: E402
from django.db import connection, transaction  # noqa: E402
from orders.models import Order  # noqa: E402
from orders.tasks import bill, describe, pay, ship  # noqa: E402
from shop import celery_app  # noqa: E402

with connection.schema_editor() as editor:
    editor.create_model(Order)
order = Order.objects.create(total=30)
with transaction.atomic():
    second = Order.objects.create(total=12)
    assert pay.delay_on_commit(second.pk) is None
    waiting = celery_app.connection().default_channel.queue_declare("celery").message_count
with transaction.atomic():
    pay.delay_on_commit(10**9)
    transaction.set_rollback(True)
result = pay.delay(order.pk)
billed = chord([ship.s(order.pk, by="bike"), ship.s(second.pk, by="boat")], bill.s()).delay()
lost = ship.apply_async((10**8, "air"))
try:
    lost.get(timeout=30)
except Order.DoesNotExist as error:
    missing = [type(error).__qualname__, str(error)]
print(
    json.dumps(
        {
            "total": result.get(timeout=30),
            "described": describe.delay().get(timeout=30),
            "before_commit": waiting,
            "paid": list(Order.objects.order_by("pk").values_list("paid", flat=True)),
            "billed": billed.get(timeout=30),
            "shipped": billed.parent.get(timeout=30),
            "missing": [*missing, lost.state],
            "zone": str(celery_app.conf.timezone),
        }
    )
)
