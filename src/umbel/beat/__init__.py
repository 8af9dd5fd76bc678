"""Beat: sends what is due. Any number may run; one of them leads."""

from umbel.beat.service import Beat

__all__ = ["Beat"]
