"""The contracts of the providers' file APIs, as their documents and SDKs state them.

What no source states is marked `unverified`; the README of the tests lists it by searching for that word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.providers.emulator import Answer, ProviderServer, Refusal, Request, StoredFile

_DISPOSITION = re.compile(r'form-data; name="([^"]*)"(?:; filename="([^"]*)")?')


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a form."""

    name: str
    filename: str | None
    mime_type: str | None
    data: bytes


def form_of(request: Request) -> list[Part]:
    """Parse a multipart form, strictly; a malformed one is a failed assertion in the server."""
    match = re.fullmatch(r"multipart/form-data; boundary=(\S+)", request.headers.get("content-type", ""))
    if match is None:
        raise Refusal(
            Answer(400, {"error": {"message": "a form is needed", "type": "invalid_request_error"}})
        )
    delimiter = b"--" + match[1].strip('"').encode()
    first, *parts, last = (b"\r\n" + request.body).split(b"\r\n" + delimiter)
    if first or last.strip() != b"--":
        raise Refusal(Answer(400, {"error": {"message": "bad form", "type": "invalid_request_error"}}))
    return [_part(part) for part in parts]


def _part(raw: bytes) -> Part:
    head, _, data = raw.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in head.decode().split("\r\n"))
    }
    match = _DISPOSITION.fullmatch(headers["content-disposition"])
    assert match is not None, headers
    return Part(match[1], match[2], headers.get("content-type"), data)


