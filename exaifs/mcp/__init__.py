"""The files of a bucket for language models: tools and resources of the Model Context Protocol.

Stands beside the handler on the same core. The protocol's SDK is an optional extra, met in this package
only, and imported when `exaifs mcp` starts.
"""
