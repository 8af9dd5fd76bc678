"""Send a task, wait until it is ready, then watch another one's progress."""

import sys
import time

from tasks import add, foobar


def show(body):
    """Print what the task reports."""
    result = body.get("result")
    if body.get("status") == "PROGRESS":
        sys.stdout.write(f"\rProcessing: {result.get('p')}%")
        sys.stdout.flush()
    else:
        print("\r")
        print(result)


def main():
    """Run both."""
    result = add.delay(4, 4)
    while not result.ready():
        time.sleep(0.05)
    print(f"task done: {result.get()}")
    print(foobar.delay().get(timeout=60, on_message=show, propagate=False))


if __name__ == "__main__":
    main()
