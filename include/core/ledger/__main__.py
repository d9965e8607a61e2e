"""The operator's view of the ledger: `python -m include.core.ledger init|in-doubt|resolve|cancel|verify|archive|hold|show`.

The ledger is named by AIRFLOW_CONN_WAYBILL_LEDGER (never by an argument: it may hold a password).
Exit status: 0 as asked, 1 the answer is "no" (something is in doubt, the chain is broken), 2 the call or the ledger is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from datetime import UTC, date, datetime
from pathlib import Path

from include.core.errors import WaybillError
from include.core.ledger.archive import archive, archives_in
from include.core.ledger.audit import verify
from include.core.ledger.rows import Submission
from include.core.ledger.schema import init, url_from_environment
from include.core.ledger.states import OPEN, State
from include.core.ledger.store import Ledger
from include.core.ledger.submit import held_message
from include.core.terminal import end_with

RESOLUTIONS = {"sent": State.SENT, "reserved": State.RESERVED, "cancelled": State.CANCELLED}

RENAMED_COMMANDS = {"doubts": "in-doubt", "settle": "resolve"}


def _when(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else "-"


def _words(text: str) -> str:
    """A name or a reason that says something. Raises ArgumentTypeError (exit status 2)."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text.strip()


def _line(row: Submission) -> str:
    job = f" job {row.external_id}" if row.external_id else ""
    request = ", cancel requested" if row.cancel_requested_at is not None and row.state in OPEN else ""
    return (
        f"{row.id}\t{row.state}{request}\t{row.system}/{row.kind}\t{row.business_key}\tgeneration {row.generation}{job}"
    )


def _init(_args: argparse.Namespace) -> int:
    before, now = init(url_from_environment())
    ledger = Ledger(url_from_environment())
    verb = "created" if before == 0 else "migrated" if before < now else "is up to date"
    print(f"ledger {ledger.ledger_id} {verb} (schema {now})")
    return 0


def _in_doubt(_args: argparse.Namespace) -> int:
    ledger = Ledger(url_from_environment())
    now, sure = ledger.now(), (State.IN_DOUBT, State.HELD)
    rows = ledger.in_states(*sure, State.SENDING, State.ACCEPTED)
    rows = [row for row in rows if row.state in sure or row.answer_missed_at < now]
    for row in rows:
        todo = (
            held_message(row)
            if row.state == State.HELD
            else "the next try, or a cleared task, searches the remote for it"
        )
        print(f"{_line(row)}\n\t{todo}")
    print(f"{len(rows)} in doubt" if rows else "nothing is in doubt")
    return 1 if rows else 0


def _resolve(args: argparse.Namespace) -> int:
    ledger = Ledger(url_from_environment())
    row = ledger.get(args.id)
    if row.state != State.HELD:
        raise WaybillError(f"{row} is not held: there is nothing to resolve")
    if (args.outcome == "sent") != bool(args.external_id):
        raise WaybillError("--external-id ID goes with --as sent, and only with it")
    resolved = ledger.move(row, RESOLUTIONS[args.outcome], why=args.why, who=args.who, external_id=args.external_id)
    if resolved.state != RESOLUTIONS[args.outcome]:
        raise WaybillError(f"{resolved}: somebody else has resolved it meanwhile")
    print(f"{resolved}: resolved by {args.who}. Clear the task of run {row.owner.run_id} to go on")
    return 0


def _cancel(args: argparse.Namespace) -> int:
    ledger = Ledger(url_from_environment())
    row = ledger.get(args.id)
    if row.state not in OPEN:
        raise WaybillError(f"{row} has ended: there is nothing to cancel")
    ledger.request_cancel(row, who=args.who, why=args.why)
    print(
        f"{row}: the cancellation request is written down; the next worker that handles it carries it out where it can"
    )
    return 0


def _verify(args: argparse.Namespace) -> int:
    receipts = []
    if args.receipts:
        from include.core.receipt import ReceiptStore

        receipts = asyncio.run(ReceiptStore.at(args.receipts).all())
    archived = [one for folder in args.archives or [] for one in archives_in(Path(folder))]
    audit = verify(Ledger(url_from_environment()), receipts, archived)
    for problem in audit.problems:
        print(problem)
    verdict = "BROKEN" if audit.problems else "whole"
    looked = (
        f"{audit.receipts} receipts agree"
        if args.receipts
        else "receipts were not looked at (name them with --receipts)"
    )
    print(f"ledger {audit.ledger_id} is {verdict}: {audit.events} events, {audit.submissions} submissions, {looked}")
    return 1 if audit.problems else 0


def _archive(args: argparse.Namespace) -> int:
    ledger = Ledger(url_from_environment())
    for made in archive(ledger, Path(args.to), before=args.before):
        print(f"{made.path}: {len(made.submission_ids)} submissions, sha256 {made.sha256}")
    print("done: keep the files; `verify --archives FOLDER` reads them with the ledger")
    return 0


