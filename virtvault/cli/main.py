"""The entry of ``virtvault``: global options, and errors as sentences with an exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import click

from virtvault.cli import (
    backup,
    bitmaps,
    catalog,
    check,
    events,
    export,
    hosts,
    jobs,
    label,
    output,
    points,
    policy,
    prune,
    restore,
    roles,
    runs,
    status,
    task,
    token,
    verify,
)
from virtvault.cli.options import Invocation
from virtvault.errors import VirtvaultError

__all__ = ["cli", "main"]

WANTS_JSON = "virtvault.json"


class _Commands(click.Group):
    """Turns whatever a command raises into what an operator (or a program) can act on."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Looked up here because a command line that cannot be parsed must be answered in JSON too.
        ctx.meta[WANTS_JSON] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        wants_json: bool = ctx.meta[WANTS_JSON]
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except click.exceptions.NoArgsIsHelpError as error:
            # A group without its command: the help is the answer.
            click.echo(error.format_message(), err=True)
            ctx.exit(error.exit_code)
        except click.ClickException as error:
            if wants_json:
                name = type(error).__name__
                output.error_document(name, error.format_message(), "", error.exit_code)
            mend = ""
            if isinstance(error, click.UsageError) and error.ctx is not None:
                click.echo(error.ctx.get_usage(), err=True)
                mend = f"`{error.ctx.command_path} --help` shows the options."
            output.show_error(error.format_message(), mend)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(130)
        except VirtvaultError as error:
            output.show_error(error.message, error.mend)
            if wants_json:
                name = type(error).__name__
                output.error_document(name, error.message, error.mend, error.exit_code)
            ctx.exit(error.exit_code)
        except Exception as error:
            if cast(Invocation, ctx.obj).debug:
                raise
            message = f"internal: {type(error).__name__}: {error}; this is a bug"
            mend = "Run it again with `virtvault --debug …` and report the traceback."
            output.show_error(" ".join(message.split()), mend)
            if wants_json:
                output.error_document(type(error).__name__, message, mend, 1)
            ctx.exit(1)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Settings file. Default: VIRTVAULT_CONFIG, /etc/virtvault/virtvault.toml, "
    "/var/lib/virtvault/virtvault.toml.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an internal error.")
@click.version_option(package_name="virtvault", prog_name="virtvault")
@click.pass_context
def cli(ctx: click.Context, config: Path | None, debug: bool) -> None:
    """Back up and restore the disks of QEMU/KVM virtual machines, running or shut off.

    Exit codes: 0 done, 1 the work failed, 2 wrong usage or bad input, 3 not reachable (Redis,
    libvirt, a worker), 4 cancelled.
    """
    ctx.obj = Invocation(config=config, debug=debug)


for command in (
    *(roles.up, roles.down),
    *(hosts.hosts, hosts.domains, hosts.disks, label.label, check.check),
    *(backup.backup, points.points, points.show, restore.restore),
    *(verify.verify, export.export, prune.prune, prune.merge),
    *(catalog.catalog, catalog.protect, catalog.unprotect),
    *(status.status, runs.runs, runs.alerts),
    bitmaps.bitmaps,
    policy.policy,
    *(task.task, jobs.jobs, jobs.pause, jobs.resume, jobs.cancel, jobs.speed, events.events),
    token.token,
    *(roles.worker, roles.control, roles.central, roles.beat, roles.flower),
):
    cli.add_command(command)


def main() -> None:
    """Run the command line; never returns."""
    cli()
