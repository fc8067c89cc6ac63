"""``virtvault verify``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from virtvault.cli.follow import finish
from virtvault.cli.options import connect, detach_option, json_option, speed_option
from virtvault.errors import InvalidRequest, UnknownPoint
from virtvault.models import VerifyResult

if TYPE_CHECKING:
    from virtvault.client import Client

__all__ = ["verify"]

POINT = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")


@click.command()
@click.argument("what", nargs=-1, metavar="(POINT|DOMAIN)...")
@click.option("--all", "everything", is_flag=True, help="Every point of the repository.")
@click.option("--repository", default="", help="Where the points are. Default: looked up.")
@click.option("--host", default="", help="The hypervisor that reads. Default: looked up.")
@click.option(
    "--boot", is_flag=True, help="Also start each point as a domain of its own, without a network."
)
@click.option(
    "--boot-seconds",
    type=click.IntRange(1, 3600),
    default=180,
    show_default=True,
    help="How long to wait for its guest agent or console.",
)
@click.option(
    "--against-source",
    is_flag=True,
    help="Also compare samples of the newest point with its running domain.",
)
@click.option(
    "--samples",
    type=click.IntRange(1, 1_000_000),
    default=256,
    show_default=True,
    help="Of 64 KiB, for each disk that is compared.",
)
@speed_option
@detach_option
@json_option
def verify(
    what: tuple[str, ...],
    everything: bool,
    repository: str,
    host: str,
    boot: bool,
    boot_seconds: int,
    against_source: bool,
    samples: int,
    speed: int,
    detach: bool,
    as_json: bool,
) -> None:
    """Read points back and prove that each is what it was when it was made.

    Of a DOMAIN all points are verified. Exits with 1 where any is bad, or did not boot.
    """
    if bool(what) == everything:
        raise click.UsageError("Name points or domains, or give --all.")
    client = connect()
    points, repository = _points(client, what, repository)
    handle = client.verify(
        points,
        host=host,
        repository=repository,
        boot=boot,
        boot_seconds=boot_seconds,
        against_source=against_source,
        samples=samples,
        speed=speed,
    )
    named = points[0] if len(points) == 1 else f"{len(points)} points"
    result = finish(handle, f"verify of {named}", detach=detach, as_json=as_json)
    if isinstance(result, VerifyResult) and not _proven(result, boot):
        click.get_current_context().exit(1)


def _proven(result: VerifyResult, boot: bool) -> bool:
    unbooted = boot and any(v.boot is not None and not v.boot.booted for v in result.verdicts)
    return result.state == "good" and not unbooted


def _points(client: Client, what: tuple[str, ...], repository: str) -> tuple[list[str], str]:
    """The ids meant, of one repository, and its name.

    :raises UnknownPoint: there are none.
    :raises InvalidRequest: they are in several repositories.
    """
    # By the repository's id: each hypervisor may have one of that name.
    found: dict[str, tuple[str, set[str]]] = {}
    for name in what or ("",):
        if POINT.fullmatch(name):
            known = client.show(name)
            found.setdefault(known.repository_id, (known.repository, set()))[1].add(name)
            continue
        listed = [(p.repository_id, p.repository, p.id) for p in client.points(name)]
        # Those whose manifest cannot be read have a status, but are not listed.
        listed += [(s.repository_id, s.repository, s.point) for s in client.statuses(name)]
        for id_, called, point in listed:
            found.setdefault(id_, (called, set()))[1].add(point)
    if repository:
        found = {id_: of for id_, of in found.items() if repository in (id_, of[0])}
    if not found:
        where = f" in repository {repository}" if repository else ""
        raise UnknownPoint(
            f"There is no point of {', '.join(what) or 'any domain'}{where}.",
            "`virtvault points` lists them.",
        )
    if len(found) > 1:
        raise InvalidRequest(
            f"The points are in {len(found)} repositories: "
            f"{', '.join(f'{name} ({id_})' for id_, (name, _) in sorted(found.items()))}.",
            "Verify one after the other, with --repository NAME or its id.",
        )
    ((name, ids),) = found.values()
    return sorted(ids), name
