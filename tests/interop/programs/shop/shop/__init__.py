"""A web shop's tasks, written for Celery."""

from .celery import app as celery_app

__all__ = ("celery_app",)
