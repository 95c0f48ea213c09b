"""The way of bytes and changes to Supabase: at close, later by the sender, after a restart; conflicts."""
