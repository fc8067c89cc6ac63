"""``virtvault status``: how fresh the fleet is, what is wrong first."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace

import click

from virtvault.cli import output
from virtvault.cli.hosts import label_wanted, labels_fit
from virtvault.cli.options import connect, json_option
from virtvault.errors import BadInput
from virtvault.models import Alert, DomainStatus, FleetStatus
from virtvault.spans import in_words

__all__ = ["status"]

# Columns of a terminal below which a table shows the most important alone.
NARROW = 100
# Domains named where they are not the matter, and those that one sentence names.
NAMED, TOGETHER = 20, 5
RANKS = ("never", "late", "failing", "unreachable", "unprotected", "no rpo", "fresh", "absent")
WRONG = ("never", "late", "failing")
COLOURS = {"never": "red", "late": "red", "failing": "red", "fresh": "green"}
COLOURS |= {"unreachable": "yellow", "unprotected": "yellow"}


@click.command()
@click.argument("domain", default="")
@click.option("--late", is_flag=True, help="Only what is late, never backed up or failing.")
@click.option("--unprotected", is_flag=True, help="Only domains that no policy means.")
@click.option("--all", "everything", is_flag=True, help="List all domains, the fresh ones too.")
@click.option("--host", default="", help="Only domains of this hypervisor.")
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME=VALUE",
    help="Only those with this label; the value may be a pattern. May be given many times.",
)
@click.option("--exit-zero", is_flag=True, help="Exit with 0 whatever is found.")
@json_option
@click.pass_context
def status(
    ctx: click.Context,
    domain: str,
    late: bool,
    unprotected: bool,
    everything: bool,
    host: str,
    labels: Sequence[str],
    exit_zero: bool,
    as_json: bool,
) -> None:
    """Show how fresh the fleet is, or DOMAIN (a name, a uuid, or host/name) alone.

    What is late against its RPO, was never backed up or whose last backup failed comes first, with
    what to do about it. Exits with 1 where there is any such among what was asked for, else with 0.
    """
    wanted = dict(map(label_wanted, labels))
    client = connect()
    fleet = client.fleet(domain)
    known = {one.host for one in fleet.hosts} | {one.host for one in fleet.domains}
    if host and host not in known:
        # A misspelt one would be "nothing is late" for ever.
        raise BadInput(f"No hypervisor {host!r} is known.", "`virtvault hosts` lists them.")
    chosen = [
        one
        for one in fleet.domains
        if host in ("", one.host)
        and labels_fit(one.labels, wanted)
        and (not late or _shown(one) in WRONG)
        and (not unprotected or one.health == "unprotected")
    ]
    chosen.sort(key=lambda one: (RANKS.index(_shown(one)), -one.age, one.domain))
    shown = replace(fleet, domains=tuple(chosen))
    narrowed = bool(domain or host or wanted or late or unprotected)
    if as_json:
        output.document(shown)
    elif narrowed and not chosen:
        click.echo("No such domains.")
    elif domain and len(chosen) == 1:
        _one(chosen[0])
    else:
        _fleet(shown, [] if narrowed else client.alerts(), narrowed, everything)
    if not exit_zero and any(_shown(one) in WRONG for one in chosen):
        ctx.exit(1)


def _shown(one: DomainStatus) -> str:
    """A domain in one word: the worst that is true of it."""
    if one.state == "absent":
        return "absent"
    if one.health in ("never", "late"):
        return one.health
    if one.error:
        return "failing"
    return "unreachable" if one.state == "unreachable" else one.health


def _fleet(fleet: FleetStatus, alerts: Sequence[Alert], narrowed: bool, everything: bool) -> None:
    by_word: dict[str, list[DomainStatus]] = {}
    for one in fleet.domains:
        by_word.setdefault(_shown(one), []).append(one)
    if not narrowed:
        _totals(fleet, by_word)
    for alert in alerts:
        # The others are in the tables, domain by domain.
        if alert.kind in ("beat", "host", "notice"):
            click.echo(f"{click.style('!', fg='red', bold=True)} {output.line(alert.detail)}")
            click.echo(f"  {output.line(alert.mend)}")
    wrong = [one for word in WRONG for one in by_word.get(word, ())]
    if wrong:
        click.echo()
        _table(wrong)
        _errors(wrong)
    if everything or narrowed:
        others = [one for one in fleet.domains if _shown(one) not in WRONG]
        if others:
            click.echo()
            _table(others)
        return
    for word in ("unreachable", "unprotected"):
        _named(word, by_word.get(word, ()))
    if len(by_word.get("fresh", ())) + len(by_word.get("no rpo", ())):
        click.echo("\n`virtvault status --all` lists the others too.")


def _totals(fleet: FleetStatus, by_word: dict[str, list[DomainStatus]]) -> None:
    totals = fleet.totals
    if not totals.domains and not fleet.domains and totals.hosts > totals.hosts_gone:
        click.echo(f"No domain yet on {_count(totals.hosts, 'hypervisor')}.")
        return
    if not totals.domains and not fleet.domains:
        click.echo(
            "No domain is known. Start `virtvault up` on a single hypervisor, or `virtvault "
            "worker` in a fleet; `virtvault hosts` shows which hypervisors are heard of."
        )
        return
    if not fleet.policy_version:
        click.echo(
            f"No policy yet: none of {_count(totals.domains, 'domain')} is protected. Write one "
            "(docs/policies.md) and put it in force with `virtvault policy apply -f FILE`."
        )
        return
    protected = totals.domains - totals.unprotected
    click.echo(_headline(fleet, protected, {word: len(by_word.get(word, ())) for word in WRONG}))
    hosts = _count(totals.hosts, "hypervisor")
    if totals.hosts_gone:
        hosts += f", {totals.hosts_gone} of them gone with {_count(totals.unreachable, 'domain')}"
    beat = f"beat {fleet.beat}" if fleet.beat else click.style("no beat leads", fg="red")
    click.echo(
        f"{hosts}; {_count(totals.domains, 'domain')}, {totals.unprotected} unprotected; "
        f"{_count(totals.points, 'point')}, {output.size(totals.stored)}; {totals.running} running."
    )
    click.echo(f"Policies of version {fleet.policy_version}; {beat}; {output.instant(fleet.at)}.")


def _headline(fleet: FleetStatus, protected: int, wrong: dict[str, int]) -> str:
    totals = fleet.totals
    if not protected:
        return "No domain is protected: no policy means any. `virtvault policy preview` tells why."
    said = {
        "late": f"{totals.late} late",
        "never": f"{totals.never} never backed up",
        "failing": f"{wrong['failing']} failing",
    }
    bad = [words for word, words in said.items() if wrong[word]]
    without = f" {totals.no_rpo} of them without an RPO." if totals.no_rpo else ""
    count = _count(protected, "protected domain")
    if not bad:
        fine = "is fresh" if protected == 1 else "are fresh"
        # What is fresh now does not stay so where nothing backs it up.
        if but := _away(fleet):
            return click.style(f"{count} {fine}, but {but}.", fg="yellow", bold=True) + without
        return click.style(f"All is well: {count} {fine}.", fg="green", bold=True) + without
    words = f"Of {count} {', '.join(bad)}; {totals.fresh} fresh."
    return click.style(words, fg="red", bold=True) + without


def _away(fleet: FleetStatus) -> str:
    """What keeps the next backups from being made."""
    said = [] if fleet.beat else ["no beat leads: nothing is scheduled"]
    if gone := fleet.totals.hosts_gone:
        said.append(f"{_count(gone, 'hypervisor')} {'is' if gone == 1 else 'are'} gone")
    return ", and ".join(said)


def _table(found: Sequence[DomainStatus]) -> None:
    wide = not sys.stdout.isatty() or shutil.get_terminal_size().columns >= NARROW
    columns = ("", "DOMAIN", "HOST", ">AGE", ">RPO")
    more = (">CHAIN", "NEWEST GOOD POINT", "POLICIES") if wide else ()
    rows = []
    for one in found:
        row = (_shown(one), one.domain, one.host, _age(one), _rpo(one))
        rest = (str(one.chain or "-"), one.newest or "-", ", ".join(one.policies) or "-")
        rows.append((*row, *(rest if wide else ())))
    output.table((*columns, *more), rows)


def _errors(found: Sequence[DomainStatus]) -> None:
    """Each error once, with the domains it is of."""
    same: dict[tuple[str, str], list[str]] = {}
    for one in found:
        if one.error:
            same.setdefault((one.error, one.mend), []).append(one.domain)
    for (error, mend), names in same.items():
        more = f" and {len(names) - TOGETHER} more" if len(names) > TOGETHER else ""
        click.echo(f"\n{output.line(', '.join(names[:TOGETHER]))}{more}: {output.line(error)}")
        if mend:
            click.echo(f"  {output.line(mend)}")


def _named(word: str, found: Sequence[DomainStatus]) -> None:
    if not found:
        return
    names = ", ".join(f"{one.host}/{one.domain}" for one in found[:NAMED])
    option = f"`virtvault status --{word}`" if word == "unprotected" else "`virtvault hosts`"
    more = f" and {len(found) - NAMED} more: {option}" if len(found) > NAMED else ""
    heading = click.style(f"{len(found)} {word}:", fg=COLOURS[word], bold=True)
    click.echo(f"\n{heading} {output.line(names)}{more}")


def _one(one: DomainStatus) -> None:
    word = click.style(_shown(one), fg=COLOURS.get(_shown(one)), bold=True)
    click.echo(
        f"{output.line(one.domain)} on {output.line(one.host)}, {output.line(one.state)}: {word}"
    )
    lines = {
        "uuid": one.uuid,
        "labels": output.labels(one.labels),
        "policies": ", ".join(one.policies) or "none: no policy means it",
        "newest good point": _newest(one),
        "RPO": _rpo(one),
        "points": f"{one.points}, {output.size(one.stored)}",
        "running": one.running and f"{one.running} (`virtvault task {one.running}`)",
    }
    for name, text in lines.items():
        if text:
            click.echo(f"  {name}: {output.line(text)}")
    if one.error:
        click.echo(f"  last error, {output.instant(one.error_at)}: {output.line(one.error)}")
        if one.mend:
            click.echo(f"    {output.line(one.mend)}")


def _newest(one: DomainStatus) -> str:
    if not one.newest:
        others = f" ({one.points} elsewhere, or not good)" if one.points else ""
        return f"none{others}"
    chain = _count(one.chain, "point")
    return f"{one.newest}, {_age(one)} old, a chain of {chain}"


def _age(one: DomainStatus) -> str:
    return in_words(one.age) if one.age >= 0 else "-"


def _rpo(one: DomainStatus) -> str:
    return in_words(one.rpo) if one.rpo else "-"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
