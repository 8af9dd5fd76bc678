"""The benchmark's tasks for RQ."""

import time


def noop():
    return None


def work(seconds):
    time.sleep(seconds)
