"""A Supabase Storage bucket as a mounted directory, and as a Python API."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exaifs.handler import FileInfo, FilePage, FileReference, UnifiedFileHandler, file_id_for

__version__ = "0.1.0"

__all__ = ["FileInfo", "FilePage", "FileReference", "UnifiedFileHandler", "__version__", "file_id_for"]


if not TYPE_CHECKING:  # else every misspelt name would have a type

    def __getattr__(name: str) -> Any:
        """Import the Python API when it is first asked for: `import exaifs` itself stays cheap."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from exaifs import handler  # noqa: PLC0415 - the point of this function

        return getattr(handler, name)
