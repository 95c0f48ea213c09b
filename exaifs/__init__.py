"""A Supabase Storage bucket as a mounted directory."""

__version__ = "0.1.0"

__all__ = ["__version__"]
