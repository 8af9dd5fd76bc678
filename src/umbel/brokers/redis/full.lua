-- What workers do goes on when the server's memory is full: it ends what is there.
--
-- Redis refuses a command that may take memory (maxmemory with noeviction), except in a script that has written
-- before. So these scripts begin with a write that changes nothing. Those that publish do not, and are refused.
--
-- <prefix>umbel:none  is never there
call('DEL', NS .. 'none')
