"""The service distaff.v1.BatchJobs."""

import asyncio
from collections.abc import AsyncIterator

import grpc

from ...backends.errors import InvalidParameterError
from ..batch_jobs.batch_job import BatchJob
from ..batch_jobs.files import NoSuchError
from ..batch_jobs.manager import JobManager
from .callers import current
from .failures import Context
from .protos.distaff.v1 import batch_jobs_pb2 as pb
from .protos.distaff.v1 import batch_jobs_pb2_grpc

SERVICE = pb.DESCRIPTOR.services_by_name["BatchJobs"].full_name
_DEFAULT_LIMIT = 100
_LOOK_SECONDS = 0.2
"""How often a job is looked at for a caller that waits; nor is it told more often."""


class BatchJobsService(batch_jobs_pb2_grpc.BatchJobsServicer):
    """
    Args:
        manager: what keeps and runs the jobs.
    """

    def __init__(self, manager: JobManager) -> None:
        self._manager = manager

    def add_to(self, server: grpc.aio.Server) -> None:
        """Lets a server answer for it."""
        batch_jobs_pb2_grpc.add_BatchJobsServicer_to_server(self, server)

    async def CreateBatchJob(self, request: pb.CreateBatchJobRequest, context: Context) -> pb.CreateBatchJobResponse:
        create, tenant = self._manager.create, current.get().tenant
        try:
            job = await asyncio.to_thread(
                create, request.input_file_id, request.endpoint, metadata=dict(request.metadata), tenant=tenant
            )
        except NoSuchError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
            raise
        return pb.CreateBatchJobResponse(job=_message(job))

    async def GetBatchJob(self, request: pb.GetBatchJobRequest, context: Context) -> pb.GetBatchJobResponse:
        return pb.GetBatchJobResponse(job=_message(await self._job(request.id, context)))

    async def ListBatchJobs(self, request: pb.ListBatchJobsRequest, context: Context) -> pb.ListBatchJobsResponse:
        if request.limit < 0:
            raise InvalidParameterError("limit", request.limit, "a whole number, or 0 for the default")
        jobs = self._manager.all(current.get().tenant)[: request.limit or _DEFAULT_LIMIT]
        return pb.ListBatchJobsResponse(jobs=map(_message, jobs))

    async def CancelBatchJob(self, request: pb.CancelBatchJobRequest, context: Context) -> pb.CancelBatchJobResponse:
        await self._job(request.id, context)
        job = await asyncio.to_thread(self._manager.cancel, request.id, current.get().tenant)
        return pb.CancelBatchJobResponse(job=_message(job))

    async def WaitBatchJob(
        self, request: pb.WaitBatchJobRequest, context: Context
    ) -> AsyncIterator[pb.WaitBatchJobResponse]:
        job = await self._job(request.id, context)
        every = request.every.ToNanoseconds() / 1e9 if request.HasField("every") else None
        if every is not None and every < _LOOK_SECONDS:
            raise InvalidParameterError("every", every, f"{_LOOK_SECONDS:g} s or more, or nothing")
        loop = asyncio.get_running_loop()
        told = loop.time()
        yield pb.WaitBatchJobResponse(job=_message(job))
        while not job.ended:
            await asyncio.sleep(_LOOK_SECONDS)  # a thread for each that waits would leave none for others
            now = await self._job(request.id, context)
            if now != job or (every is not None and loop.time() - told >= every):
                told = loop.time()
                yield pb.WaitBatchJobResponse(job=_message(now))
            job = now

    async def _job(self, id: str, context: Context) -> BatchJob:
        try:
            return self._manager.get(id, current.get().tenant)
        except NoSuchError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
            raise


def _message(job: BatchJob) -> pb.BatchJob:
    return pb.BatchJob(
        id=job.id,
        status=f"BATCH_JOB_STATUS_{job.status.upper()}",
        input_file_id=job.input_file_id,
        endpoint=job.endpoint,
        total=job.total,
        completed=job.completed,
        failed=job.failed,
        output_file_id=job.output_file_id or "",
        error_file_id=job.error_file_id or "",
        error=job.error or "",
        created_at=job.created_at,
        ended_at=job.ended_at or 0,
        metadata=job.metadata,
    )
