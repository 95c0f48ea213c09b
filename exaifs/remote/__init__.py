"""Supabase: the bytes of a bucket and their rows, behind the two protocols of `interface`."""

from exaifs.remote.bodies import BytesBody, FileBody
from exaifs.remote.client import open_remote, remote_of
from exaifs.remote.session import Session, open_session

__all__ = ["BytesBody", "FileBody", "Session", "open_remote", "open_session", "remote_of"]
