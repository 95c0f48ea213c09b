"""What this host knows and keeps: the index of names, and the tiers of contents."""
