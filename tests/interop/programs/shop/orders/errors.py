"""What goes wrong with orders."""


class CardDeclined(Exception):
    """The bank says no."""


class Stumbled(Exception):
    """Its constructor takes other arguments than it keeps."""

    def __init__(self, what, *, code=5):
        super().__init__(f"{what} stumbled with {code}")
        self.what = what


class GatewayDown(ConnectionError):
    """The bank does not answer."""


class OutOfStock(ValueError):
    """Expected, so not an alarm."""
