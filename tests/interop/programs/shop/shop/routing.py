"""Where tasks go that the table of routes does not name."""


def by_country(name, args, kwargs, options, task=None, **_):
    """Send what concerns a country abroad to the queue of slow things."""
    if kwargs and kwargs.get("country") not in (None, "IT"):
        return {"queue": "slow", "priority": 2}
    return None
