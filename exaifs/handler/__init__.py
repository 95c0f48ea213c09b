"""Files of a bucket for Python programs, without a mount; see `UnifiedFileHandler`."""

from exaifs.handler.handler import UnifiedFileHandler
from exaifs.handler.info import FileInfo, FilePage
from exaifs.handler.reference import FileReference, file_id_for

__all__ = ["FileInfo", "FilePage", "FileReference", "UnifiedFileHandler", "file_id_for"]
