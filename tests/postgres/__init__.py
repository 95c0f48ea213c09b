"""The SQL of exaifs on a plain PostgreSQL with the storage server's tables."""
