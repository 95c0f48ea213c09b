"""What is in use: inodes, open handles, claimed keys, access times and counts. Synchronous, without I/O."""