def _hold(args: argparse.Namespace) -> int:
    ledger = Ledger(url_from_environment())
    if args.until is None:
        for hold in ledger.holds():
            print(f"{hold.system}\tuntil {_when(hold.until)}\t{hold.who}: {hold.why}")
        return 0
    if not (args.system and args.who and args.why):
        raise WaybillError("give SYSTEM, --until, --who and --why; without all of them the holds are listed")
    ledger.hold(args.system, until=args.until, who=args.who, why=args.why)
    ends = not any(hold.system == args.system for hold in ledger.holds())
    print(
        f"the hold of {args.system} is ended" if ends else f"nothing is sent to {args.system} until {_when(args.until)}"
    )
    return 0


def _instant(text: str) -> float:
    """A time with its zone, or `now`. Raises ArgumentTypeError (exit status 2)."""
    if text == "now":
        return datetime.now(UTC).timestamp()
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise argparse.ArgumentTypeError(
            f"{text}: give a time with its zone, as 2026-01-31T06:00Z, or now to end a hold"
        )
    if at.timestamp() <= datetime.now(UTC).timestamp():
        raise argparse.ArgumentTypeError(f"{text} is past: give a time to come, or now to end a hold")
    return at.timestamp()


def _day(text: str) -> float:
    """The begin of a day in UTC. Raises ArgumentTypeError (exit status 2)."""
    try:
        day = datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no date: give it as 2026-01-31") from None
    if day > datetime.now(UTC):
        raise argparse.ArgumentTypeError(f"{text} is not over: give a day in the past")
    return day.timestamp()


def _show(args: argparse.Namespace) -> int:
    ledger = Ledger(url_from_environment())
    if args.id is None:
        for row in ledger.in_states(*(State if args.all else OPEN)):
            print(_line(row))
        return 0
    row = ledger.get(args.id)
    print(_line(row))
    print(f"asked by {row.owner.dag_id}/{row.owner.run_id}/{row.owner.task_id}; {row.size_bytes} bytes")
    print(json.dumps(dict(row.detail), indent=2, sort_keys=True, ensure_ascii=False))
    for body in ledger.event_bodies(row.id):
        who = f" by {body['who']}" if body["who"] else ""
        print(
            f"{body['number']}\t{_when(body['at'])}\t{body['before'] or '-'} → {body['row']['state']}\t{body['why']}{who}"
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m include.core.ledger", description=__doc__)
    commands = parser.add_subparsers(required=True)

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    command("init", _init, "create the ledger, or migrate an older one")
    command("in-doubt", _in_doubt, "list submissions of which it is not known whether the remote accepted them")
    resolve = command("resolve", _resolve, "say what is true of a held submission")
    resolve.add_argument("id", type=int)
    meaning = "sent: it was accepted, as --external-id; reserved: it never arrived, send it; cancelled: it is given up"
    resolve.add_argument("--as", dest="outcome", choices=sorted(RESOLUTIONS), required=True, help=meaning)
    resolve.add_argument("--external-id", help="the remote's id, with --as sent")
    cancel = command("cancel", _cancel, "write down that a submission shall be cancelled")
    cancel.add_argument("id", type=int)
    for sub in (resolve, cancel):
        sub.add_argument("--who", required=True, type=_words)
        sub.add_argument("--why", required=True, type=_words)
    check = command("verify", _verify, "check the chain, the rows and the receipts")
    check.add_argument("--receipts", help="prefix of the receipts, as in connection waybill_receipts")
    check.add_argument("--archives", action="append", help="a folder that `archive` has written to (may be repeated)")
    away = command("archive", _archive, "move the history of what ended long ago into files")
    away.add_argument("--before", type=_day, required=True, help="what ended before this day (UTC), as 2026-01-31")
    away.add_argument("--to", required=True, help="the folder for the files")
    pause = command("hold", _hold, "send nothing to a system until a time (or list the holds); what runs there goes on")
    pause.add_argument("system", nargs="?", help="as in the ledger: icav2, …")
    pause.add_argument("--until", type=_instant, help="a time with its zone, as 2026-01-31T06:00Z; now ends a hold")
    pause.add_argument("--who", type=_words)
    pause.add_argument("--why", type=_words)
    show = command("show", _show, "list open submissions, or one with its history")
    show.add_argument("id", type=int, nargs="?")
    show.add_argument("--all", action="store_true", help="closed ones too")
    return parser


def _renamed(argv: list[str]) -> list[str]:
    """The call in today's words. The old words still work, and say the new one."""
    if not argv or argv[0] not in RENAMED_COMMANDS:
        return argv
    new = RENAMED_COMMANDS[argv[0]]
    print(f"`{argv[0]}` is now called `{new}`", file=sys.stderr)
    return [new, *argv[1:]]


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(_renamed(sys.argv[1:] if argv is None else argv))
    try:
        return int(args.run(args))
    except WaybillError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    end_with(main)
