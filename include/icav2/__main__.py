"""`python -m include.icav2 plan FILE|-`: what a conf would copy, without a network.

Reads a run's conf (either input form, with or without options) or a bare manifest. Prints the SOP's Flip Manifest output
as JSON and exits 0, or prints every refusal with its place on standard error and exits 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from include.core.errors import RequestError
from include.core.request import load, load_without_faults
from include.core.terminal import end_with
from include.icav2.manifest import flipped, parse_json
from include.icav2.models import SCHEME, CopyRequest


def request_from(document: Any) -> CopyRequest:
    """A conf as it is given to the DAG, or the manifest alone."""
    if isinstance(document, dict) and any(key.startswith(SCHEME) for key in document):
        document = {"manifest": document}
    if not isinstance(document, dict):
        raise RequestError(
            "the input is not a JSON object: give a conf with manifest or manifest_b64gz, or a bare manifest"
        )
    return load(CopyRequest, document)


def every_problem(document: Any, error: RequestError) -> list[str]:
    """The refusals of a conf, and those of its manifest, which is checked also where other fields are wrong."""
    rest = load_without_faults(CopyRequest, document, error.problems) if isinstance(document, dict) else None
    try:
        if rest is not None and rest.manifest_uri is None:
            flipped(rest)
    except RequestError as more:
        return list(dict.fromkeys([*error.problems, *more.problems]))
    return error.problems


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m include.icav2", description=__doc__)
    plan = parser.add_subparsers(required=True).add_parser(
        "plan", help="print what a conf would copy, or why it is refused"
    )
    plan.add_argument("file", help="a JSON file, or - for standard input")
    args = parser.parse_args(argv)
    document: Any = None
    try:
        data = sys.stdin.buffer.read() if args.file == "-" else Path(args.file).read_bytes()
        document = parse_json(data, "the input" if args.file == "-" else args.file)
        request = request_from(document)
        if request.manifest_uri is not None:
            raise RequestError("manifest_uri needs the configured store: give the file itself to this command")
        entries = flipped(request)
    except RequestError as error:
        print("\n".join(every_problem(document, error)), file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{args.file} cannot be read: {error.strerror}", file=sys.stderr)
        return 2
    print(json.dumps([entry.model_dump() for entry in entries], indent=2, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    end_with(main)
