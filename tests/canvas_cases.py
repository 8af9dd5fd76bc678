"""Canvases that a program for Celery and the same program for Umbel send; what becomes of them must be equal.

Each case is an expression that makes a result. ``T`` is a tag of the case's own: tasks that are called with it leave a
line in a log that is compared too.
"""

# ruff: noqa: E501
# One line for each case.

from __future__ import annotations

TASKS = """
import json, os
from {module} import {cls}, chain, chord, group, signature, uuid

app = {cls}("peer", broker=os.environ["URL"], backend=os.environ.get("RESULTS", os.environ["URL"]))
app.conf.update(result_chord_retry_interval=0.2, {conf})

def log(tag, *what):
    with open(os.environ["LOG"], "a") as file:
        file.write(json.dumps([tag, *what]) + "\\n")

@app.task(name="add")
def add(x, y=0):
    return x + y

@app.task(name="mul")
def mul(x, y=2):
    return x * y

@app.task(name="ident")
def ident(x):
    return x

@app.task(name="xsum")
def xsum(values):
    return sum(values)

@app.task(name="args")
def args(*args, **kwargs):
    return [list(args), kwargs]

@app.task(name="fail")
def fail(*args):
    raise ValueError("boom", 7)

@app.task(name="note")
def note(value, tag):
    log(tag, "note", value)
    return value

@app.task(name="mark")
def mark(tag):
    log(tag, "mark")
    return "marked"

@app.task(name="eb_old")
def eb_old(task_id, tag):
    log(tag, "old")

@app.task(name="eb_bound", bind=True)
def eb_bound(self, task_id, tag):
    log(tag, "bound")

@app.task(name="eb_again", bind=True, autoretry_for=(OSError,))
def eb_again(self, task_id, tag):
    log(tag, "again")

@app.task(name="eb_new")
def eb_new(request, exc, traceback, tag):
    log(tag, "new", type(exc).__name__)

@app.task(name="eb_none")
def eb_none(tag):
    log(tag, "none")

@app.task(name="again", bind=True, max_retries=5)
def again(self, x, times=1):
    if self.request.retries < times:
        # Not at once: Celery sends a retry before it stores RETRY, which then replaces the SUCCESS of a quick worker.
        raise self.retry(countdown=0.5)
    return x

@app.task(name="family", bind=True)
def family(self, *args):
    request = self.request
    return [request.root_id, request.parent_id, request.id, request.group is not None, request.group_index]

@app.task(name="spawn", bind=True)
def spawn(self, x):
    return add.delay(x, 1).id

@app.task(name="spawn_group", bind=True)
def spawn_group(self, x):
    return group(add.s(x, i) for i in range(3)).apply_async().id

@app.task(name="returns_result", bind=True)
def returns_result(self, x):
    return add.delay(x, 1)

@app.task(name="replace_task", bind=True)
def replace_task(self, x):
    return self.replace(add.s(x, 100))

@app.task(name="replace_chain", bind=True)
def replace_chain(self, x):
    return self.replace(add.s(x, 100) | mul.s(2))

@app.task(name="replace_group", bind=True)
def replace_group(self, x):
    return self.replace(group(add.s(x, i) for i in range(3)))

@app.task(name="replace_chord", bind=True)
def replace_chord(self, x):
    return self.replace(chord([add.s(x, i) for i in range(3)], xsum.s()))

@app.task(name="replace_chain_group", bind=True)
def replace_chain_group(self, x):
    return self.replace(add.s(x, 1) | group(add.s(i) for i in range(3)))

@app.task(name="replace_twice", bind=True)
def replace_twice(self, x):
    return self.replace(replace_task.s(x + 1000))

@app.task(name="replace_fail", bind=True)
def replace_fail(self, x):
    return self.replace(fail.s())

@app.task(name="replace_with_link", bind=True)
def replace_with_link(self, x, tag):
    sig = add.s(x, 100)
    sig.link(note.s(tag))
    return self.replace(sig)

@app.task(name="replace_empty", bind=True)
def replace_empty(self, x):
    return self.replace(chain())

@app.task(name="extend", bind=True)
def extend(self, x):
    self.add_to_chord(add.s(x, 1000))
    return x

@app.task(name="sort")
def sort(values):
    return sorted(values)

@app.task(name="priority", bind=True)
def priority(self, *args):
    return self.request.delivery_info["priority"]

@app.task(name="stamps", bind=True)
def stamps(self, *args):
    return [sorted(self.request.stamped_headers or ()), self.request.stamps]
"""

