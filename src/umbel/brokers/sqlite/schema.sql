-- One file holds the queues, the results and the small shared state of one application.
--
-- sequence     one row: the last number given out. Message ids, positions, holds, consumers, changes of results,
--              versions of the store and notes are all numbered from it, so no number is ever used twice.
-- messages     every message that is not settled, with what travels beside its envelope. A message has exactly one
--              row in one of: ready, scheduled, gated, held, ends, dead.
--   position   its place in its queue, kept while it is held so that it can go back there
--   crashes    deliveries that ended with a crash
--   log        the latest of those: a JSON list of [moment, id of the consumer, cause]
--   verdict    how it must end, once that was decided outside an engine; then it waits in ends instead of ready
--   due        of one at a gate: the moment before which it is not for the queue (microseconds since the epoch)
-- ready        what can be reserved, in the order in which it will be
-- scheduled    what is not due before a moment (microseconds since the epoch)
-- gated        what waits at a gate until it is freed
-- held         what one consumer holds. "hold" is the tag, and the fence: it grows with every delivery.
--   once       it was begun and must never run again
--   chord      it brought the last part of this chord and has still to publish the body
-- ends         what an engine must end and not run, served before any queue
-- dead         dead letters, and why
-- consumers    who may hold messages. Its number is the byte of the .workers file that its supervisor keeps locked.
--   boot, beat_at  the run of the machine, and its milliseconds at the last beat
-- seen         task ids published lately, in buckets of time so that old ones go in runs and new ones stay together
-- uniques      keys of which one message may exist, and its task id
-- results      the latest meta of each task; "number" grows with each change, so a watcher asks for what is newer
-- groups       descriptions of groups
-- chords       one row for each chord: how many parts it needs and has, and which part claimed the body
-- chord_parts  the parts, in the order of the members; those without an index come last
-- pairs        the store: values with versions
-- leases       the store: named leases; the fence grows with each new owner
-- notes        what was published to all who listen; kept for a minute
--
-- Moments are seconds since the epoch unless it says otherwise. NULL in "expires" means never.

CREATE TABLE sequence (value INTEGER NOT NULL);
INSERT INTO sequence VALUES (0);

CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    queue TEXT NOT NULL,
    priority INTEGER NOT NULL,
    position INTEGER NOT NULL,
    crashes INTEGER NOT NULL DEFAULT 0,
    verdict TEXT,
    detail TEXT,
    enqueued_at REAL NOT NULL,
    raw BLOB NOT NULL,
    log TEXT,
    due INTEGER
);

CREATE TABLE ready (
    queue TEXT NOT NULL,
    priority INTEGER NOT NULL,
    position INTEGER NOT NULL,
    message INTEGER NOT NULL,
    PRIMARY KEY (queue, priority, position)
) WITHOUT ROWID;

CREATE TABLE scheduled (
    due INTEGER NOT NULL,
    message INTEGER NOT NULL,
    queue TEXT NOT NULL,
    PRIMARY KEY (due, message)
) WITHOUT ROWID;

CREATE TABLE gated (
    gate TEXT NOT NULL,
    position INTEGER NOT NULL,
    message INTEGER NOT NULL,
    PRIMARY KEY (gate, position)
) WITHOUT ROWID;

CREATE TABLE held (
    hold INTEGER PRIMARY KEY,
    consumer INTEGER NOT NULL,
    message INTEGER NOT NULL,
    once INTEGER NOT NULL DEFAULT 0,
    chord TEXT
);

CREATE TABLE ends (
    queue TEXT NOT NULL,
    position INTEGER NOT NULL,
    message INTEGER NOT NULL,
    PRIMARY KEY (queue, position)
) WITHOUT ROWID;

CREATE TABLE dead (
    queue TEXT NOT NULL,
    number INTEGER NOT NULL,
    message INTEGER NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    died_at REAL NOT NULL,
    traceback TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (queue, number)
) WITHOUT ROWID;

CREATE TABLE consumers (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    node TEXT NOT NULL,
    beat INTEGER NOT NULL DEFAULT 1,
    reaped INTEGER NOT NULL DEFAULT 0,
    boot TEXT NOT NULL,
    beat_at INTEGER NOT NULL
);

CREATE TABLE seen (
    bucket INTEGER NOT NULL,
    task_id TEXT NOT NULL,
    published_at REAL NOT NULL,
    PRIMARY KEY (bucket, task_id)
) WITHOUT ROWID;

CREATE TABLE uniques (
    key TEXT PRIMARY KEY,
    task_id TEXT NOT NULL,
    expires REAL
) WITHOUT ROWID;

CREATE TABLE results (
    number INTEGER PRIMARY KEY,
    task_id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    payload BLOB NOT NULL,
    expires REAL
);
CREATE INDEX results_expires ON results (expires) WHERE expires IS NOT NULL;

CREATE TABLE groups (
    group_id TEXT PRIMARY KEY,
    payload BLOB NOT NULL,
    expires REAL
) WITHOUT ROWID;

CREATE TABLE chords (
    group_id TEXT PRIMARY KEY,
    size INTEGER,
    parts INTEGER NOT NULL DEFAULT 0,
    claim TEXT,
    closed INTEGER NOT NULL DEFAULT 0,
    expires REAL
) WITHOUT ROWID;

CREATE TABLE chord_parts (
    group_id TEXT NOT NULL,
    place INTEGER NOT NULL,
    task_id TEXT NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (group_id, place, task_id)
) WITHOUT ROWID;

CREATE TABLE pairs (
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL,
    version INTEGER NOT NULL,
    expires REAL
) WITHOUT ROWID;
CREATE INDEX pairs_expiring ON pairs (expires) WHERE expires IS NOT NULL;

CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    fence INTEGER NOT NULL,
    expires REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE notes (
    number INTEGER PRIMARY KEY,
    exchange TEXT NOT NULL,
    routing_key TEXT NOT NULL,
    raw BLOB NOT NULL,
    published_at REAL NOT NULL
);
