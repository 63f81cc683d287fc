"""OpenAI's files and batches over a JobManager: /v1/files and /v1/batches."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, create_form_parser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ...backends.errors import InvalidParameterError, UsageError
from ..batch_jobs.files import NoSuchError
from ..batch_jobs.manager import JobManager
from .completions import TENANT
from .errors import HttpError, error_response, invalid_body
from .exchange import BODY_SECONDS, read_body

MAX_FILE = 2**30
"""Bytes of a file that is sent."""
_MOST = 1000


class BatchBody(BaseModel):
    """POST /v1/batches."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input_file_id: str
    endpoint: str
    completion_window: str = "24h"
    metadata: dict[str, str] | None = Field(default=None, max_length=16)


class Batches:
    """The routes.

    Args:
        manager: what keeps and runs them.
        max_file: bytes of a file that is sent.
        pause_seconds: after which a file that stopped coming is given up.
    """

    def __init__(self, manager: JobManager, *, max_file: int = MAX_FILE, pause_seconds: float = BODY_SECONDS) -> None:
        self._manager, self._max_file, self._pause_seconds = manager, max_file, pause_seconds

    def routes(self) -> Sequence[BaseRoute]:
        """For build_app."""
        table: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
            ("POST", "/v1/files", self._upload),
            ("GET", "/v1/files", self._files),
            ("GET", "/v1/files/{id}", self._file),
            ("DELETE", "/v1/files/{id}", self._delete),
            ("GET", "/v1/files/{id}/content", self._content),
            ("POST", "/v1/batches", self._create),
            ("GET", "/v1/batches", self._batches),
            ("GET", "/v1/batches/{id}", self._batch),
            ("POST", "/v1/batches/{id}/cancel", self._cancel),
        ]
        return [Route(path, _told(work), methods=[method]) for method, path, work in table]

    async def _upload(self, request: Request) -> Response:
        """POST /v1/files: a form with `file` and `purpose`. It goes to the disk as it comes."""
        files, tenant = self._manager.files, _tenant(request)
        id, path = files.new_path()
        try:
            name, purpose = await self._receive(request, path)
            if purpose != "batch":
                raise InvalidParameterError("purpose", purpose[:80], "batch")
            stored = await asyncio.to_thread(files.add, id, name, purpose, tenant)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return JSONResponse(stored.to_dict())

    async def _receive(self, request: Request, path: Path) -> tuple[str, str]:
        """Writes the form's file to a path; its name, and the form's purpose."""
        fields: dict[str, str] = {}
        sent: list[Any] = []

        def on_field(field: Any) -> None:
            fields[field.field_name.decode("utf-8", "replace")] = (field.value or b"").decode("utf-8", "replace")

        def on_file(file: Any) -> None:
            sent.append(file)
            if len(sent) > 1:  # each holds memory or a descriptor until the form is done with
                raise _one_file("more than one")

        config: dict[str, Any] = {"UPLOAD_DIR": str(path.parent), "MAX_FIELDS": 16, "MAX_FIELD_SIZE": 4096}
        kind = request.headers.get("content-type", "")
        try:
            parser: FormParser = create_form_parser({"Content-Type": kind.encode()}, on_field, on_file, config=config)
            size, loop = 0, asyncio.get_running_loop()
            async with asyncio.timeout(self._pause_seconds) as pause:
                async for part in request.stream():
                    size += len(part)
                    if size > self._max_file:
                        message = f"the file has more than {self._max_file} bytes, which is the limit"
                        raise HttpError(413, message, "file_too_large")
                    await asyncio.to_thread(parser.write, part)
                    pause.reschedule(loop.time() + self._pause_seconds)
            parser.finalize()
        except TimeoutError:
            message = f"nothing of the file came for {self._pause_seconds:g} s"
            raise HttpError(408, message, "body_timeout") from None
        except FormParserError as error:
            raise HttpError(400, f"the body is no form of multipart/form-data ({error})", "invalid_form") from error
        if not sent or sent[0].field_name != b"file":
            raise _one_file("none" if not sent else "one of another name")
        file = sent[0]
        await asyncio.to_thread(_keep, file, path)
        return (file.file_name or b"file").decode("utf-8", "replace")[:256], fields.get("purpose", "")

    async def _files(self, request: Request) -> Response:
        found = await asyncio.to_thread(lambda: list(self._manager.files.all(_tenant(request))))
        purpose = request.query_params.get("purpose")
        return _listed([each.to_dict() for each in found if purpose in (None, each.purpose)], request)

    async def _file(self, request: Request) -> Response:
        return JSONResponse(self._manager.files.get(request.path_params["id"], _tenant(request)).to_dict())

    async def _delete(self, request: Request) -> Response:
        id = request.path_params["id"]
        self._manager.files.delete(id, _tenant(request))
        return JSONResponse({"id": id, "object": "file", "deleted": True})

    async def _content(self, request: Request) -> Response:
        stored = self._manager.files.get(request.path_params["id"], _tenant(request))
        return FileResponse(self._manager.files.path(stored.id), media_type="application/octet-stream")

    async def _create(self, request: Request) -> Response:
        try:
            body = BatchBody.model_validate_json(await read_body(request))
        except ValidationError as error:
            raise invalid_body(error) from None
        create = partial(self._manager.create, body.input_file_id, body.endpoint, metadata=body.metadata)
        job = await asyncio.to_thread(create, completion_window=body.completion_window, tenant=_tenant(request))
        return JSONResponse(job.to_dict())

    async def _batches(self, request: Request) -> Response:
        return _listed([job.to_dict() for job in self._manager.all(_tenant(request))], request)

    async def _batch(self, request: Request) -> Response:
        return JSONResponse(self._manager.get(request.path_params["id"], _tenant(request)).to_dict())

    async def _cancel(self, request: Request) -> Response:
        job = await asyncio.to_thread(self._manager.cancel, request.path_params["id"], _tenant(request))
        return JSONResponse(job.to_dict())


def _one_file(given: str) -> InvalidParameterError:
    return InvalidParameterError("file", given, "one file of the form, in the field file")


def _tenant(request: Request) -> str:
    return str(request.scope.get(TENANT, ""))


def _keep(file: Any, path: Path) -> None:
    """Gives what was sent a name that lasts; its temporary one goes with it."""
    file.finalize()
    if file.in_memory:
        path.write_bytes(file.file_object.getvalue())
    else:
        os.link(file.actual_file_name, path)
    file.close()


def _listed(found: list[dict[str, Any]], request: Request) -> Response:
    """A page of a list, behind `after`."""
    after, limit = request.query_params.get("after"), request.query_params.get("limit", "20")
    if len(limit) > len(str(_MOST)) or not limit.isdecimal() or not 1 <= int(limit) <= _MOST:
        raise InvalidParameterError("limit", limit[:20], f"a whole number from 1 to {_MOST}")
    if after is not None:
        places = [place for place, each in enumerate(found) if each["id"] == after]
        if not places:
            raise NoSuchError(f"after: there is no {after[:80]!r}")
        found = found[places[0] + 1 :]
    page = found[: int(limit)]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return JSONResponse({"object": "list", "data": page, **ends, "has_more": len(found) > len(page)})


def _told(work: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Answers with what went wrong, as OpenAI's clients read it."""

    async def told(request: Request) -> Response:
        try:
            return await work(request)
        except NoSuchError as error:
            return error_response(HttpError(404, str(error), "not_found"))
        except ClientDisconnect:
            return Response(status_code=499)
        except UsageError as error:
            return error_response(error)

    return told
