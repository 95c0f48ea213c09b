"""What operators do, without a command line: test an installation, set up a project.

`doctor.examine` runs every check and returns a report; `setup` applies the schema and creates the
buckets. `cli` prints what they return.
"""
