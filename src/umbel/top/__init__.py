"""A screen in the terminal for the workers, queues and tasks of an app: ``umbel top``.

source.py   what there is to see, and what can be done: of events, the broker, the workers and the history
crew.py     what workers say when they are asked
flow.py     how fast messages come into queues and leave them
telling.py  all of that as words and styles
screen.py   the screen; with parts.py the only modules that know textual
"""
