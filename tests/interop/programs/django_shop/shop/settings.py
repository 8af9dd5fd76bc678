import os
from pathlib import Path

DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path(os.environ["SHOP_HOME"]) / "shop.db"}}
INSTALLED_APPS = ["orders"]
SECRET_KEY = "only for a test"
USE_TZ = True
TIME_ZONE = "Europe/Rome"

CELERY_BROKER_URL = os.environ.get("SHOP_URL") or f"sqlite:///{os.environ['SHOP_HOME']}/queue.db"
CELERY_RESULT_BACKEND = CELERY_BROKER_URL
CELERY_TASK_TRACK_STARTED = True
