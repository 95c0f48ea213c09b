"""Supabase: the bytes of a bucket and their rows, behind the two protocols of `interface`.

`client.open_remote` is the way in. Nothing is imported here: commands that talk to no server, and those
that explain a broken installation, must not need the libraries that do.
"""
