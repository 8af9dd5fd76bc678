-- From schema 1 to 2: tasks that belong together. What is known of those that share a root is put together; which tasks
-- were members of one group nobody wrote down.
--
-- The tables, and what they hold, are those of schema.sql.

ALTER TABLE tasks ADD COLUMN group_id TEXT;
ALTER TABLE tasks ADD COLUMN ahead TEXT;
ALTER TABLE tasks ADD COLUMN workflow INTEGER;
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

INSERT INTO workflows (id, first, latest)
SELECT root, min(coalesce(sent, received, started, at)), max(at) FROM tasks WHERE root IS NOT NULL
GROUP BY root HAVING count(*) > 1 ORDER BY min(number);
INSERT INTO kin (key, workflow) SELECT id, number FROM workflows;
UPDATE tasks SET workflow = (SELECT workflow FROM kin WHERE key = root) WHERE root IN (SELECT key FROM kin);