@dataclass
class OpenAIContract:
    """OpenAI and those compatible with it. The defaults are OpenAI's own."""

    prefix: str = "/v1"
    purposes: frozenset[str] = frozenset(
        {"assistants", "batch", "fine-tune", "vision", "user_data", "evals"}
    )
    id_prefix: str = "file-"
    max_bytes: int = 512_000
    """512 MB, scaled by 1,000."""
    max_files: int = 1000
    max_total_bytes: int = 10_000_000
    allow_empty: bool = True
    can_retrieve: bool = True
    can_list: bool = True
    list_needs_purpose: bool = False
    paging: str = "after"
    purpose_first: bool = False
    status: str = "processed"
    polls: int = 0
    too_large: Answer = field(
        default_factory=lambda: Answer(
            413, {"error": {"message": "too large", "type": "invalid_request_error"}}
        )
    )  # unverified for OpenAI

    def error(self, status: int, kind: str, message: str, code: str | None = None) -> Refusal:
        return Refusal(
            Answer(status, {"error": {"message": message, "type": kind, "param": None, "code": code}})
        )

    def authorize(self, request: Request) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or not key:
            raise self.error(401, "invalid_request_error", "You didn't provide an API key.")
        self.key = key

    def operation(self, request: Request) -> str:
        path = request.path.removeprefix(self.prefix)
        if path == "/files":
            return {"POST": "upload", "GET": "list"}.get(request.method, "other")
        if re.fullmatch(r"/files/[^/]+", path):
            return {"GET": "retrieve", "DELETE": "delete"}.get(request.method, "other")
        return "other"

    def answer(self, server: ProviderServer, request: Request) -> Answer:
        if self.key not in server.keys:
            raise self.error(
                401, "invalid_request_error", f"Incorrect API key: {self.key}", "invalid_api_key"
            )
        if not request.path.startswith(f"{self.prefix}/files"):
            raise self.error(404, "invalid_request_error", f"Unknown request URL: {request.path}")
        match self.operation(request):
            case "upload":
                return self._upload(server, request)
            case "list" if self.can_list:
                return self._list(server, request)
            case "retrieve" if self.can_retrieve:
                return Answer(200, self._object(self._live(server, request)))
            case "delete":
                file = self._live(server, request)
                del server.files[file.id]
                return Answer(200, {"id": file.id, "object": "file", "deleted": True})
            case _:
                raise self.error(405, "invalid_request_error", "Not allowed")

    def _live(self, server: ProviderServer, request: Request) -> StoredFile:
        file = server.live(request.path.rpartition("/")[2])
        if file is None:  # unverified: that it is 404
            raise self.error(404, "invalid_request_error", "No such File object")
        if file.polls_left:
            file.polls_left -= 1
        return file

    def _upload(self, server: ProviderServer, request: Request) -> Answer:
        parts = form_of(request)
        fields = {part.name: part.data.decode() for part in parts if part.filename is None}
        files = [part for part in parts if part.filename is not None]
        if len(files) != 1 or files[0].name != "file":
            raise self.error(400, "invalid_request_error", "'file' is a required property")
        if self.purpose_first and parts[0].name != "purpose":
            raise self.error(400, "invalid_request_error", "purpose must stand before file")
        purpose = fields.get("purpose")
        if purpose not in self.purposes:
            raise self.error(
                400, "invalid_request_error", f"'{purpose}' is not one of {sorted(self.purposes)}"
            )
        data = files[0].data
        if not data and not self.allow_empty:
            raise self.error(
                400, "invalid_request_error", "File size is zero, please confirm and re-upload"
            )
        if len(data) > self.max_bytes:
            raise Refusal(self.too_large)
        if len(server.files) >= self.max_files:
            raise self.error(
                400,
                "invalid_request_error",
                f"The number of files exceeded the max file count {self.max_files}",
            )
        if sum(len(file.data) for file in server.files.values()) + len(data) > self.max_total_bytes:
            raise self.error(429, "exceeded_current_quota_error", "Your account is out of storage")
        seconds = fields.get("expires_after[seconds]")
        if seconds is not None and not 3600 <= int(seconds) <= 2_592_000:
            raise self.error(400, "invalid_request_error", "expires_after[seconds] out of range")
        file = server.add(
            self.id_prefix,
            filename=files[0].filename,
            data=data,
            purpose=purpose,
            mime_type=files[0].mime_type or "",
            expires_at=None if seconds is None else server.clock() + int(seconds),
            polls_left=self.polls,
        )
        return Answer(200, self._object(file))

    def _list(self, server: ProviderServer, request: Request) -> Answer:
        purpose = request.query.get("purpose")
        if self.list_needs_purpose and not purpose:
            raise self.error(400, "invalid_request_error", "purpose is required")
        files = [file for file in map(server.live, list(server.files)) if file is not None]
        files = [file for file in files if purpose in {None, file.purpose}]
        if self.paging == "after":
            ids = [file.id for file in files]
            after = request.query.get("after")
            start = ids.index(after) + 1 if after in ids else 0
            size = int(request.query.get("limit", "20"))
        elif self.paging == "page":
            size = int(request.query.get("page_size", "100"))
            start = int(request.query.get("page", "0")) * size
        else:
            start, size = 0, len(files)
        page = files[start : start + size]
        body: dict[str, Any] = {"object": "list", "data": [self._object(file) for file in page]}
        if self.paging == "after":
            body["has_more"] = start + size < len(files)
        if self.paging == "page":
            body["total"] = len(files)
        return Answer(200, body)

    def _object(self, file: StoredFile) -> dict[str, Any]:
        return {
            "id": file.id,
            "object": "file",
            "bytes": len(file.data),
            "created_at": int(file.created_at),
            "expires_at": None if file.expires_at is None else int(file.expires_at),
            "filename": file.filename,
            "purpose": file.purpose,
            "status": "processing" if file.polls_left else self.status,
            "status_details": None,
            "surprise": {"new": "fields are no error"},
        }


def kimi() -> OpenAIContract:
    """Moonshot: text in errors only, no paging, empty files refused."""
    return OpenAIContract(
        purposes=frozenset({"file-extract", "image", "video", "batch"}),
        id_prefix="",
        max_bytes=100_000,
        allow_empty=False,
        paging="none",
        status="ok",  # unverified: "ready" in another copy
        too_large=Answer(
            400,
            {"error": {"type": "invalid_request_error", "message": "File size is too large, max is 100MB"}},
        ),
    )


