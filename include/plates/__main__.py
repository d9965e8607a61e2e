"""`python -m include.plates plan|archive|verify|ls|restore|delete|where|index`: the engine without Airflow.

Credentials, region and profile come from the usual AWS environment. The exit status is 0 only when what is printed is
proved: 1 a problem, mismatch or refusal, 2 bad input, 3 unverifiable, 4 the store failed (run again to continue), 5 the
credential has expired, 6 this machine's clock is wrong, 7 the requester pays, 8 no such bucket, 9 an object vanished, 10
the bucket lies in another region, 11 a right is lacking, 12 the credential is refused.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
from collections.abc import Sequence
from pathlib import Path

from include.core.errors import RequestError, WaybillError


def parser() -> argparse.ArgumentParser:
    """The command line. Names and defaults are the SOP's where it had them."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--project", "--project_name", required=True)
    common.add_argument("--batch", "--batch_id", required=True)
    common.add_argument("--source", default="", help="the cpg layout's source, for example source_4")
    common.add_argument("--plate-id", "--plate_id")
    common.add_argument("--plate-id-full", "--plate_id_full", help="default: the same as --plate-id")
    common.add_argument("--plates", type=Path, help="plates.csv with the header plate_id,plate_id_full")
    common.add_argument("--bucket", default="imaging-platform")
    common.add_argument("--cold-bucket", "--cold_bucket", default="imaging-platform-cold")
    common.add_argument("--layout", default="broad2018", help="broad2018, cpg, or a JSON file of prefix templates")
    common.add_argument("--endpoint-url", help="another S3-compatible store")
    common.add_argument(
        "--store-patience", type=float, default=10, help="minutes to wait for a store that is out of reach; default 10"
    )
    common.add_argument(
        "--request-payer", action="store_true", help="agree to pay for reading buckets whose owners do not"
    )
    common.add_argument("--json", action="store_true", help="print JSON instead of tables")
    writing = argparse.ArgumentParser(add_help=False)
    writing.add_argument("--compression", choices=["none", "gzip", "zstd"], help="default: the layout's")
    writing.add_argument("--level", type=int, default=1)
    writing.add_argument("--part-mib", type=int, default=32)
    writing.add_argument("--volume-gib", type=int, default=300)
    writing.add_argument(
        "--copy-by", choices=["worker", "server"], default="worker", help="server: inside the store (needs none)"
    )
    writing.add_argument(
        "--no-probe",
        action="store_true",
        help="do not try whether every object may be read (archive: of 8 GiB and more), nor look for tags",
    )
    journal = argparse.ArgumentParser(add_help=False)
    journal.add_argument(
        "--journal",
        type=Path,
        help="folder of the durable journals; default: waybill/plates in the user's state folder",
    )

    top = argparse.ArgumentParser(prog="python -m include.plates", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("plan", parents=[common, writing], help="list the plates and say what would go wrong")
    commands.add_parser(
        "archive", parents=[common, writing, journal], help="write the tarballs, or continue writing them"
    )
    proving = argparse.ArgumentParser(add_help=False)
    proving.add_argument(
        "--proof",
        choices=["read_back", "store_proved"],
        default="read_back",
        help="store_proved: by the checksums that the store keeps, where they say it; what is left is read back",
    )
    commands.add_parser("verify", parents=[common, proving], help="prove the tarballs: 0, 1 or 3")
    listing = commands.add_parser("ls", parents=[common], help="what an archive holds, from its manifests")
    listing.add_argument("--part", action="append", default=[])
    _restore(commands.add_parser("restore", parents=[common], help="whole plates, parts or single files"))
    _delete(
        commands.add_parser(
            "delete", parents=[common, journal, proving], help="delete what a fresh verification proves"
        )
    )
    _where(commands)
    return top


def _where(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    known = argparse.ArgumentParser(add_help=False)
    known.add_argument(
        "--prefix", action="append", default=[], help="s3://bucket/prefix of tarballs; default: all known"
    )
    known.add_argument("--index", type=Path, help="file of the index; default: index.sqlite beside the journals")
    known.add_argument("--endpoint-url", help="another S3-compatible store")
    known.add_argument("--json", action="store_true", help="print JSON instead of tables")
    where = commands.add_parser("where", parents=[known], help="which tarball holds a file, and where in it")
    where.add_argument("names", nargs="+", metavar="NAME", help="a key, the end of a key, or a pattern")
    where.add_argument("--most", type=int, default=100, help="hits for each name")
    where.add_argument(
        "--no-refresh", action="store_true", help="answer from the index as it is; it says how old that is"
    )
    index = commands.add_parser("index", parents=[known], help="bring the index up to date, or make it anew")
    index.add_argument("--rebuild", action="store_true", help="forget all, also what is gone, and read every manifest")


def _restore(command: argparse.ArgumentParser) -> None:
    command.add_argument("--to", help="a folder, or s3://bucket/prefix; needed unless --request or --status")
    command.add_argument("--part", action="append", default=[])
    command.add_argument("--file", action="append", default=[], help="a key, the end of a key, or a pattern")
    command.add_argument("--overwrite", action="store_true")
    command.add_argument("--request", action="store_true", help="ask cold storage for the tarballs")
    command.add_argument("--status", action="store_true", help="how near the tarballs are")
    command.add_argument("--days", type=int, default=7)
    command.add_argument("--tier", default="Standard", choices=["Standard", "Bulk", "Expedited"])


def _delete(command: argparse.ArgumentParser) -> None:
    command.add_argument("--approve", required=True, help="the digest that verify printed")
    command.add_argument("--part", action="append", default=[], required=True)
    command.add_argument("--phase", default="delete", choices=["delete", "marker", "purge"])
    command.add_argument("--undo-days", type=float, default=0.0)
    command.add_argument(
        "--older-versions",
        default="refuse",
        choices=["refuse", "keep_hidden", "delete"],
        help="what happens to versions below the deleted objects, which would be current again",
    )
    command.add_argument(
        "--needs", choices=["read_back", "store_proved"], default="read_back", help="the weakest proof allowed"
    )
    command.add_argument("--retention", default="versioned", choices=["none", "versioned", "locked"])


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "true")  # to look for some takes longer than to list a plate
    from include.core.terminal import say
    from include.plates.cli import COMMANDS, check_options
    from include.plates.exit_status import NOT_YET, PROBLEM, STORE_FAILED, status_of

    try:
        check_options(options)
        return asyncio.run(COMMANDS[options.command](options))
    except RequestError as error:
        for problem in error.problems:
            say(f"refused: {problem}")
        return 2
    except WaybillError as error:
        status = status_of(error)
        say({PROBLEM: "refused: ", NOT_YET: "not yet: "}.get(status, "failed: ") + str(error))
        return status
    except BrokenPipeError:  # the reader of the output has read enough
        raise
    except (OSError, json.JSONDecodeError) as error:
        say(f"failed: {error}")
        return STORE_FAILED


if __name__ == "__main__":
    # Most of what starting up makes stays until the end, and then goes with the process: the collector need not look
    # through it again and again (a tenth of a second), and once more at the end (another).
    gc.set_threshold(50_000)
    from include.core.terminal import end_with

    def run() -> int:
        status = main()
        gc.freeze()
        return status

    end_with(run)
