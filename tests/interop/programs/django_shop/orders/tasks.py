from celery import shared_task
from celery.utils.log import get_task_logger
from django.db import connection

from orders.models import Order

logger = get_task_logger(__name__)


@shared_task
def pay(order_id):
    order = Order.objects.get(pk=order_id)
    order.paid = True
    order.save()
    logger.info("order %s is paid", order_id)
    return order.total


@shared_task(bind=True, autoretry_for=(Order.DoesNotExist,), retry_backoff=1, retry_jitter=False, max_retries=1)
def ship(self, order_id, by):
    order = Order.objects.get(pk=order_id)
    return [order.total, by, self.request.retries, self.request.delivery_info["routing_key"]]


@shared_task
def bill(totals):
    return sum(total for total, *_ in totals)


@shared_task(bind=True)
def describe(self):
    return [type(self).__mro__[2].__name__, hasattr(self, "delay_on_commit"), connection.vendor]
