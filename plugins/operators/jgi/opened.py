"""What the steps of JGI staging work with, opened together: ledger, MongoDB, JDP, a look at our folder on JGI's collection."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from hooks.globus import GlobusHook
from hooks.jgi import JdpHook
from hooks.mongo import tracking
from hooks.waybill import ledger

from include.core.errors import NotFound
from include.core.ledger import Owner
from include.jgi.restoring import Restoring


@dataclass(frozen=True)
class GlobusFolders:
    """The `R<id>` folders of our root on JGI's collection, as `RequestFolders` asks for them."""

    globus_conn_id: str

    async def request_ids(self) -> list[int]:
        return await asyncio.to_thread(self._listed)

    def _listed(self) -> list[int]:
        hook = GlobusHook(self.globus_conn_id)
        collections = hook.collections()
        with hook.client() as client:
            try:
                rows = client.listing(collections.source, collections.source_root)
                names = [one.name for one in rows if one.is_folder]
            except NotFound:
                return []  # our root is made with the first request's folder
        return sorted(int(name[1:]) for name in names if re.fullmatch(r"R[0-9]+", name))


@asynccontextmanager
async def opened(owner: Owner, jdp_conn_id: str, globus_conn_id: str) -> AsyncIterator[Restoring]:
    hook = JdpHook(jdp_conn_id)
    account = hook.account()
    with ledger() as book, tracking() as kept:
        kept.ensure_indexes()
        async with hook.client() as jdp:
            yield Restoring(jdp, book, kept, account, GlobusFolders(globus_conn_id), owner)
