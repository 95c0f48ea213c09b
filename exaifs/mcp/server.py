"""The server: tools and resources over one bucket, whatever carries the protocol."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError, ToolError
from mcp_types import CallToolResult, InputRequiredResult, ResourceTemplate, Tool
from pydantic import AnyUrl, ValidationError

from exaifs import __version__
from exaifs.config import Config
from exaifs.errors import ExaifsError, InvalidArgument, NameTooLong, NotFound
from exaifs.handler.service import FileService
from exaifs.mcp.arguments import mistakes_in, unknown_in
from exaifs.mcp.bucket import Bucket
from exaifs.mcp.explain import explained
from exaifs.mcp.paths import TEMPLATE, path_of_uri
from exaifs.mcp.tools import Tools
from exaifs.remote.client import remote_of
from exaifs.remote.files import SupabaseFiles
from exaifs.remote.session import open_session

INSTRUCTIONS: Final = (
    "Files of a Supabase Storage bucket, shared with people and other programs. Paths are below the "
    "bucket's root (reports/q3.pdf); files of this machine cannot be named. get_provider_file_id sends a "
    "file to a third party: call it only for a model that shall read that file."
)


class BucketServer(MCPServer[Any]):
    """Tools, and every file as the resource `exaifs:///{+path}`.

    Args:
        bucket: the files.
        redact: removes secrets from errors.
        read_only: whether tools that change something are left out.
    """

    def __init__(self, bucket: Bucket, redact: Callable[[str], str], *, read_only: bool) -> None:
        super().__init__("exaifs", title="exaifs", instructions=INSTRUCTIONS, version=__version__)
        self._bucket = bucket
        self._redact = redact
        self._takes: dict[str, tuple[str, ...]] = {}
        """The arguments of each tool."""
        for tool, title, hints in Tools(bucket, redact).offered(read_only=read_only):
            self.add_tool(tool, title=title, description=inspect.getdoc(tool), annotations=hints)
            names = inspect.signature(tool).parameters
            self._takes[tool.__name__] = tuple(name for name in names if name != "ctx")

    async def list_tools(self) -> list[Tool]:
        """Return the tools; their schemas say that there are no other arguments."""
        tools = await super().list_tools()
        for tool in tools:
            tool.input_schema = {**tool.input_schema, "additionalProperties": False}
        return tools

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool.

        Raises:
            ToolError: the arguments do not fit, or why it could not be done.
        """
        takes = self._takes.get(name)
        unknown = None if takes is None else unknown_in(name, arguments, takes)
        if unknown is not None:
            raise ToolError(unknown)
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as exc:
            if takes is not None and isinstance(exc.__cause__, ValidationError):
                raise ToolError(mistakes_in(name, exc.__cause__, takes)) from exc.__cause__
            raise

    async def list_resource_templates(self) -> list[ResourceTemplate]:
        """Return the one template: the files themselves are listed by list_files, page by page."""
        return [
            ResourceTemplate(
                uri_template=TEMPLATE,
                name="file",
                title="A file of the bucket",
                description="Whole, up to 16 MiB: text where it is text, else bytes.",
            )
        ]

    async def read_resource(
        self,
        uri: AnyUrl | str,
        context: Context[Any, Any] | None = None,  # noqa: ARG002 - the base class's signature
    ) -> Iterable[ReadResourceContents]:
        """Return a file. The base class gives all files of a template one MIME type; these have their own.

        Raises:
            ResourceNotFoundError: there is none, or the URI can name none.
            ResourceError: why it cannot be read.
        """
        try:
            content, mime_type = await self._bucket.read_resource(path_of_uri(str(uri)))
        except (NotFound, InvalidArgument, NameTooLong) as exc:
            raise ResourceNotFoundError(explained(exc, self._redact)) from exc
        except (ExaifsError, OSError) as exc:
            raise ResourceError(explained(exc, self._redact)) from exc
        return [ReadResourceContents(content=content, mime_type=mime_type)]


@asynccontextmanager
async def open_server(config: Config, redact: Callable[[str], str]) -> AsyncGenerator[BucketServer]:
    """Open the bucket that the configuration names; nothing is sent before the first call.

    Args:
        config: all settings.
        redact: removes secrets from errors.

    Raises:
        ConfigError: no project is named, or the cache directory cannot be used.
    """
    async with open_session(config) as session:
        remote = remote_of(session, config.bucket)
        files = SupabaseFiles(session, config.bucket)
        # A client that wants no longer wait cancels; until then it is told how far an upload is.
        async with FileService.open(config, remote, files, patient=True) as service:
            yield BucketServer(Bucket(service, remote), redact, read_only=config.read_only)