class GlmContract(OpenAIContract):
    """Z.ai and bigmodel: business codes, no retrieve."""

    def error(self, status: int, kind: str, message: str, code: str | None = None) -> Refusal:
        business = {"invalid_api_key": "1002"}.get(code or "", "1214")
        del kind
        return Refusal(
            Answer(status, {"error": {"code": business, "message": message}})
        )  # unverified: wrapper


def glm() -> OpenAIContract:
    """Z.ai: uploads only."""
    return GlmContract(
        prefix="/api/paas/v4",
        purposes=frozenset({"agent"}),
        id_prefix="20261121",
        max_bytes=100_000,
        can_retrieve=False,
        can_list=False,
        too_large=Answer(435, {"error": {"code": "435", "message": "file over 100MB"}}),
    )


def glm_cn() -> OpenAIContract:
    """Bigmodel: a list, which needs a purpose, but no retrieve."""
    return GlmContract(
        prefix="/api/paas/v4",
        purposes=frozenset({"batch", "code-interpreter", "agent", "voice-clone-input"}),
        id_prefix="f",
        max_bytes=20_000,
        can_retrieve=False,
        list_needs_purpose=True,
    )


class MistralContract(OpenAIContract):
    """Mistral: `detail` in validation errors, a schema of its own."""

    def error(self, status: int, kind: str, message: str, code: str | None = None) -> Refusal:
        if status == 400:
            return Refusal(Answer(422, {"detail": [{"loc": ["body"], "msg": message, "type": kind}]}))
        return Refusal(Answer(status, {"object": "error", "message": message, "type": kind, "code": code}))

    def _object(self, file: StoredFile) -> dict[str, Any]:
        return {
            **super()._object(file),
            "sample_type": "ocr_input",
            "source": "upload",
            "num_lines": None,
            "deleted": False,
        }


def mistral() -> OpenAIContract:
    """Mistral."""
    return MistralContract(
        purposes=frozenset({"fine-tune", "batch", "ocr", "agentic_safety"}), id_prefix="", paging="page"
    )


def deepseek() -> OpenAIContract:
    """DeepSeek: `purpose` before the file."""
    return OpenAIContract(
        prefix="", purposes=frozenset({"user_data"}), id_prefix="file-api-", purpose_first=True
    )


