"""What operators do, without a command line; `cli` prints what these return.

- `doctor`: every check of project and machine (`checks`, `remote_checks`, `round_trip`, `local`, `keys`)
- `setup`: the schema and the buckets
- `status` and `sync`: what a mount says of itself, and waiting for it
- `fsck` with a module a subject; `gc`; `conflicts` with `conflict_diff` and `conflict_restore`; `providers`
- `advice`: what to do about an error of Supabase
"""
