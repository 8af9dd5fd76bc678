"""What a Redis server keeps, by what it says of itself."""

from __future__ import annotations

from umbel.brokers.redis.link import Link
from umbel.exceptions import BrokerError, OperationalError
from umbel.interfaces import Durability, Survives


def durability(link: Link) -> Durability:
    """Return what survives on this server. Asks with ``INFO``, and with ``CONFIG`` where that is allowed."""
    info = dict(line.split(":", 1) for line in _text(link.call("INFO", "everything")).splitlines() if ":" in line)
    name = f"Redis {info.get('redis_version', '(version unknown)')}"
    policy = info.get("maxmemory_policy", "noeviction")
    advice = []
    if policy != "noeviction" and info.get("maxmemory", "0") != "0":
        advice.append(f"maxmemory-policy is {policy}: a full server deletes messages; set it to noeviction")
    if info.get("aof_enabled") != "1":
        advice.insert(0, "set appendonly yes, or a crash of the server loses what came after its last snapshot")
        return Durability(
            survives=Survives.NOTHING,
            text=f"{name}, appendonly no: a crash of the server loses messages",
            advice=advice,
        )
    sync = _sync(link)
    if sync == "always":
        survives, what = Survives.POWER_LOSS, "on disk when confirmed"
    elif sync == "no":
        survives, what = (
            Survives.PROCESS,
            "survives a crash of the server; a power cut loses what the system had not written",
        )
        advice.append("set appendfsync everysec, or always where not even a second may be lost")
    else:
        survives, what = Survives.PROCESS, "survives a crash of the server; a power cut may lose the last second"
    if policy != "noeviction" and info.get("maxmemory", "0") != "0":
        survives = Survives.NOTHING
        what += f"; but with {policy} a full server deletes messages"
    return Durability(survives=survives, text=f"{name}, appendonly yes, appendfsync {sync}: {what}", advice=advice)


def _sync(link: Link) -> str:
    try:
        reply = link.call("CONFIG", "GET", "appendfsync")
    except (BrokerError, OperationalError):
        return "unknown"  # managed servers do not let clients ask
    pairs = list(reply.items()) if isinstance(reply, dict) else list(zip(reply[::2], reply[1::2], strict=False))
    return _text(pairs[0][1]) if pairs else "unknown"


def _text(reply: object) -> str:
    return reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)
