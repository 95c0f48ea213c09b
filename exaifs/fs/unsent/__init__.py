"""What Supabase does not have yet: staged bytes, what keeps them, and the outbox of changes."""
