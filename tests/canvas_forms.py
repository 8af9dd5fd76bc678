"""Canvases as they are written, for the comparison of their forms; and what makes those of one library comparable.

Run as ``python canvas_forms.py celery|umbel URL``: prints, for each canvas, its dictionary, the messages that sending it
puts into the queue, and how many parts its chords wait for; with ids numbered in the order in which they appear.
"""

# ruff: noqa: E501
# One line for each case.

from __future__ import annotations

import base64
import importlib
import json
import re
import sys
import warnings
from typing import Any

FORMS = {
    "plain": "out = add.s(1,2)",
    "immutable": "out = add.si(1,2)",
    "options": 'out = add.s(1).set(priority=3, queue="celery", expires=60)',
    "linked": "s=add.s(1); s.link(cb.s()); s.link_error(eb.s()); s.link(cb.si(3)); out = s",
    "chain2": "out = add.s(1)|mul.s(2)",
    "chain5": "out = chain(add.s(i) for i in range(5))",
    "chain one": "out = chain(add.s(1))",
    "chain list one": "out = chain([add.s(1)])",
    "chain nested": "out = chain(add.s(1), chain(add.s(2), add.s(3)), add.s(4))",
    "chain chain": "out = (add.s(1)|add.s(2))|(add.s(3)|add.s(4))",
    "chain raw nested": "out = chain(add.s(1), chain(add.s(2), add.s(3), app=app), add.s(4), app=app)",
    "chain links": "c = add.s(1)|mul.s(2)|mul.s(3); c.link(cb.s()); c.link_error(eb.s()); out = c",
    "chain links then": "c = add.s(1)|mul.s(2); c.link(cb.s()); c.link_error(eb.s()); out = c|add.s(9)",
    "chain priority": "out = (add.s(1).set(priority=3)|mul.s(2).set(priority=6))",
    "chain set": "out = (add.s(1)|mul.s(2)).set(countdown=0, priority=5)",
    "group2": "out = group(add.s(1), add.s(2))",
    "group list": "out = group([add.s(1), add.s(2)])",
    "group gen": "out = group(add.s(i) for i in range(5))",
    "group one": "out = group(add.s(1))",
    "group empty": "out = group()",
    "group options": "out = group(add.s(1), add.s(2), priority=4)",
    "group set": 'out = group(add.s(1), add.s(2)).set(priority=4, shadow="q")',
    "group links": "g=group(add.s(1), add.s(2)); g.link(cb.s()); g.link_error(eb.s()); out = g",
    "group of chains": "out = group(add.s(1)|mul.s(2), add.s(3)|mul.s(4)|add.s(1))",
    "group of groups": "out = group(add.s(1), group(add.s(2), add.s(3)))",
    "group chain group": "out = group(add.s(1)|group(add.s(2), add.s(3)))",
    "group chain group2": "out = group(add.s(1)|group(add.s(2), add.s(3)), add.s(1))",
    "group empty chain": "out = group(chain(), add.s(1))",
    "chord2": "out = chord([add.s(1), add.s(2)], tsum.s())",
    "chord gen": "out = chord((add.s(i) for i in range(4)), tsum.s())",
    "chord or": "out = group(add.s(1), add.s(2))|tsum.s()",
    "chord or or": "out = group(add.s(1), add.s(2))|tsum.s()|add.s(1)",
    "chord links": "c=group(add.s(1), add.s(2))|tsum.s(); c.link(cb.s()); c.link_error(eb.s()); out = c",
    "chord link header": "app.conf.task_allow_error_cb_on_chord_header=True; c=group(add.s(1), add.s(2))|tsum.s(); c.link_error(eb.s()); app.conf.task_allow_error_cb_on_chord_header=False; out = c",
    "chord body chain": "out = chord([add.s(1), add.s(2)], tsum.s()|add.s(1))",
    "chord body chain3": "out = chord([add.s(1), add.s(2)], tsum.s()|add.s(1)|add.s(2))",
    "chord body group": "out = chord([add.s(1), add.s(2)], group(tsum.s(), cb.s()))",
    "chord body chord": "out = chord([add.s(1), add.s(2)], chord([tsum.s(), cb.s()], tsum.s()))",
    "chord in header": "out = chord([chord([add.s(1), add.s(2)], tsum.s()), add.s(3)], tsum.s())",
    "chord chain header": "out = chord([add.s(1)|mul.s(2), add.s(3)], tsum.s())",
    "chord chain group header": "out = chord([add.s(1)|group(mul.s(2), mul.s(3)), add.s(3)], tsum.s())",
    "chord group header": "out = chord([group(add.s(1), add.s(2)), add.s(3)], tsum.s())",
    "chord group header last": "out = chord([add.s(3), group(add.s(1), add.s(2))], tsum.s())",
    "chord header is chain": "out = chord(chain(add.s(1), add.s(2)), tsum.s())",
    "chord empty": "out = chord([], tsum.s())",
    "chord empty chain": "out = chord([chain()], tsum.s())",
    "chord one": "out = chord([add.s(1)], tsum.s())",
    "task group": "out = add.s(1)|group(add.s(2), add.s(3))",
    "task group one": "out = add.s(1)|group(add.s(2))",
    "task group task": "out = add.s(1)|group(add.s(2), add.s(3))|tsum.s()",
    "task group task2": "out = add.s(1)|group(add.s(2), add.s(3))|tsum.s()|add.s(5)",
    "group group": "out = group(add.s(1), add.s(2))|group(tsum.s(), cb.s())",
    "group group task": "out = group(add.s(1), add.s(2))|group(tsum.s(), cb.s())|tsum.s()",
    "task group group": "out = add.s(0)|group(add.s(1), add.s(2))|group(tsum.s(), cb.s())",
    "task group group task": "out = add.s(0)|group(add.s(1), add.s(2))|group(tsum.s(), cb.s())|tsum.s()",
    "chord chord": "out = chord([add.s(1), add.s(2)], tsum.s())|chord([add.s(1), add.s(2)], tsum.s())",
    "chain chords": "out = chain(add.s(0), chord([add.s(1), add.s(2)], tsum.s()), chord([add.s(1), add.s(2)], tsum.s()), add.s(9))",
    "chords 9": "c = add.s(1)\nfor i in range(9): c = c | group(add.s(1), add.s(2)) | tsum.s()\nout = c",
    "empty group head": "out = chain(group(), add.s(1), add.s(2))",
    "empty group mid": "out = chain(add.s(1), group(), add.s(2))",
    "raw group steps": "out = chain(add.s(1), group(add.s(2), add.s(3)), tsum.s(), app=app)",
    "raw group steps2": "out = chain(group(add.s(2), add.s(3)), group(tsum.s(), cb.s()), tsum.s(), add.s(1), app=app)",
    "raw head chain": "out = chain(chain(group(add.s(2), add.s(3)), app=app), tsum.s(), app=app)",
    "app chord call": "chord([add.s(1), add.s(2)])(tsum.s(), countdown=0)",
    "app chord taskid": 'chord([add.s(1), add.s(2)], tsum.s()).apply_async(task_id="body-id")',
    "chord linkopt": "chord([add.s(1), add.s(2)], tsum.s()).apply_async(link=cb.s(), link_error=eb.s())",
    "chord linkopt group": "chord([add.s(1), add.s(2)], group(tsum.s(), cb.s())).apply_async(link=cb.s(), link_error=eb.s())",
    "chord args": 'chord([add.s(1), add.si(2)], tsum.s()).apply_async((7,), {"k": 1})',
    "chain args": '(add.s(1)|mul.s(2)).apply_async((7,), {"k": 1})',
    "chain taskid": '(add.s(1)|mul.s(2)).apply_async(task_id="last")',
    "chain linkopt": "(add.s(1)|mul.s(2)).apply_async(link=[cb.s()], link_error=eb.s())",
    "chain grp linkopt": "(add.s(1)|group(mul.s(2), mul.s(3))).apply_async(link=[cb.s()], link_error=eb.s())",
    "group args": 'group(add.s(1), add.si(2), add.s(1)|mul.s(2)).apply_async((7,), {"k":1})',
    "group taskid": 'group(add.s(1), add.s(2)).apply_async(task_id="gid", priority=2)',
    "group call": "group(add.s(1), add.s(2))(5)",
    "group twice": "g=group(add.s(1), add.s(2)); g.apply_async(); g.apply_async()",
    "frozen chain": "c=add.s(1)|group(add.s(2), add.s(3))|tsum.s()|cb.s(); c.freeze(); out = c",
    "frozen group": "c=group(add.s(2), add.s(3)|mul.s(4)); c.freeze(); out = c",
    "frozen chord": "c=chord([add.s(2), add.s(3)|mul.s(4)], tsum.s()|cb.s()); c.freeze(); out = c",
    "frozen chord group": 'c=chord([add.s(2), add.s(3)], group(tsum.s(),cb.s())); c.freeze("idx"); out = c',
    "use link": "out = chain(add.s(1), add.s(2), add.s(3), use_link=True)",
    "xmap1": "out = add.map([1,2,3])",
    "xstarmap1": "out = add.starmap([(1,2),(3,4)])",
    "chunks1": "out = add.chunks(zip(range(5),range(5)),2).group()",
    "chunks2": "add.chunks([(1,2),(3,4),(5,6)],2).apply_async()",
    "chunks sig": "add.chunks([(1,2),(3,4),(5,6)],2)()",
    "map in chain": "out = chain(add.map([1,2]), tsum.s())",
    "map in group": "out = group(add.map([1,2]), add.starmap([(1,2)]))",
    "from dict1": "c=add.s(1)|group(add.s(2), add.s(3))|tsum.s()|cb.s(); out = signature(json.loads(json.dumps(c)), app=app)",
    "from dict2": "c=chord([add.s(1), add.s(2)|mul.s(3)], tsum.s()); out = signature(json.loads(json.dumps(c)), app=app)",
    "from dict3": "c=group(add.s(1), chord([add.s(1), add.s(2)|mul.s(3)], tsum.s())); out = signature(json.loads(json.dumps(c)), app=app)",
    "stamp1": 's=add.s(1); s.stamp(a=1,b="x"); out = s',
    "stamp chain": "c=add.s(1)|mul.s(2); c.stamp(a=1); out = c",
    "stamp group": "c=group(add.s(1),mul.s(2)); c.stamp(a=1); out = c",
    "stamp chord": "c=chord([add.s(1),mul.s(2)], tsum.s()); c.stamp(a=1); out = c",
    "stamp v1": "s=add.s(1); s.link(cb.s()); s.link_error(eb.s()); s.stamp(Visitor()); out = s",
    "stamp v2": "c=add.s(1)|mul.s(2); c.stamp(Visitor()); out = c",
    "stamp v3": "c=chord([add.s(1),mul.s(2)], tsum.s()); c.stamp(Visitor()); out = c",
    "stamp v4": "c=group(add.s(1),mul.s(2)|add.s(2)); c.stamp(Visitor(), foo=[1]); out = c",
    "stamp append": "c=add.s(1); c.stamp(a=1); c.stamp(a=2, append_stamps=True); c.stamp(append_stamps=True, a=[3,4]); out = c",
    "stamp twice": "c=add.s(1); c.stamp(a=1); c.stamp(a=2); out = c",
    "replaced": 'out = add.s(1).replace(args=(2,), options={"priority": 3})',
    "cloned": "out = (add.s(1)|mul.s(2)).clone()",
    "chord clone": "out = chord([add.s(1), add.s(2)], tsum.s()).clone()",
    "deep": "out = chord([chord([chord([add.s(1),add.s(2)], tsum.s()), add.s(3)], tsum.s()), add.s(4)|add.s(5)], tsum.s()|group(cb.s(), cb.s()))",
    "chord set countdown": "out = chord([add.s(1),add.s(2)], tsum.s()).set(priority=3)",
    "chord priority": "chord([add.s(1),add.s(2)], tsum.s()).apply_async(priority=7)",
    "chain group priority": "(add.s(0)|group([add.s(1),add.s(2)])|tsum.s()).apply_async(priority=7)",
    "immut group": "g=group(add.s(1),add.s(2)); g.set_immutable(True); out = add.s(1)|g",
    "chord immut": "g=chord([add.s(1),add.s(2)],tsum.s()); g.set_immutable(True); out = add.s(1)|g",
    "skew": "g=group(add.s(1),add.s(2)); g.skew(0, 0, 0); out = g",
    "onerror": "out = add.s(1).on_error(eb.s()).on_error(eb.s())",
    "chord nested errs": "c=chord([chord([add.s(1)], tsum.s()), add.s(2)], tsum.s()); c.link_error(eb.s()); out = c",
    "chain chord errs": "c=add.s(0)|group(add.s(1),add.s(2))|tsum.s()|add.s(4); c.link_error(eb.s()); out = c",
    "group chord": "out = group(chord([add.s(1), add.s(2)], tsum.s()), add.s(1))",
}

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
# Who sent it and which copy it is, and the order of a set.
_OWN = ("origin", "delivery_tag")


