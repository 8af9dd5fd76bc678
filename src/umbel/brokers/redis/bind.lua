-- Add to kombu's binding tables, also where the memory is full: a worker that starts there is to end what waits.
--
-- KEYS  the tables, sets     ARGV[5...]  what to add to each
for i, key in ipairs(KEYS) do call('SADD', key, ARGV[4 + i]) end