CLIENT = """
import json, sys, time
from peer_tasks import *
from peer_tasks import app
try:
    from celery.canvas import StampingVisitor
    from celery.exceptions import TimeoutError
except ImportError:
    StampingVisitor = None
import warnings
warnings.simplefilter("ignore")

def outcome(result, timeout):
    try:
        return ["value", result.get(timeout=timeout)]
    except Exception as error:
        if type(error).__name__ == "TimeoutError":
            return ["hangs"]
        return ["raises", type(error).__name__, [str(each) for each in error.args]]

def shape(value):
    if value is None:
        return None
    return value.as_tuple()

cases = json.load(open(sys.argv[1]))
sent, found = {}, {}
for name, code in cases.items():
    try:
        sent[name] = eval(code, {**globals(), "T": name})
    except Exception as error:
        found[name] = {"refused": [type(error).__name__]}
for name, result in sent.items():
    extra = None
    if isinstance(result, tuple):
        result, extra = result
    if not hasattr(result, "get"):
        found[name] = {"value": result}
        continue
    found[name] = {"outcome": outcome(result, 30)}
    if extra is not None:
        found[name]["extra"] = [outcome(each, 5) for each in extra]
time.sleep(float(sys.argv[2]))
lines = [json.loads(line) for line in open(os.environ["LOG"])] if os.path.exists(os.environ["LOG"]) else []
for name in cases:
    found[name]["log"] = sorted(line[1:] for line in lines if line[0] == name)
print(json.dumps(found, default=lambda value: getattr(value, "as_tuple", lambda: repr(value))()))
"""

