"""One file per command. `headrace.cli` imports them by name when they are called."""
