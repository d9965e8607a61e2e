"""The plates' demo scenario: plates of the published BBBC022 list, archived and proved; those of one run are approved and
deleted, those of the other rejected and kept. One deleted file is given back; and a whole plate, by a restore that is
interrupted, goes on, and is then repeated.

Invariant: `check` looks at the buckets and the store's journal, and reads tarballs with Python's own tarfile.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from include.core.ledger import Ledger
from rehearsal.api import Api, Run, new_run_id
from rehearsal.errors import StackError
from rehearsal.scenes.scene import OnPoll, Progress, Receipt, ReceiptCounts, answer_question, journal_requests
from rehearsal.stack import Stack

DATA = Path(__file__).resolve().parents[2] / "simulators" / "data" / "plates" / "bbbc022_plates.csv"
PROJECT, BATCH = "2013_Gustafsdottir_PLOSONE", "BBBC022"
LIVE, COLD = "imaging-platform", "imaging-platform-cold"
PARTS = ("images", "illum", "analysis", "backend")
BACKUP, RESTORE, POOL = "plate_backup", "plate_restore", "waybill_plates"
APPROVER = "amy"
TIMEOUT_SECONDS = 600
KEYS = {"aws_access_key_id": "rehearsal", "aws_secret_access_key": "rehearsal-secret"}  # of the simulator; open nothing
CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")


def plate_ids(count: int | None = None) -> list[str]:
    """The first plates of the published list."""
    with DATA.open(encoding="utf-8", newline="") as stream:
        return [row["plate_id"] for row in csv.DictReader(stream)][:count]


def plate_files(plate_id: str, *, wells: int = 2) -> dict[str, bytes]:
    """Keys and bytes of a small plate in the procedure's folders; the same at every call."""
    root, files = f"projects/{PROJECT}", dict[str, bytes]()
    noise = random.Random(plate_id)
    for well in range(1, wells + 1):
        for channel in range(1, len(CHANNELS) + 1):
            name = f"r{well:02}c01f01p01-ch{channel}sk1fk1fl1.tiff"
            files[f"{root}/{BATCH}/images/{plate_id}/Images/{name}"] = noise.randbytes(4096)
        csv_key = f"{root}/workspace/analysis/{BATCH}/{plate_id}/analysis/A{well:02}-1/Cells.csv"
        files[csv_key] = b"ImageNumber,ObjectNumber\n" + b"1,2\n" * 50
    for channel_name in CHANNELS:
        files[f"{root}/{BATCH}/illum/{plate_id}/{plate_id}_Illum{channel_name}.npy"] = noise.randbytes(512)
    files[f"{root}/workspace/backend/{BATCH}/{plate_id}/{plate_id}.sqlite"] = noise.randbytes(20_000)
    return files


def connections(address: str) -> dict[str, str]:
    """The connections of the plates' DAGs, from the S3 simulator's address."""
    extra = {"endpoint_url": address, "region_name": "us-east-1"}
    aws = {"conn_type": "aws", "login": KEYS["aws_access_key_id"], "password": KEYS["aws_secret_access_key"]}
    approvals = {"conn_type": "generic", "extra": {"approvers": [APPROVER]}}
    archives = {"conn_type": "generic", "extra": {"prefixes": [f"s3://{COLD}/imaging_analysis/"]}}
    return {
        "AIRFLOW_CONN_WAYBILL_AWS": json.dumps({**aws, "extra": extra}),
        "AIRFLOW_CONN_WAYBILL_APPROVALS": json.dumps(approvals),
        "AIRFLOW_CONN_WAYBILL_ARCHIVES": json.dumps(archives),
    }


def make_pool(api: Api, slots: int = 4) -> None:
    """The pool that says how many plates are worked on at once; without it no task of a plate would ever start."""
    api.ensure_pool(POOL, slots, "plates worked on at once")


def s3_client(address: str) -> Any:
    import boto3
    from botocore.config import Config

    plain = Config(
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        proxies={},
    )
    session: Any = boto3.session.Session(region_name="us-east-1", **KEYS)  # type: ignore[arg-type]
    return session.client("s3", endpoint_url=address, config=plain)


def approve(stack: Stack, run_id: str, option: str = "Approve") -> str:
    """Answers the run's question as the second user, not sooner than 3 s after it was put. Returns what was asked."""
    return answer_question(stack, BACKUP, run_id, option, user=APPROVER)


