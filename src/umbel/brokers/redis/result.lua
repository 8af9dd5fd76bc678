-- Store one result.
--
-- KEYS[1]  celery-task-meta-<id>     ARGV[5]  state     ARGV[6]  ms to keep it or empty     ARGV[7]  the encoded meta
-- Returns whether it was stored.
return put_result(KEYS[1], ARGV[5], ARGV[6], ARGV[7])