def numbered(value: Any, ids: dict[str, str]) -> Any:
    """Return the value with numbers for ids, without what is None: an option of None is one that is not given."""
    if isinstance(value, dict):
        return {
            key: sorted(item) if key == "stamped_headers" and item else numbered(item, ids)
            for key, item in sorted(value.items())
            if item is not None and key not in _OWN
        }
    if isinstance(value, list | tuple):
        return [numbered(item, ids) for item in value]
    if isinstance(value, str) and _ID.fullmatch(value):
        return ids.setdefault(value, f"#{len(ids)}")
    return value


def plain(value: Any) -> Any:
    """Return what the value is as JSON."""
    return json.loads(json.dumps(value, default=list))


class Bench:
    """One library, its tasks, and a Redis that it sends to."""

    def __init__(self, library: str, url: str) -> None:
        import redis

        module = importlib.import_module(library)
        self.redis = redis.Redis.from_url(url)
        cls = module.Celery
        self.app = cls("forms", broker=url, backend=url)
        names = ("chain", "group", "chord", "signature")
        self.names: dict[str, Any] = {name: getattr(module, name) for name in names}
        self.names.update(app=self.app, json=json)
        for name in ("add", "mul", "tsum", "cb", "eb"):
            self.names[name] = self.app.task(name=name)(self._body(name))
        base = importlib.import_module(f"{library}.canvas").StampingVisitor
        self.names["Visitor"] = type("Visitor", (base,), _VISITS)

    def _body(self, name: str) -> Any:
        def body(*args: Any, **kwargs: Any) -> None: ...

        body.__name__ = name
        return body

    def form(self, name: str, code: str) -> dict[str, Any]:
        """Return what a canvas looks like, before it is sent and on the wire."""
        names = dict(self.names)
        exec(code, names)
        sig = names.get("out")
        written = None
        if sig is not None:
            # Asking what a generator holds would read it.
            written = None if "gen" in name else numbered(plain(sig), {})
            sig.apply_async()
        ids: dict[str, str] = {}
        messages = [numbered(self._read(raw), ids) for raw in reversed(self.redis.lrange("celery", 0, -1))]
        sizes = sorted(int(self.redis.get(key) or 0) for key in self.redis.keys("*.s"))
        groups = sum(b"." not in key for key in self.redis.keys("celery-taskset-meta-*"))
        self.redis.flushall()
        return {"written": written, "messages": messages, "sizes": sizes, "groups": groups}

    def _read(self, raw: bytes) -> Any:
        message = json.loads(raw)
        body = json.loads(base64.b64decode(message["body"]))
        return {"headers": message["headers"], "body": body, "priority": message["properties"]["priority"]}


_VISITS: dict[str, Any] = {
    "on_signature": lambda self, sig, **headers: {"on_signature": sig["task"]},
    "on_group_start": lambda self, group, **headers: {"on_group": 1},
    "on_chain_start": lambda self, chain, **headers: {"on_chain": 1},
    "on_chord_body": lambda self, sig, **headers: {"on_body": 1},
    "on_callback": lambda self, callback, **headers: {"on_callback": 1},
    "on_errback": lambda self, errback, **headers: {"on_errback": 1},
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    bench = Bench(*sys.argv[1:])
    print(json.dumps({name: bench.form(name, code) for name, code in FORMS.items()}))
