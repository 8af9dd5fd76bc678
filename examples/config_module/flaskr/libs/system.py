"""The queue. The worker is started with ``umbel -A flaskr.libs.system worker -l info``."""

from umbel import Umbel

celery = Umbel("flaskr", include=["flaskr.tasks"])
celery.config_from_object("flaskr.tools.celery_config")
