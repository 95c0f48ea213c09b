"""The adapter to pyfuse3: mounts, decodes a request, makes one call into `fs`, encodes the answer."""
