"""The local index: every known name in SQLite, and how answers of the server are merged into it."""
