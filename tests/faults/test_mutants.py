"""The stateful test finds our own brokers out when a rule that keeps them safe is taken away.

Each mutant is one replacement in a copy of the sources; a text that is no longer there exactly once fails as well, and
then the mutant is to be written anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import umbel
from support import environment

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]
ROOT = Path(__file__).resolve().parent.parent


class Mutant(NamedTuple):
    """What is replaced, in which file under ``umbel/brokers``, and the driver whose test must fail."""

    name: str
    driver: str
    file: str
    old: str
    new: str


MUTANTS = [
    Mutant(
        "reserve does not ask whether the consumer is live",
        "redis",
        "redis/reserve.lua",
        "if call('HGET', KEYS[1], 'state') ~= 'live' then return {'gone'} end",
        "",
    ),
    Mutant(
        "settle does not ask whether the message is held",
        "redis",
        "redis/settle.lua",
        "if call('HDEL', inf, tag) == 1 then results[#results + 1] = at else refuse(tag) end",
        "call('HDEL', inf, tag)\n    results[#results + 1] = at",
    ),
    Mutant(
        "reap does not compare the beat",
        "redis",
        "redis/reap.lua",
        "if call('HGET', KEYS[1], 'beat') ~= ARGV[6] then return {0, 0} end",
        "",
    ),
    Mutant(
        "reap deletes the record first",
        "redis",
        "redis/reap.lua",
        "if moved == #tags then",
        "call('ZREM', NS .. 'widx', ARGV[5])\nif moved == #tags then",
    ),
    Mutant(
        "requeue puts messages at the tail",
        "redis",
        "redis/give.lua",
        "if not crashed then return push('RPUSH', list_key(m.queue, m.step), m.raw) end",
        "if not crashed then return push('LPUSH', list_key(m.queue, m.step), m.raw) end",
    ),
    Mutant(
        "renew revives who was reaped",
        "redis",
        "redis/renew.lua",
        "if call('HGET', key, 'state') == 'live' then",
        "if call('HGET', key, 'state') then",
    ),
    Mutant(
        "reap does not compare the beat",
        "sqlite",
        "sqlite/leases.py",
        "if row is None or row[3] != suspect.beat or not",
        "if row is None or not",
    ),
    Mutant(
        "reap deletes the record first",
        "sqlite",
        "sqlite/leases.py",
        '        if not left:\n            tx.execute("DELETE FROM consumers',
        '        if True:\n            tx.execute("DELETE FROM consumers',
    ),
    Mutant(
        "renew revives who was reaped",
        "sqlite",
        "sqlite/leases.py",
        "AND NOT reaped RETURNING id",
        "RETURNING id",
    ),
    Mutant(
        "what must run once goes back",
        "sqlite",
        "sqlite/places.py",
        "    if held.once and held.counted:",
        "    if False:",
    ),
    Mutant(
        "reap does not compare the beat",
        "memory",
        "memory.py",
        "if member is None or member.beat != suspect.beat:",
        "if member is None:",
    ),
    Mutant(
        "reserve does not ask whether the consumer is live",
        "memory",
        "memory.py",
        "if member is None or member.reaped:\n            raise",
        "if member is None:\n            raise",
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.driver}: {mutant.name}")
def test_a_mutant_is_found(mutant: Mutant, tmp_path: Path) -> None:
    sources = Path(umbel.__file__).parent
    shutil.copytree(sources, tmp_path / "umbel", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "umbel" / "brokers" / mutant.file
    text = file.read_text()
    assert text.count(mutant.old) == 1, f"{mutant.file} has changed: write this mutant anew"
    file.write_text(text.replace(mutant.old, mutant.new))
    test = f"tests/properties/test_broker_machine.py::test_{mutant.driver}"
    env = environment(PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    # It must be the mutant that is tested, wherever the package is installed.
    check = f"import umbel; assert umbel.__file__.startswith({str(tmp_path)!r}), umbel.__file__"
    subprocess.run([sys.executable, "-c", check], env=env, cwd=ROOT.parent, check=True, timeout=30)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", test, "-q", "-x", "-o", "timeout=120"],
        env=env,
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 1, f"nothing was noticed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert "Failing test case" in done.stdout, done.stdout[-3000:]
