-- From schema 2 to 3: the task that was sent in place of one, so that nobody sends it twice.

ALTER TABLE tasks ADD COLUMN replay TEXT;