@dataclass
class AnthropicContract:
    """Anthropic since general availability: no beta header, no purpose."""

    max_bytes: int = 500_000
    max_total_bytes: int = 10_000_000
    versions: frozenset[str] = frozenset({"2026-10-21", "2023-06-01"})

    def error(self, status: int, kind: str, message: str, code: str | None = None) -> Refusal:
        details: dict[str, Any] = {} if code is None else {"details": {"error_code": code}}
        body = {
            "type": "error",
            "error": {"type": kind, "message": message, **details},
            "request_id": "req_1",
        }
        return Refusal(Answer(status, body))

    def authorize(self, request: Request) -> None:
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        self.key = request.headers.get("x-api-key") or (bearer if scheme == "Bearer" else "")
        if not self.key:
            raise self.error(401, "authentication_error", "x-api-key header is required")
        if request.headers.get("anthropic-version") not in self.versions:
            raise self.error(400, "invalid_request_error", "anthropic-version: header is required")

    def operation(self, request: Request) -> str:
        if request.path == "/v1/files":
            return {"POST": "upload", "GET": "list"}.get(request.method, "other")
        if re.fullmatch(r"/v1/files/[^/]+", request.path):
            return {"GET": "retrieve", "DELETE": "delete"}.get(request.method, "other")
        return "other"

    def answer(self, server: ProviderServer, request: Request) -> Answer:
        if self.key not in server.keys:
            raise self.error(401, "authentication_error", f"invalid x-api-key {self.key}")
        match self.operation(request):
            case "upload":
                return self._upload(server, request)
            case "list":
                return self._list(server, request)
            case "retrieve":
                return Answer(200, self._object(self._live(server, request)))
            case "delete":
                file = self._live(server, request)
                del server.files[file.id]
                return Answer(200, {"id": file.id, "type": "file_deleted"})
            case _:
                raise self.error(404, "not_found_error", "Not Found")

    def _live(self, server: ProviderServer, request: Request) -> StoredFile:
        file = server.live(request.path.rpartition("/")[2])
        if file is None:
            raise self.error(404, "not_found_error", "File not found")
        return file

    def _upload(self, server: ProviderServer, request: Request) -> Answer:
        parts = form_of(request)
        files = [part for part in parts if part.filename is not None]
        fields = {part.name: part.data.decode() for part in parts if part.filename is None}
        if fields.keys() - {"expires_in_seconds"}:
            raise self.error(400, "invalid_request_error", f"unknown fields: {sorted(fields)}")
        if len(files) != 1 or files[0].name != "file":
            raise self.error(400, "invalid_request_error", "file: Field required")
        name = files[0].filename or ""
        if not 1 <= len(name) <= 255 or re.search(r'[<>:"|?*\\/\x00-\x1f]', name):
            raise self.error(400, "invalid_request_error", "filename: invalid")
        if len(files[0].data) > self.max_bytes:
            raise self.error(413, "request_too_large", "Request exceeds the maximum size")
        if (
            sum(len(file.data) for file in server.files.values()) + len(files[0].data)
            > self.max_total_bytes
        ):
            raise self.error(400, "invalid_request_error", "no storage left", "storage_quota_exceeded")
        seconds = fields.get("expires_in_seconds")
        file = server.add(
            "file_",
            filename=name,
            data=files[0].data,
            purpose="",
            mime_type=files[0].mime_type or "",
            expires_at=None if seconds is None else server.clock() + int(seconds),
        )
        return Answer(200, self._object(file))

    def _list(self, server: ProviderServer, request: Request) -> Answer:
        files = [file for file in map(server.live, list(server.files)) if file is not None]
        if "ids" in request.query:
            wanted = request.query["ids"].split(",")
            files = [file for file in files if file.id in wanted]
        size, start = int(request.query.get("limit", "20")), int(request.query.get("page", "page_0")[5:])
        more = start + size < len(files)
        return Answer(
            200,
            {
                "data": [self._object(file) for file in files[start : start + size]],
                "next_page": f"page_{start + size}" if more else None,
                "has_more": more,
            },
        )

    def _object(self, file: StoredFile) -> dict[str, Any]:
        return {
            "id": file.id,
            "type": "file",
            "filename": file.filename,
            "mime_type": file.mime_type,
            "size_bytes": len(file.data),
            "created_at": _rfc3339(file.created_at),
            "downloadable": False,
            "expires_at": None if file.expires_at is None else _rfc3339(file.expires_at),
        }


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.123456Z")


