"""A Supabase that needs nothing installed: `@supabase/lite` on loopback, for trying and testing.

Sits beside `fs` on the same core; nothing below `cli` imports it.
"""

from exaifs.embedded.server import EmbeddedServer, env_file_text, serve

__all__ = ["EmbeddedServer", "env_file_text", "serve"]