CASES = {
    # -- tasks and callbacks --
    "plain": "add.delay(1, 2)",
    "signature": "add.s(1).delay(2)",
    "partial": "args.s(3).apply_async((1, 2), {'k': 1})",
    "immutable": "args.si(3).apply_async((1, 2), {'k': 1})",
    "kwargs override": "args.s(k=1).apply_async((), {'k': 2})",
    "set immutable": "args.s(3).set(immutable=True).delay(1)",
    "clone": "args.s(3).clone((1,), {'a': 2}).delay()",
    "replace args": "add.s(1, 2).replace(args=(5, 6)).delay()",
    "by name": "signature('add', args=(1, 2), app=app).delay()",
    "of a dictionary": "signature(json.loads(json.dumps(add.s(1, 2))), app=app).delay()",
    "link": "add.apply_async((1, 2), link=note.s(T))",
    "two links": "add.apply_async((1, 2), link=[note.s(T), mark.si(T)])",
    "link of a link": "(lambda s: (s.link(add.s(10)), s.options['link'][0].link(note.s(T)), s.delay())[-1])(add.s(1, 2))",
    "link a chain": "add.apply_async((1, 2), link=add.s(1) | note.s(T))",
    "link a group": "add.apply_async((1, 2), link=group(note.s(T), note.s(T)))",
    "link a chord": "add.apply_async((1, 2), link=group(add.s(1), add.s(2)) | note.s(T))",
    "link of a failure": "fail.apply_async(link=note.s(T))",
    "errback old": "fail.apply_async(link_error=eb_old.s(T))",
    "errback bound": "fail.apply_async(link_error=eb_bound.s(T))",
    "errback bound, tries again": "fail.apply_async(link_error=eb_again.s(T))",
    "errback new": "fail.apply_async(link_error=eb_new.s(T))",
    "errback immutable": "fail.apply_async(link_error=eb_none.si(T))",
    "errbacks of both kinds": "fail.apply_async(link_error=[eb_old.s(T), eb_new.s(T)])",
    "errback group": "fail.apply_async(link_error=group(eb_old.s(T), eb_bound.s(T)))",
    "errback of a success": "add.apply_async((1, 2), link_error=eb_new.s(T))",
    "errback by keyword": "fail.apply_async(link_error=eb_new.s(tag=T))",
    "on_error": "fail.s().on_error(eb_new.s(T)).on_error(eb_old.s(T)).delay()",
    "callback fails": "add.apply_async((1, 2), link=fail.s())",
    "retried with a link": "again.apply_async((4,), link=note.s(T))",
    "retried with an errback": "again.apply_async((4, 9), link_error=eb_new.s(T))",
    # -- chains --
    "chain": "(add.s(1, 2) | add.s(3) | mul.s(2)).delay()",
    "chain of one": "chain(add.s(1, 2)).delay()",
    "chain of a list": "chain([add.s(1, 2), add.s(3)]).delay()",
    "chain of a generator": "chain(add.s(i) for i in range(5)).delay(0)",
    "empty chain": "chain().delay()",
    "chain with arguments": "(add.s(1) | add.s(3)).delay(10)",
    "chain with keywords": "(args.s(1) | ident.s()).apply_async((), {'k': 5})",
    "immutable step": "(add.s(1, 2) | add.si(5, 5) | add.s(1)).delay()",
    "immutable first": "(add.si(1, 2) | add.s(5)).delay(9)",
    "chain of chains": "chain(add.s(1, 2), chain(add.s(3), add.s(4)), add.s(5)).delay()",
    "chain or chain": "((add.s(1, 2) | add.s(3)) | (add.s(4) | add.s(5))).delay()",
    "chain in place": "(lambda c: c.__ior__(add.s(9)))(add.s(1) | add.s(2)).delay(0)",
    "chain link": "(lambda c: (c.link(note.s(T)), c.delay())[-1])(add.s(1, 2) | add.s(3))",
    "chain link option": "(add.s(1, 2) | add.s(3)).apply_async(link=note.s(T))",
    "chain link_error, first fails": "(fail.s() | add.s(3) | add.s(4)).apply_async(link_error=eb_new.s(T))",
    "chain link_error, last fails": "(add.s(1, 2) | fail.s()).apply_async(link_error=eb_new.s(T))",
    "chain link_error method": "(lambda c: (c.link_error(eb_new.s(T)), c.delay())[-1])(add.s(1, 2) | fail.s() | add.s(3))",
    "chain joined after link_error": "(lambda c: (c.link_error(eb_old.s(T)), (c | add.s(4)).delay())[-1])(add.s(1, 2) | fail.s())",
    "chain fails in the middle": "(lambda r: (r, [r.parent, r.parent.parent]))((add.s(1, 2) | fail.s() | add.s(3)).delay())",
    "chain parents": "(lambda r: (r, [r.parent, r.parent.parent]))((add.s(1, 2) | add.s(3) | add.s(4)).delay())",
    "later steps of a failure by id": "(lambda r: app.AsyncResult(r.id))((fail.s() | add.s(3) | add.s(4)).delay())",
    "chain task_id": "(lambda i: (add.s(1, 2) | add.s(3)).apply_async(task_id=i).id == i)(uuid())",
    "frozen chain": "(lambda c: (c.freeze(), c.delay())[-1])(add.s(1, 2) | add.s(3))",
    "frozen chain result": "(lambda c: (lambda r: (c.delay(), r)[-1])(c.freeze()))(add.s(1, 2) | add.s(3))",
    "chain twice": "(lambda c: (c.delay(), [c.delay()]))(add.s(1, 2) | add.s(3))",
    "chain with a retry": "(add.s(1, 2) | again.s() | add.s(3)).delay()",
    "chain of thirty": "chain(*[add.s(1) for _ in range(30)]).delay(0)",
    "chain family": "(family.si() | ident.s()).delay().get(timeout=15)[:2]",
    "chain call": "(add.s(1) | add.s(2))(3)",
    "chain callbacks in steps": "chain(add.s(1, 2).set(link=[note.s(T)]), add.s(3).set(link=[note.s(T)])).delay()",
    "chain errbacks in steps": "chain(fail.s().set(link_error=[eb_old.s(T)]), add.s(3).set(link_error=[eb_new.s(T)])).delay()",
    "invert": "~(add.s(1, 2) | add.s(3))",
    "map": "add.map([1, 2, 3]).delay()",
    "map of a generator": "add.map(i for i in range(4)).delay()",
    "starmap": "add.starmap([(1, 2), (3, 4)]).delay()",
    "map in a chain": "(add.map([1, 2]) | xsum.s()).delay()",
    "map in a group": "group(add.map([1, 2]), mul.starmap([(3, 4)])).delay()",
    "map in a chord": "chord([add.map([1, 2]), mul.map([3])], ident.s()).delay()",
    "map fails": "fail.map([1]).delay()",
    "chunks": "add.chunks(list(zip(range(5), range(5))), 2).apply_async()",
    "chunks group": "add.chunks(list(zip(range(5), range(5))), 2).group().apply_async()",
    "chunks call": "add.chunks(zip(range(4), range(4)), 3)()",
    # -- groups --
    "group": "group(add.s(1, 2), add.s(3, 4)).delay()",
    "group of a list": "group([add.s(1, 2), add.s(3, 4)]).delay()",
    "group of a generator": "group(add.s(i, i) for i in range(20)).delay()",
    "group of one": "group(add.s(1, 2)).delay()",
    "empty group": "group([]).delay()",
    "group with arguments": "group(add.s(1), add.si(3, 4)).delay(10)",
    "group with keywords": "group(args.s(1), args.s(2)).apply_async((0,), {'k': 1})",
    "group of groups": "group(add.s(1, 2), group(add.s(3, 4), add.s(5, 6))).delay()",
    "group of chains": "group(add.s(1, 2) | add.s(3), add.s(4, 5) | mul.s(3)).delay()",
    "group of a chain and a group": "group(add.s(1, 2) | group(add.s(3), add.s(4))).delay()",
    "group of two such": "group(add.s(1, 2) | group(add.s(3), add.s(4)), add.s(1, 1)).delay()",
    "group of chords": "group(chord([add.s(1, 2), add.s(3, 4)], xsum.s()), add.s(1, 1)).delay()",
    "group with an empty chain": "group(chain(), add.s(1, 2)).delay()",
    "group fails": "group(add.s(1, 2), fail.s()).delay()",
    "group fails, all": "group(fail.s(), fail.s()).delay()",
    "group errbacks": "(lambda g: (g.link_error(eb_new.s(T)), g.delay())[-1])(group(fail.s(), add.s(1, 2), fail.s()))",
    "group link": "(lambda g: (g.link(mark.s(T)), g.delay())[-1])(group(add.s(1, 2), add.s(3, 4)))",
    "group link option": "group(add.s(1, 2)).apply_async(link=note.s(T))",
    "group link_error option": "group(add.s(1, 2)).apply_async(link_error=note.s(T))",
    "group call": "group(add.s(1), add.s(2))(5)",
    "group twice": "(lambda g: (g.delay(), [g.delay()]))(group(add.s(1, 2), add.s(3, 4)))",
    "group frozen": "(lambda g: (g.freeze(), g.delay())[-1])(group(add.s(1, 2), add.s(3, 4)))",
    "group saved": "(lambda r: (r.save(), app.GroupResult.restore(r.id))[-1])(group(add.s(1, 2), add.s(3, 4)).delay())",
    "group with a retry": "group(again.s(1), add.s(1, 2)).delay()",
    "task then group": "(add.s(1, 2) | group(add.s(3), add.s(4))).delay()",
    "task then group of one": "(add.s(1, 2) | group(add.s(3))).delay()",
    "task then empty group": "(add.s(1, 2) | group([])).delay()",
    "empty group then task": "chain(group([]), add.s(1, 2), add.s(3)).delay()",
    "task then group fails": "(add.s(1, 2) | group(add.s(3), fail.s())).delay()",
    "failure then group": "(fail.s() | group(add.s(3), add.s(4))).delay()",
    # -- chords --
    "chord": "chord([add.s(1, 2), add.s(3, 4)], xsum.s()).delay()",
    "chord call": "chord([add.s(1, 2), add.s(3, 4)])(xsum.s())",
    "chord of a generator": "chord((add.s(i, i) for i in range(30)), xsum.s()).delay()",
    "chord order": "chord([add.s(i) for i in range(30)], ident.s()).delay()",
    "chord of one": "chord([add.s(1, 2)], xsum.s()).delay()",
    "chord of a group of one": "(group(add.s(1, 2)) | xsum.s()).delay()",
    "empty chord": "chord([], ident.s()).delay()",
    "chord of empty chains": "chord([chain()], ident.s()).delay()",
    "chord of empty groups": "chord([group([])], ident.s()).delay()",
    "group or task": "(group(add.s(1, 2), add.s(3, 4)) | xsum.s()).delay()",
    "group or task or task": "(group(add.s(1, 2), add.s(3, 4)) | xsum.s() | add.s(5)).delay()",
    "task, group, task": "(add.s(1, 2) | group(add.s(3), add.s(4)) | xsum.s()).delay()",
    "task, group, task, task": "(add.s(1, 2) | group(add.s(3), add.s(4)) | xsum.s() | add.s(5)).delay()",
    "group, group": "(group(add.s(1, 2), add.s(3, 4)) | group(xsum.s(), ident.s())).delay()",
    "group, group, task": "(group(add.s(1, 2), add.s(3, 4)) | group(xsum.s(), xsum.s()) | xsum.s()).delay()",
    "task, group, group, task": "(add.s(0, 0) | group(add.s(1), add.s(2)) | group(xsum.s(), xsum.s()) | xsum.s()).delay()",
    "chord with arguments": "chord([add.s(1), add.si(3, 4)], xsum.s()).delay(10)",
    "chord with keywords": "chord([args.s(1)], ident.s()).apply_async((), {'k': 1})",
    "chord, immutable body": "chord([add.s(1, 2)], add.si(7, 8)).delay()",
    "chord body with arguments": "chord([add.s(1, 2)], args.s(7)).delay()",
    "chord body is a chain": "chord([add.s(1, 2), add.s(3, 4)], xsum.s() | add.s(1) | mul.s(2)).delay()",
    "chord body is a group": "chord([add.s(1, 2), add.s(3, 4)], group(xsum.s(), ident.s())).delay()",
    "chord body is a chord": "chord([add.s(1, 2)], chord([xsum.s(), xsum.s()], xsum.s())).delay()",
    "chord body ends in a group": "chord([add.s(1, 2), add.s(3, 4)], xsum.s() | group(add.s(1), add.s(2))).delay()",
    "chord in a header": "chord([chord([add.s(1, 2), add.s(3, 4)], xsum.s()), add.s(5, 6)], xsum.s()).delay()",
    "chord three deep": "chord([chord([chord([add.s(1, 2)], xsum.s()), add.s(1, 1)], xsum.s()), add.s(5, 6)], xsum.s()).delay()",
    "chord of chains": "chord([add.s(1, 2) | add.s(3), add.s(4, 5) | mul.s(2)], ident.s()).delay()",
    "chord of a chain with a group": "chord([add.s(1, 2) | group(add.s(3), add.s(4)), add.s(9, 9)], ident.s()).delay()",
    "chord of a chain with a chord": "chord([add.s(1, 2) | group(add.s(3), add.s(4)) | xsum.s(), add.s(9, 9)], ident.s()).delay()",
    "chord of a chain as header": "chord(chain(add.s(1, 1), add.s(2, 2)), ident.s()).delay()",
    "chord or chord": "(chord([add.s(1, 2)], xsum.s()) | chord([add.s(3), add.s(4)], xsum.s())).delay()",
    "chain of chords": "chain(add.s(0, 0), group(add.s(1), add.s(2)), xsum.s(), group(add.s(1), add.s(2)), xsum.s()).delay()",
    "nine chords": "chain(add.s(0, 0), *[each for _ in range(9) for each in (group(add.s(1), add.s(2)), xsum.s())]).delay()",
    "chord link": "(lambda c: (c.link(note.s(T)), c.delay())[-1])(chord([add.s(1, 2)], xsum.s()))",
    "chord link option": "chord([add.s(1, 2)], xsum.s()).apply_async(link=note.s(T))",
    "chord body link": "chord([add.s(1, 2)], xsum.s().set(link=[note.s(T)])).delay()",
    "chord header link": "chord([add.s(1, 2).set(link=[note.s(T)]), add.s(3, 4)], xsum.s()).delay()",
    "chord task_id": "(lambda i: chord([add.s(1, 2)], xsum.s()).apply_async(task_id=i).id == i)(uuid())",
    "chord frozen": "(lambda c: (c.freeze(), c.delay())[-1])(chord([add.s(1, 2), add.s(3, 4)], xsum.s()))",
    "chord frozen, its result": "(lambda c: (lambda r: (c.delay(), r)[-1])(c.freeze()))(chord([add.s(1, 2), add.s(3, 4)], xsum.s()))",
    "chord parent": "(lambda r: (r, [r.parent]))(chord([add.s(1, 2), add.s(3, 4)], xsum.s()).delay())",
    "chord with a retry": "chord([again.s(1), add.s(1, 2)], xsum.s()).delay()",
    "chord body with a retry": "chord([add.s(1, 2)], again.s()).delay()",
    "chord of a dictionary": "signature(json.loads(json.dumps(chord([add.s(1, 2), add.s(3, 4)], xsum.s()))), app=app).delay()",
    "chord countdown": "chord([add.s(1, 2)], xsum.s()).apply_async(countdown=0.2)",
    "chord family": "(lambda r: [r.get(timeout=15)[0] is not None, r.get()[1] in [m.id for m in r.parent.results]])(chord([add.s(1, 2), add.s(3, 4)], family.si()).delay())",
    # -- chords that fail --
    "chord fails": "(lambda r: (r, [app.AsyncResult(r.id)]))(chord([add.s(1, 2), fail.s()], xsum.s()).delay())",
    "chord fails, first": "chord([fail.s(), add.s(1, 2)], xsum.s()).delay()",
    "chord fails, all": "chord([fail.s(), fail.s()], xsum.s()).delay()",
    "chord errback of body": "chord([add.s(1, 2), fail.s()], xsum.s().on_error(eb_new.s(T))).delay()",
    "chord errback of body, old": "chord([fail.s(), fail.s()], xsum.s().on_error(eb_old.s(T))).delay()",
    "chord errbacks of body": "chord([fail.s()], xsum.s().on_error(eb_old.s(T)).on_error(eb_new.s(T))).delay()",
    "chord link_error": "(lambda c: (c.link_error(eb_new.s(T)), c.delay())[-1])(chord([add.s(1, 2), fail.s()], xsum.s()))",
    "chord link_error option": "chord([add.s(1, 2), fail.s()], xsum.s()).apply_async(link_error=eb_new.s(T))",
    "chord link_error, body fails": "(lambda c: (c.link_error(eb_new.s(T)), c.delay())[-1])(chord([add.s(1, 2)], fail.s()))",
    "chord header errback": "chord([fail.s().on_error(eb_new.s(T)), add.s(1, 2)], xsum.s()).delay()",
    "chord of group errback": "(lambda c: (c.link_error(eb_old.s(T)), c.delay())[-1])(group(fail.s(), add.s(1, 2)) | xsum.s())",
    "chord body fails": "chord([add.s(1, 2)], fail.s()).delay()",
    "chord fails, chain after": "(lambda r: (r, [app.AsyncResult(r.id)]))((group(fail.s(), add.s(1, 2)) | xsum.s() | add.s(1)).delay())",
    "chord fails, chain body": "(lambda r: (r, [app.AsyncResult(r.id)]))(chord([fail.s()], xsum.s() | add.s(1)).delay())",
    "chord fails, chain body errback": "chord([fail.s()], (xsum.s() | add.s(1)).on_error(eb_new.s(T))).delay()",
    "chord fails, group body": "chord([fail.s(), add.s(1, 2)], group(xsum.s(), ident.s())).delay()",
    "chord fails, group body errbacks": "chord([fail.s()], group(xsum.s().on_error(eb_new.s(T)), ident.s().on_error(eb_new.s(T)))).delay()",
    "chord fails in a chain": "(add.s(1, 2) | group(add.s(3), fail.s()) | xsum.s() | add.s(5)).delay()",
    "chain before a chord fails": "(lambda r: (r, [app.AsyncResult(r.id)]))((fail.s() | group(add.s(3), add.s(4)) | xsum.s()).delay())",
    "chain in a header fails": "chord([fail.s() | add.s(1), add.s(1, 2)], xsum.s().on_error(eb_new.s(T))).delay()",
    "chain in a header fails late": "chord([add.s(1, 2) | add.s(1) | fail.s(), add.s(1, 2)], xsum.s()).delay()",
    "chord in a header fails": "chord([chord([fail.s()], xsum.s()), add.s(1, 2)], xsum.s()).delay()",
    "chord body in a header fails": "chord([chord([add.s(1, 2)], fail.s()), add.s(1, 2)], xsum.s()).delay()",
    "chain with a chord in a header fails": "chord([fail.s() | group(add.s(1), add.s(2)) | xsum.s(), add.s(1, 2)], xsum.s()).delay()",
    "chain with a group in a header fails": "chord([fail.s() | group(add.s(1), add.s(2)), add.s(1, 2)], ident.s()).delay()",
    "chord of chords, one fails": "chord([chord([add.s(1, 2)], xsum.s()), chord([fail.s()], xsum.s())], xsum.s().on_error(eb_new.s(T))).delay()",
    "two chords, first fails": "chain(group(fail.s(), add.s(1, 2)), xsum.s(), group(add.s(1), add.s(2)), xsum.s()).delay()",
    # -- replace and add_to_chord --
    "replace": "replace_task.delay(1)",
    "replace with a chain": "replace_chain.delay(1)",
    "replace with a group": "replace_group.delay(1)",
    "replace with a chord": "replace_chord.delay(1)",
    "replace with a chain and a group": "replace_chain_group.delay(1)",
    "replace twice": "replace_twice.delay(1)",
    "replace with a failure": "replace_fail.delay(1)",
    "replace with nothing": "replace_empty.delay(1)",
    "replace, callbacks": "replace_task.apply_async((1,), link=note.s(T))",
    "replace with a chain, callbacks": "replace_chain.apply_async((1,), link=note.s(T))",
    "replace with a group, callbacks": "replace_group.apply_async((1,), link=note.s(T))",
    "replace, own link and callbacks": "replace_with_link.apply_async((1, T), link=note.s(T))",
    "replace with a failure, errbacks": "replace_fail.apply_async((1,), link_error=eb_new.s(T))",
    "replace first of a chain": "(replace_task.s(1) | add.s(5)).delay()",
    "replace middle of a chain": "(add.s(1, 1) | replace_chain.s() | add.s(5)).delay()",
    "replace last of a chain": "(add.s(1, 1) | replace_group.s()).delay()",
    "replace with a group in a chain": "(add.s(1, 1) | replace_group.s() | xsum.s()).delay()",
    "replace with a chord in a chain": "(add.s(1, 1) | replace_chord.s() | add.s(1)).delay()",
    "replace with a failure in a chain": "(replace_fail.s(1) | add.s(1)).apply_async(link_error=eb_new.s(T))",
    "replace in a group": "group(replace_task.s(1), replace_chain.s(2), add.s(3, 4)).delay()",
    "replace in a header": "chord([replace_task.s(1), replace_chain.s(2), add.s(3, 4)], ident.s()).delay()",
    "replace with a group in a header": "chord([replace_group.s(1), add.s(3, 4)], ident.s()).delay()",
    "replace with a chord in a header": "chord([replace_chord.s(1), add.s(3, 4)], ident.s()).delay()",
    "replace with a failure in a header": "chord([replace_fail.s(1), add.s(3, 4)], xsum.s().on_error(eb_new.s(T))).delay()",
    "replace a body": "chord([add.s(3, 4)], xsum.s() | replace_task.s()).delay()",
    "replace a body with a group": "chord([add.s(3, 4)], xsum.s() | replace_group.s()).delay()",
    "replace chain in a header": "chord([add.s(1, 1) | replace_chain.s() | add.s(1), add.s(1, 1)], ident.s()).delay()",
    "add to chord": "chord([extend.s(1), extend.s(2), add.s(3, 4)], sort.s()).delay()",
    "add to no chord": "extend.delay(1)",
    # -- options, stamps, families --
    "priority": "priority.apply_async(priority=3)",
    "priority in a chain": "(ident.s(1).set(priority=3) | priority.s().set(priority=6)).delay()",
    "priority of a group": "group(priority.s(), priority.s()).apply_async(priority=6)",
    "priority of a chord": "chord([priority.s(), priority.s()], ident.s()).apply_async(priority=3)",
    "stamp": "(lambda s: (s.stamp(a=1, b='x'), s.delay())[-1])(stamps.s())",
    "stamp a chain": "(lambda s: (s.stamp(a=1), s.delay())[-1])(ident.s(1) | stamps.s())",
    "stamp a group": "(lambda s: (s.stamp(a=1), s.delay())[-1])(group(stamps.s(), stamps.s()))",
    "stamp a header": "(lambda s: (s.stamp(a=1), s.delay())[-1])(chord([stamps.s(), stamps.s()], ident.s()))",
    "stamp a body": "(lambda s: (s.stamp(a=1), s.delay())[-1])(chord([add.s(1, 2)], stamps.s()))",
    "stamp twice": "(lambda s: (s.stamp(a=1), s.stamp(a=2), s.delay())[-1])(stamps.s())",
    "stamp and append": "(lambda s: (s.stamp(a=1), s.stamp(a=2, append_stamps=True), s.delay())[-1])(stamps.s())",
    "stamp a replaced one": "(lambda s: (s.stamp(a=1), s.delay())[-1])(replace_task.s(1))",
    "children": "(lambda r: (r.get(timeout=15), len(r.children))[-1])(spawn.delay(1))",
    "children of a chain": "(lambda r: [r.get(timeout=15), len(r.parent.children)])((add.s(1, 2) | add.s(3)).delay())",
    "children of a group": "(lambda r: (r.get(timeout=15), [type(c).__name__ for c in r.children])[-1])(spawn_group.delay(1))",
    "collect": "(lambda r: (r.get(timeout=15), r.parent.get(timeout=15), [v for _, v in r.parent.collect(timeout=15)])[-1])((add.s(1, 2) | add.s(3)).delay())",
    "get_leaf": "(lambda r: (r.get(timeout=15), r.parent.get_leaf())[-1])((add.s(1, 2) | add.s(3)).delay())",
    "graph": "(lambda r: (r.get(timeout=15), len(r.parent.graph))[-1])((add.s(1, 2) | add.s(3)).delay())",
    "a result is returned": "(lambda r: type(r.get(timeout=15)).__name__)(returns_result.delay(1))",
    "built-in accumulate": "signature('celery.accumulate', args=(1, 2), app=app).delay()",
}
