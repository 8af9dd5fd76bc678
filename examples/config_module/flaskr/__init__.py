"""An application that keeps its queue's settings in a module."""