@dataclass
class GeminiContract:
    """Gemini: resumable uploads in two requests, 48 hours, PROCESSING for some polls."""

    max_bytes: int = 2_000_000
    polls: int = 1
    lifetime_s: float = 48 * 3600
    sessions: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def error(self, status: int, name: str, message: str, reason: str | None = None) -> Refusal:
        details = (
            []
            if reason is None
            else [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}]
        )
        body = {"error": {"code": status, "message": message, "status": name, "details": details}}
        return Refusal(Answer(status, body))

    def authorize(self, request: Request) -> None:
        if self.operation(request) == "upload":
            return  # the upload's address is the permission: the SDK sends no key there
        self.key = request.headers.get("x-goog-api-key", "")
        if not self.key:
            raise self.error(403, "PERMISSION_DENIED", "Method doesn't allow unregistered callers")

    def operation(self, request: Request) -> str:
        if re.fullmatch(r"/upload/v1(beta)?/files", request.path) and request.method == "POST":
            return "upload" if "upload_id" in request.query else "start"
        if re.fullmatch(r"/v1(beta)?/files", request.path) and request.method == "GET":
            return "list"
        if re.fullmatch(r"/v1(beta)?/files/[a-z0-9-]+", request.path):
            return {"GET": "retrieve", "DELETE": "delete"}.get(request.method, "other")
        return "other"

    def answer(self, server: ProviderServer, request: Request) -> Answer:
        if self.operation(request) != "upload" and self.key not in server.keys:
            raise self.error(400, "INVALID_ARGUMENT", "API key not valid.", "API_KEY_INVALID")
        match self.operation(request):
            case "start":
                return self._start(server, request)
            case "upload":
                return self._upload(server, request)
            case "list":
                return Answer(
                    200, {"files": [self._object(server, file) for file in server.files.values()]}
                )
            case "retrieve":
                return Answer(200, self._object(server, self._live(server, request)))
            case "delete":
                del server.files[self._live(server, request).id]
                return Answer(200, {})
            case _:
                raise Refusal(Answer(404, "<html>404. That's an error.</html>"))

    def _live(self, server: ProviderServer, request: Request) -> StoredFile:
        file = server.live("files/" + request.path.rpartition("/")[2])
        if file is None:
            raise self.error(
                403,
                "PERMISSION_DENIED",
                "You do not have permission to access the File or it may not exist.",
            )
        if file.polls_left:
            file.polls_left -= 1
        return file

    def _start(self, server: ProviderServer, request: Request) -> Answer:
        headers = request.headers
        if (
            headers.get("x-goog-upload-protocol") != "resumable"
            or headers.get("x-goog-upload-command") != "start"
        ):
            raise self.error(400, "INVALID_ARGUMENT", "not a resumable upload")
        size = int(headers["x-goog-upload-header-content-length"])
        mime_type = headers.get("x-goog-upload-header-content-type")
        described = request.json()["file"]
        name = described.get("name")
        if not mime_type or size > self.max_bytes:
            raise self.error(400, "INVALID_ARGUMENT", "mime type missing or file too large")
        if name is not None and not re.fullmatch(r"files/[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", name):
            raise self.error(400, "INVALID_ARGUMENT", f"not a file name: {name}")
        if name in server.files:  # unverified
            raise self.error(409, "ALREADY_EXISTS", "the name is taken")
        session = f"s{len(self.sessions)}"
        self.sessions[session] = {"file": described, "size": size, "mime_type": mime_type, "data": b""}
        return Answer(200, {}, {"x-goog-upload-url": f"{server.url}{request.path}?upload_id={session}"})

    def _upload(self, server: ProviderServer, request: Request) -> Answer:
        session = dict(self.sessions[request.query["upload_id"]])
        commands = [part.strip() for part in request.headers.get("x-goog-upload-command", "").split(",")]
        if int(request.headers.get("x-goog-upload-offset", "-1")) != len(session["data"]):
            raise self.error(400, "INVALID_ARGUMENT", "wrong offset")
        session["data"] += request.body
        self.sessions[request.query["upload_id"]] = session
        if "finalize" not in commands:
            return Answer(200, {}, {"x-goog-upload-status": "active"})
        if len(session["data"]) != session["size"]:
            raise self.error(400, "INVALID_ARGUMENT", "not the declared size")
        described = session["file"]
        file = server.add(
            "files/",
            filename=described.get("display_name") or described.get("displayName") or "",
            data=session["data"],
            purpose="",
            mime_type=session["mime_type"],
            expires_at=server.clock() + self.lifetime_s,
            polls_left=self.polls,
        )
        if described.get("name"):
            del server.files[file.id]
            file.id = described["name"]
            server.files[file.id] = file
        answer = {"file": self._object(server, file)}
        return Answer(200, answer, {"x-goog-upload-status": "final"})

    def _object(self, server: ProviderServer, file: StoredFile) -> dict[str, Any]:
        assert file.expires_at is not None
        return {
            "name": file.id,
            "displayName": file.filename,
            "mimeType": file.mime_type,
            "sizeBytes": str(len(file.data)),
            "createTime": _rfc3339(file.created_at),
            "updateTime": _rfc3339(file.created_at),
            "expirationTime": _rfc3339(file.expires_at),
            "sha256Hash": file.sha256,
            "uri": f"{server.url}/v1beta/{file.id}",
            "state": "PROCESSING" if file.polls_left else "ACTIVE",
        }
