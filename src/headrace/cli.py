"""The `headrace` command. Each command's code is imported when it is called, so that `--help` is quick.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 server not reachable, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

COMMANDS = {
    "run": ("run", "Run headrace: sources, pipelines, sinks and the HTTP server."),
    "init": ("init", "Write a commented configuration file to start from."),
    "check": ("check", "Prove a configuration: every option, every column through every step."),
    "send": ("send", "Send events to a running headrace."),
    "generate": ("generate", "Make events of a simulated device fleet."),
    "tap": ("tap", "Follow the rows of a topic."),
    "query": ("query", "Answer a SQL query over topics and stored tables."),
    "export": ("export", "Write a topic or the answer of a query to a file."),
    "dlq": ("dlq", "Look into the dead letters, send them again, or drop them."),
    "replay": ("replay", "Run a pipeline over the past into a shadow topic and compare."),
    "forget": ("forget", "Let go of the rows kept for a sink or pipeline that is no more."),
    "doctor": ("doctor", "Look at this machine, the data directory and the server."),
    "version": ("version", "Show the version."),
}
"""Command -> module in `headrace.commands`, one line of help."""


class LazyGroup(click.Group):
    """Commands by name, imported on demand; their help lines are known without."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"headrace.commands.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        command.name = cmd_name
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
            ctx.fail(f"there is no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
def cli() -> None:
    """A real-time data platform: brings events in, keeps them, processes them in event time, stores and serves them.

    Begin with `headrace run`: it starts the default pipelines and prints the address of the live page.
    """


def main(args: Sequence[str] | None = None) -> None:
    """Entry point: turns every error into one message on stderr and an exit code."""
    sys.exit(call(args))


def call(args: Sequence[str] | None = None) -> int:
    """Run one command; gives its exit code."""
    try:
        result = cli.main(
            args=list(args) if args is not None else None, prog_name="headrace", standalone_mode=False
        )
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the last line of defence: a message instead of a traceback
        return _failed(error)


def _failed(error: Exception) -> int:
    from headrace.errors import ConfigError, HeadraceError

    if os.environ.get("HEADRACE_DEBUG"):
        import traceback

        traceback.print_exc()
    elif isinstance(error, (HeadraceError, OSError)):
        click.echo(f"{error}" if isinstance(error, ConfigError) else f"error: {error}", err=True)
    else:
        click.echo(f"internal error: {type(error).__name__}: {error}; HEADRACE_DEBUG=1 shows where", err=True)
    return getattr(error, "exit_code", 2 if isinstance(error, ConfigError) else 1)


if __name__ == "__main__":
    main()
