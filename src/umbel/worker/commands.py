"""All built-in commands: importing this registers them."""

from __future__ import annotations

from collections.abc import Mapping

from umbel.worker import control_commands, inspect_commands, stacks
from umbel.worker.control import Panel, controller_info_t

__all__ = ["control_commands", "inspect_commands", "known_commands", "stacks"]


def known_commands() -> Mapping[str, controller_info_t]:
    """Return what is known of every command, those of the user's modules that are imported too."""
    return Panel.meta
