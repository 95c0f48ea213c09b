"""What Supabase tells: directories loaded, the change feed followed, what the kernel must forget."""
