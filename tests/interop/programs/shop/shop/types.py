"""The shop's own type in JSON, and a serializer of its own."""

import json

from kombu.serialization import register
from kombu.utils.json import register_type


class Money:
    """Cents in a currency."""

    def __init__(self, cents, currency="EUR"):
        self.cents, self.currency = cents, currency

    def __eq__(self, other):
        return isinstance(other, Money) and (self.cents, self.currency) == (other.cents, other.currency)

    def __hash__(self):
        return hash((self.cents, self.currency))

    def __repr__(self):
        return f"Money({self.cents}, {self.currency!r})"


register_type(Money, "money", lambda money: [money.cents, money.currency], lambda parts: Money(*parts))


def backwards(value):
    return json.dumps(value)[::-1]


def forwards(data):
    return json.loads((data if isinstance(data, str) else bytes(data).decode())[::-1])


register("mirror", backwards, forwards, content_type="application/x-mirror", content_encoding="utf-8")
