"""Settings by their old names, read from the environment."""

from os import environ

if "REDIS_HOST" in environ:
    CELERY_REDIS_URL = (
        "redis://"
        + ":"
        + environ.get("REDIS_PASSWD", "")
        + "@"
        + environ["REDIS_HOST"]
        + ":"
        + environ.get("REDIS_PORT", "6379")
        + "/"
        + environ.get("REDIS_DATABASE", "0")
    )
    BROKER_URL = CELERY_REDIS_URL
    CELERY_RESULT_BACKEND = CELERY_REDIS_URL
