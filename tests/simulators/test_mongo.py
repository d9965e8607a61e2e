"""The stand-in of MongoDB: started and stopped, with a real client; its data outlive a kill."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pymongo  # noqa: TID253
import pytest

from simulators.common import Clock, Setup, Shared, build
from simulators.mongo import MongoServer


def test_it_answers_keeps_its_data_through_a_kill_and_leaves_no_process(tmp_path: Path) -> None:
    async def main() -> None:
        server = build("mongo", Setup(Clock(), shared=Shared(tmp_path)))
        assert isinstance(server, MongoServer)
        uri = await server.start()
        with pymongo.MongoClient(uri) as client:
            files = client["waybill"]["files"]
            files.create_index("jdp_file_id", unique=True)
            files.insert_one({"jdp_file_id": "a", "state": "PLANNED"})
            with pytest.raises(pymongo.errors.DuplicateKeyError):
                files.insert_one({"jdp_file_id": "a"})
            won = files.find_one_and_update({"jdp_file_id": "a", "state": "PLANNED"}, {"$set": {"state": "SENT"}})
            assert won is not None
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await server.stop()
        again = MongoServer(tmp_path / "mongo")
        with pymongo.MongoClient(await again.start()) as client:
            assert client["waybill"]["files"].find_one({"jdp_file_id": "a"})["state"] == "SENT"  # type: ignore[index]
        pid = again.pid
        await again.stop()
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    asyncio.run(main())


def test_it_starts_on_no_port_where_another_answers(tmp_path: Path) -> None:
    async def main() -> None:
        first = MongoServer(tmp_path)
        uri = await first.start()
        port = int(uri.rsplit(":", 1)[1].partition("/")[0])
        second = MongoServer(tmp_path / "second", start_seconds=20)
        try:
            with pytest.raises(RuntimeError, match=rf"port {port}: Address already in use"):
                await second.start(port)
        finally:
            await first.stop()

    asyncio.run(main())
