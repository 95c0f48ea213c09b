"""What must survive a crash: the write journal, what its records say, and bytes that lost a conflict."""
