"""What the daily maintenance does for plates: it brings the index of archived files up to date, and removes the pieces that
killed runs left in the archive buckets.

Invariant: nothing is removed that was not listed before, beside the receipts; and what may not be looked at is said, and is no
failure, since an archive that the store never puts together needs no such right.
"""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException
from hooks.archives import ARCHIVES, archives_if_any, file_index, split_uri
from hooks.aws import AwsHook
from hooks.task import run_async, run_folder
from hooks.waybill import receipts
from operators.common.base import WaybillOperator
from operators.plates.base import progress_log, store_of

from include.core.errors import Forbidden, VerificationError
from include.core.request import truncate_for_xcom
from include.core.text import pluralize
from include.s3.bucket import S3Access
from include.s3.staging import STAGING
from include.s3.staging_cleanup import ABANDONED_DAYS, Staged, find_staged, remove_abandoned

_UNSET = f"connection {ARCHIVES} does not exist: there is nothing to look after"


class IndexArchivesOperator(WaybillOperator):
    """Lists every configured prefix and takes into the index what is new there. Skips where no index is configured."""

    def __init__(self, *, aws_conn_id: str = AwsHook.default_conn_name, **kwargs: Any):
        super().__init__(**kwargs)
        self.aws_conn_id = aws_conn_id

    def execute(self, context: Context) -> str:
        with self.recording(context) as facts:
            facts["outcome"] = outcome = run_async(self._refreshed(context))
        return outcome

    async def _refreshed(self, context: Context) -> str:
        place = archives_if_any()
        if place is None or place.index is None:
            raise AirflowSkipException(_UNSET if place is None else f"connection {ARCHIVES} names no index")
        said = []
        async with store_of(self, context) as access:
            with file_index(place) as index:
                for uri in place.prefixes:
                    bucket, prefix = split_uri(uri)
                    report = progress_log(self.log.info)
                    listing = await index.refresh(access.bucket(bucket), prefix, on_progress=report)
                    for line in (*listing.broken, *(f"{key}: it is gone" for key in listing.gone)):
                        self.log.warning("%s", line)
                    counts = f"{len(listing.broken)} cannot be read, {len(listing.gone)} are gone"
                    said.append(f"{uri}: {pluralize(listing.manifests, 'manifest')}, {listing.read} read now, {counts}")
        return "; ".join(said)


class CleanUpStagingOperator(WaybillOperator):
    """Lists what lies under `waybill-staging/` (log, XCom `staging`, and `staging.json` beside the receipts), then removes what
    is abandoned. Fails where the store did not remove it."""

    def __init__(self, *, aws_conn_id: str = AwsHook.default_conn_name, **kwargs: Any):
        super().__init__(**kwargs)
        self.aws_conn_id = aws_conn_id

    def execute(self, context: Context) -> str:
        with self.recording(context) as facts:
            facts["outcome"] = outcome = run_async(self._cleaned_up(context, facts))
        return outcome

    async def _cleaned_up(self, context: Context, facts: dict[str, Any]) -> str:
        place = archives_if_any()
        if place is None:
            raise AirflowSkipException(_UNSET)
        now = time.time()
        async with store_of(self, context) as access:
            names = sorted({split_uri(uri)[0] for uri in place.prefixes})
            listed = {name: await self._listed(access, name, now) for name in names}
            found = [(name, one) for name in names for one in listed[name] or []]
            if found:
                facts["staging"] = await self._kept(context, found, now)
            abandoned = [(name, one) for name, one in found if not one.kept]
            left = [await remove_abandoned(access.bucket(name), one, now=now) for name, one in abandoned]
        problems = [line for line in left if line]
        if problems:
            raise VerificationError(
                f"{pluralize(len(problems), 'target')} of pieces not removed: {'; '.join(problems)}. Waybill needs "
                f"s3:DeleteObject and s3:DeleteObjectVersion under {STAGING}"
            )
        unseen = [f"s3://{name}/{STAGING} may not be listed" for name in names if listed[name] is None]
        done = f"{pluralize(len(abandoned), 'target')} of abandoned pieces removed, {len(found) - len(abandoned)} kept"
        return "; ".join([done, *unseen])

    async def _listed(self, access: S3Access, name: str, now: float) -> list[Staged] | None:
        try:
            return await find_staged(access.bucket(name), now=now)
        except Forbidden as error:
            self.log.warning("the pieces in %s are not looked at: %s", name, error)
            return None

    async def _kept(self, context: Context, found: list[tuple[str, Staged]], now: float) -> dict[str, Any]:
        """The list, before anything of it is removed."""
        lines = []
        for name, one in found:
            why = f"kept: {one.kept}" if one.kept else f"removed: abandoned for {ABANDONED_DAYS:g} days"
            lines.append(f"s3://{name}/{STAGING}{one.told(now)}; to be {why}")
            self.log.info("%s", lines[-1])
        context["ti"].xcom_push(key="staging", value=truncate_for_xcom(lines))
        rows = [{"bucket": name, **dataclasses.asdict(one)} for name, one in found]
        data = json.dumps(rows, ensure_ascii=False, indent=1).encode()
        return (await receipts().objects.put(f"{run_folder(context)}/staging.json", data)).to_dict()