class PlatesScene:
    """Two backups at once, one for each answer that will be given; then a file of a deleted plate is restored, and all of
    another."""

    dag_ids = (BACKUP, RESTORE)
    activity = "archiving and verifying plates, then deleting what is approved (about a minute)"

    def __init__(self, stack: Stack, ledger: Ledger, *, approved: int = 4, rejected: int = 2):
        self._stack = stack
        self.address = stack.addresses["s3"]
        self.client = s3_client(self.address)
        plates = plate_ids(approved + rejected)
        self.plates = {"Approve": plates[:approved], "Reject": plates[approved:]}
        self.files = {plate_id: plate_files(plate_id) for plate_id in plates}
        self.wanted = next(key for key in self.files[plates[0]] if key.endswith(".sqlite"))
        self.whole = self.plates["Approve"][1:2]
        self._backups: dict[str, Run] = {}
        self._interrupted = "not begun"

    @staticmethod
    def simulators() -> Sequence[str]:
        return ()

    @staticmethod
    def connections(addresses: Mapping[str, str]) -> dict[str, str]:
        return connections(addresses["s3"])

    @staticmethod
    def command_environment(addresses: Mapping[str, str]) -> dict[str, str]:
        keys = {name.upper(): value for name, value in KEYS.items()}
        return keys | {
            "AWS_ENDPOINT_URL": addresses["s3"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
        }

    def prepare(self) -> None:
        """Buckets, plates in the live one, and the pool."""
        for bucket in (LIVE, COLD):
            self.client.create_bucket(Bucket=bucket)
        for files in self.files.values():
            for key, data in files.items():
                self.client.put_object(Bucket=LIVE, Key=key, Body=data)
        make_pool(self._stack.api)

    def start(self) -> None:
        for answer, plates in self.plates.items():
            conf = {**self.conf(plates), "delete_parts": list(PARTS), "retention": "none"}
            self._backups[answer] = self._stack.api.trigger(BACKUP, conf, new_run_id(f"plates-{answer.lower()}"))

    def conf(self, plates: Sequence[str]) -> dict[str, Any]:
        rows = [{"plate_id": one, "plate_id_full": one} for one in plates]
        return {"project": PROJECT, "batch": BATCH, "plates": rows}

    def finish(self, say: Callable[[str], None], on_poll: OnPoll) -> list[Run]:
        """Answers both questions as the second user, then restores one file of a deleted plate, and another one whole."""
        api = self._stack.api
        for answer, run in self._backups.items():
            say(f"{APPROVER} says {answer} to: {approve(self._stack, run.run_id, answer)}")
        backups = api.wait_all(list(self._backups.values()), TIMEOUT_SECONDS, on_poll)
        conf = {**self.conf(self.plates["Approve"][:1]), "files": [self.wanted]}
        restores = api.wait_all([api.trigger(RESTORE, conf, new_run_id("one-file"))], TIMEOUT_SECONDS, on_poll)
        if self.whole:
            restores.append(self._interrupted_restore(say, on_poll))
            again = api.trigger(RESTORE, self.conf(self.whole), new_run_id("whole-plate-again"))
            restores += api.wait_all([again], TIMEOUT_SECONDS, on_poll)
        return backups + restores

    def _interrupted_restore(self, say: Callable[[str], None], on_poll: OnPoll) -> Run:
        """The store refuses half of a plate's files; then it does not, and the task is cleared."""
        api = self._stack.api
        refused = "|".join(re.escape(key) for key in sorted(self.files[self.whole[0]])[::2])
        rule = {"fault": "status", "code": 403, "problem": {"code": "AccessDenied"}, "method": "PUT", "times": None}
        faults = f"{self.address}/_sim/faults"
        answer = httpx.post(faults, json=rule | {"path": refused}, timeout=60, trust_env=False).raise_for_status()
        run = api.trigger(RESTORE, self.conf(self.whole), new_run_id("whole-plate"))
        (ended,) = api.wait_all([run], TIMEOUT_SECONDS, on_poll)
        self._interrupted = ended.state
        httpx.delete(faults, params={"id": answer.json()["ids"][0]}, timeout=60, trust_env=False).raise_for_status()
        say(f"a restore was interrupted ({ended.state}): task restore is cleared")
        api.clear(RESTORE, run.run_id, ["restore", "receipt"])
        return api.wait_all([run], TIMEOUT_SECONDS, on_poll)[0]

    def progress(self, runs: Sequence[Run]) -> Progress | None:
        return None

    def count(self, receipt: Receipt) -> ReceiptCounts:
        totals = receipt["totals"]
        return ReceiptCounts(totals.get("files proved", 0), totals.get("files", 0), totals.get("proved bytes", 0))

    def check(self, receipts: Sequence[Receipt]) -> list[str]:
        """What is wrong with the receipts, the buckets' real content, and what the store was asked to delete."""
        by_run = {receipt["run_id"]: receipt for receipt in receipts}
        problems: list[str] = []
        for answer, state in (("Approve", "deleted"), ("Reject", "rejected")):
            if self._backups[answer].run_id in by_run:
                problems += self._wrong_in_receipt(by_run[self._backups[answer].run_id], state)
        for plate_id in self.files:
            problems += self._wrong_in_buckets(plate_id)
        if self.whole:
            problems += self._wrong_in_restores()
        deleted = self._deletions()
        approved = sorted(key for plate_id in self.plates["Approve"] for key in self.files[plate_id])
        if deleted != approved:
            problems.append(
                f"{len(deleted)} objects were deleted by the store's journal, {len(approved)} were approved"
            )
        return problems

    @staticmethod
    def _wrong_in_receipt(receipt: Receipt, state: str) -> Iterator[str]:
        for item in receipt["items"]:
            if item["state"] != state:
                yield f"plate {item['plate']} is {item['state']} ({item['why']})"
        if [one["by"] for one in receipt["questions"]] != [APPROVER]:
            yield f"the receipt of {receipt['run_id']} does not say who answered"

    def _wrong_in_restores(self) -> Iterator[str]:
        """The interrupted restore and its repetition wrote each file once, beside the one time that it was put there."""
        if self._interrupted != "failed":
            yield f"the restore that was to be interrupted was {self._interrupted}"
        written = Counter(self._done("PUT"))
        for key in self.files[self.whole[0]]:
            if written[key] != 2:
                yield f"{key} was written {written[key] - 1} times by restores"

    def _deletions(self) -> list[str]:
        """Every object of the plates whose deletion the store carried out, by its own journal."""
        return [key for key in sorted(self._done("DELETE")) if not key.endswith("_condition_probe")]

    def _done(self, method: str) -> list[str]:
        """Keys in the live bucket of every request of a method that the store carried out."""
        requests = journal_requests(self.address)
        paths = [row["path"] for row in requests if row["method"] == method and row["status"] in range(200, 300)]
        return [path.removeprefix(f"/{LIVE}/") for path in paths if path.startswith(f"/{LIVE}/")]

    def _wrong_in_buckets(self, plate_id: str) -> list[str]:
        files = self.files[plate_id]
        there_again = plate_id in (*self.plates["Reject"], *self.whole)
        kept = files if there_again else {key: data for key, data in files.items() if key == self.wanted}
        there = {key for key in keys_of(self.client, LIVE) if f"/{plate_id}/" in key}
        problems = [f"{key} should be gone" for key in sorted(there - kept.keys())]
        problems += [f"{key} should be there" for key in sorted(kept.keys() - there)]
        problems += [
            f"{key} has other bytes" for key in sorted(there & kept.keys()) if self._get(LIVE, key) != kept[key]
        ]
        try:
            if archived(self.client, COLD, plate_id) != files:
                problems.append(f"the tarballs of {plate_id} do not hold what the plate held")
        except StackError as error:
            problems.append(str(error))
        return problems

    def _get(self, bucket: str, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=bucket, Key=key)["Body"].read())


def keys_of(client: Any, bucket: str) -> set[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {row["Key"] for page in pages for row in page.get("Contents", [])}


def archived(client: Any, bucket: str, plate_id: str) -> dict[str, bytes]:
    """Files by key out of every tarball of a plate."""
    found = {}
    for key in sorted(keys_of(client, bucket)):
        if f"_{plate_id}_" in key and key.endswith(".tar.gz"):
            body = client.get_object(Bucket=bucket, Key=key)["Body"].read()
            with tarfile.open(fileobj=io.BytesIO(body), mode="r:gz") as tar:
                for member in tar:
                    content = tar.extractfile(member) if member.isfile() else None
                    if content is not None:
                        found["projects/" + member.name.split("/", 1)[1]] = content.read()
    if not found:
        raise StackError(f"no tarball of plate {plate_id} lies in {bucket}")
    return found
