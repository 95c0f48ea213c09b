"""What this host knows and keeps: the index of names (`names`), contents (`data`), journal (`unsent`)."""
