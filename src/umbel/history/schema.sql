-- What happened to tasks, as it was heard. The file is nobody's queue: it may be deleted at any time.
--
-- tasks        one row for each task id, numbered in the order in which they were first heard of. Every list is in the
--              order of these numbers: each index holds them behind its own column, so a page of any filter is read
--              off an index, and a new state moves one entry and not the row's place in the lists.
--   at         when what made the state happened, by the clock of whoever told it
--   heard      when the recorder first heard of the task, by its own clock
--   told       how many happenings were heard
--   fingerprint  of the error that it ended with, or waits for a retry because of
--   ahead      what follows it, as JSON: [{"id": …, "name": …, "group": …}], the next step first
--   workflow   the number of the workflow that it is a part of; nothing for a task that stands alone
-- happenings   what was told of a task: "kind" is what follows the dash of an event's type. The key makes an event that
--              two recorders hear, or one hears twice, one row.
-- errors       groups of failures that look alike, counted for ever; see fingerprint.py
-- workflows    tasks that belong together; "first" and "latest" are the moments of the first and the last news of them
-- kin          by what a task is found to belong to a workflow: a root's id, or a group's
-- words        the texts by whose beginnings tasks are found; its rowid is the task's number
--
-- Moments are seconds since the epoch.

CREATE TABLE tasks (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    at REAL NOT NULL,
    heard REAL NOT NULL,
    told INTEGER NOT NULL,
    queue TEXT,
    worker TEXT,
    client TEXT,
    args TEXT,
    kwargs TEXT,
    result TEXT,
    exception TEXT,
    fingerprint TEXT,
    sent REAL,
    received REAL,
    started REAL,
    ended REAL,
    runtime REAL,
    retries INTEGER,
    eta TEXT,
    expires TEXT,
    root TEXT,
    parent TEXT,
    group_id TEXT,
    ahead TEXT,
    workflow INTEGER,
    replay TEXT
);
CREATE INDEX tasks_state ON tasks (state);
CREATE INDEX tasks_name ON tasks (name);
CREATE INDEX tasks_heard ON tasks (heard);
CREATE INDEX tasks_queue ON tasks (queue) WHERE queue IS NOT NULL;
CREATE INDEX tasks_worker ON tasks (worker) WHERE worker IS NOT NULL;
CREATE INDEX tasks_fingerprint ON tasks (fingerprint) WHERE fingerprint IS NOT NULL;
CREATE INDEX tasks_root ON tasks (root) WHERE root IS NOT NULL;
CREATE INDEX tasks_parent ON tasks (parent) WHERE parent IS NOT NULL;
CREATE INDEX tasks_workflow ON tasks (workflow, state) WHERE workflow IS NOT NULL;

CREATE TABLE workflows (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    first REAL NOT NULL,
    latest REAL NOT NULL
);

CREATE TABLE kin (
    key TEXT PRIMARY KEY,
    workflow INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX kin_workflow ON kin (workflow);

CREATE TABLE happenings (
    task INTEGER NOT NULL,
    at REAL NOT NULL,
    kind TEXT NOT NULL,
    worker TEXT NOT NULL,
    detail TEXT,
    traceback TEXT,
    runtime REAL,
    PRIMARY KEY (task, at, kind, worker)
) WITHOUT ROWID;

CREATE TABLE errors (
    fingerprint TEXT PRIMARY KEY,
    type TEXT NOT NULL,
    message TEXT NOT NULL,
    frame TEXT NOT NULL,
    count INTEGER NOT NULL,
    first REAL NOT NULL,
    latest REAL NOT NULL,
    task TEXT NOT NULL,
    name TEXT NOT NULL,
    exception TEXT NOT NULL,
    traceback TEXT
) WITHOUT ROWID;
CREATE INDEX errors_latest ON errors (latest);

CREATE VIRTUAL TABLE words USING fts5 (text, prefix = '1 2 3', detail = full);
