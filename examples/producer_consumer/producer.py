"""The producer: sends a number every second. ``python producer.py [HOW_MANY [SECONDS_BETWEEN]]``"""

import itertools
import sys
import time

from consumer import receive


def main(how_many=None, pause=1.0):
    """Send the numbers from 1 on."""
    for count in itertools.count(1):
        receive.delay(count)
        print("sent", count)
        if count == how_many:
            break
        time.sleep(pause)


if __name__ == "__main__":
    main(*(convert(text) for convert, text in zip((int, float), sys.argv[1:], strict=False)))
