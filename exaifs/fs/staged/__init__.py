"""The writable local copy of a file, its size and its errors."""
