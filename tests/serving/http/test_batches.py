"""/v1/files and /v1/batches: what OpenAI's clients send and read."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2

from distaff.serving.batch_jobs.manager import JobManager
from distaff.serving.http.app import build_app
from distaff.serving.http.batches import Batches

from ..served import MAX_LEN, Served, serving

LINES = "".join(
    json.dumps({
        "custom_id": f"id-{index}", "method": "POST", "url": "/v1/completions",
        "body": {"prompt": f"say {index}", "max_tokens": 4, "seed": 0},
    }) + "\n"
    for index in range(12)
)  # fmt: skip


@asynccontextmanager
async def asking(folder: Path, **batches: Any) -> AsyncIterator[tuple[Served, httpx2.AsyncClient]]:
    async with serving() as served:
        manager = JobManager(
            served.engine, served.tokenizer, folder, model="m", identity={"name": "m"}, max_batch=8, context=MAX_LEN
        )
        manager.start()
        app = build_app(served.front, routes=Batches(manager, **batches).routes())
        transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            yield served, client
        await asyncio.to_thread(manager.close)


def test_a_batch_from_its_file_to_its_answers(tmp_path: Path) -> None:
    async def ask() -> None:
        async with asking(tmp_path) as (served, client):
            form: dict[str, Any] = {"files": {"file": ("in.jsonl", LINES.encode())}, "data": {"purpose": "batch"}}
            sent = (await client.post("/v1/files", **form)).json()
            assert (sent["object"], sent["bytes"], sent["filename"]) == ("file", len(LINES), "in.jsonl")
            assert (await client.get(f"/v1/files/{sent['id']}/content")).text == LINES
            body = {"input_file_id": sent["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
            job = (await client.post("/v1/batches", json=body)).json()
            assert job["object"] == "batch" and job["status"] == "validating"
            while job["status"] not in ("completed", "failed"):
                await asyncio.sleep(0.05)
                job = (await client.get(f"/v1/batches/{job['id']}")).json()
            assert job["request_counts"] == {"total": 12, "completed": 12, "failed": 0}, job
            rows = (await client.get(f"/v1/files/{job['output_file_id']}/content")).text.splitlines()
            texts = [json.loads(row)["response"]["body"]["choices"][0]["text"] for row in rows]
            assert texts == [served.text(served.answer(f"say {index}", 4)) for index in range(12)]
            listed = (await client.get("/v1/batches", params={"limit": 1})).json()
            assert [each["id"] for each in listed["data"]] == [job["id"]] and listed["has_more"] is False
            files = (await client.get("/v1/files", params={"purpose": "batch"})).json()["data"]
            assert [each["id"] for each in files] == [sent["id"]]
            assert (await client.delete(f"/v1/files/{sent['id']}")).json()["deleted"] is True
            assert (await client.get(f"/v1/files/{sent['id']}")).status_code == 404

    asyncio.run(ask())


def test_a_large_file_goes_to_the_disk(tmp_path: Path) -> None:
    async def ask() -> None:
        async with asking(tmp_path, max_file=4_000_000) as (_, client):
            data = b"x" * 3_000_000
            sent = await client.post("/v1/files", files={"file": ("big", data)}, data={"purpose": "batch"})
            assert (await client.get(f"/v1/files/{sent.json()['id']}/content")).content == data
            refused = await client.post("/v1/files", files={"file": ("big", data * 2)}, data={"purpose": "batch"})
            assert refused.status_code == 413 and "4000000 bytes" in refused.json()["error"]["message"]
            assert len(list((tmp_path / "files").iterdir())) == 2

    asyncio.run(ask())


def test_what_does_not_end_is_not_waited_for(tmp_path: Path) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nb'
        await asyncio.sleep(5)

    async def large() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 2**20

    async def ask() -> None:
        async with asking(tmp_path, pause_seconds=0.05) as (_, client):
            headers = {"content-type": "multipart/form-data; boundary=x"}
            paused = await client.post("/v1/files", content=slow(), headers=headers)
            assert paused.status_code == 408 and "0.05 s" in paused.json()["error"]["message"]
            assert list((tmp_path / "files").iterdir()) == []
            refused = await client.post("/v1/batches", content=large(), headers={"content-type": "application/json"})
            assert refused.status_code == 413

    asyncio.run(asyncio.wait_for(ask(), 20))


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    async def ask() -> None:
        async with asking(tmp_path) as (_, client):
            form: dict[str, Any] = {"files": {"file": ("in.jsonl", b"{}\n")}}
            for response, code, told in (
                (await client.post("/v1/files", **form, data={"purpose": "fine-tune"}), 400, "purpose is 'fine-tune'"),
                (await client.post("/v1/files", data={"purpose": "batch"}), 400, "file is 'none'"),
                (await client.post("/v1/files", files=[("file", ("a", b"b"))] * 2), 400, "file is 'more than one'"),
                (await client.post("/v1/files", files={"other": ("a", b"b")}), 400, "file is 'one of another name'"),
                (await client.post("/v1/files", content=b"x", headers={"content-type": "text/plain"}), 400, "no form"),
                (
                    await client.post("/v1/batches", json={"endpoint": "/v1/completions"}),
                    400,
                    "input_file_id is missing",
                ),
                (
                    await client.post("/v1/batches", json={"input_file_id": "file-1", "endpoint": "/v1/completions"}),
                    404,
                    "there is no file 'file-1'",
                ),
                (await client.get("/v1/batches/batch_1"), 404, "there is no batch"),
                (await client.post("/v1/batches/batch_1/cancel"), 404, "there is no batch"),
                (await client.get("/v1/batches", params={"limit": "none"}), 400, "limit is 'none'"),
                (await client.get("/v1/batches", params={"limit": "1" * 5000}), 400, "limit is '1111"),
                (await client.get("/v1/files", params={"after": "file-9"}), 404, "after"),
                (await client.get("/v1/files/..%2Fjobs/content"), 404, "Not Found"),
            ):
                assert response.status_code == code, response.text
                assert told in response.json()["error"]["message"], response.text
            assert list((tmp_path / "files").iterdir()) == []

    asyncio.run(ask())
