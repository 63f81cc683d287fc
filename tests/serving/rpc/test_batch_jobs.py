"""distaff.v1.BatchJobs over a socket: create, watch, list, cancel."""

import asyncio
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from distaff.serving.batch_jobs.manager import JobManager
from distaff.serving.rpc.batch_jobs import SERVICE, BatchJobsService
from distaff.serving.rpc.protos.distaff.v1 import batch_jobs_pb2 as pb
from distaff.serving.rpc.protos.distaff.v1 import batch_jobs_pb2_grpc
from distaff.serving.rpc.server import RpcServer
from distaff.serving.rpc.settings import RpcSettings

from ..http.test_batches import LINES
from ..served import MAX_LEN, serving


def test_a_job_from_its_creation_to_its_end(tmp_path: Path) -> None:
    async def ask() -> None:
        async with serving() as served:
            manager = JobManager(
                served.engine,
                served.tokenizer,
                tmp_path,
                model="m",
                identity={"name": "m"},
                max_batch=8,
                context=MAX_LEN,
            )
            server = RpcServer(served.front, RpcSettings(port=0))
            server.add(BatchJobsService(manager), SERVICE)
            await server.start()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                stub = batch_jobs_pb2_grpc.BatchJobsStub(channel)
                id, path = manager.files.new_path()
                path.write_text(LINES)
                manager.files.add(id, "in.jsonl", "batch")
                request = pb.CreateBatchJobRequest(input_file_id=id, endpoint="/v1/completions", metadata={"a": "b"})
                job = (await stub.CreateBatchJob(request)).job
                assert job.status == pb.BATCH_JOB_STATUS_VALIDATING and job.metadata == {"a": "b"}
                manager.start()
                seen = [told.job async for told in stub.WaitBatchJob(pb.WaitBatchJobRequest(id=job.id))]
                statuses = [each.status for each in seen]
                assert statuses[-1] == pb.BATCH_JOB_STATUS_COMPLETED and statuses == sorted(statuses)
                assert (seen[-1].total, seen[-1].completed, seen[-1].failed) == (12, 12, 0) and seen[-1].output_file_id
                assert (await stub.GetBatchJob(pb.GetBatchJobRequest(id=job.id))).job == seen[-1]
                assert (await stub.CancelBatchJob(pb.CancelBatchJobRequest(id=job.id))).job == seen[-1]
                assert [each.id for each in (await stub.ListBatchJobs(pb.ListBatchJobsRequest())).jobs] == [job.id]
                for call, wrong in (
                    (stub.GetBatchJob, pb.GetBatchJobRequest(id="batch_0")),
                    (stub.CancelBatchJob, pb.CancelBatchJobRequest(id="batch_0")),
                    (stub.CreateBatchJob, pb.CreateBatchJobRequest(input_file_id="file-0", endpoint="/v1/completions")),
                ):
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await call(wrong)
                    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
                for call in (
                    lambda: stub.CreateBatchJob(pb.CreateBatchJobRequest(input_file_id=id, endpoint="/v2")),
                    lambda: stub.ListBatchJobs(pb.ListBatchJobsRequest(limit=-1)),
                    lambda: anext(aiter(stub.WaitBatchJob(pb.WaitBatchJobRequest(id=job.id, every=timedelta(0))))),
                ):
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await call()
                    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            await asyncio.to_thread(manager.close)
            await server.stop()

    asyncio.run(ask())
