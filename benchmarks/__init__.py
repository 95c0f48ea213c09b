"""What a mount costs, against the limit that the same machine sets in the same run."""
