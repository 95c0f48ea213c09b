"""File ids at LLM providers: adapters over plain HTTP, settings, and the service that keeps the ids.

Beside `fs`, on anyio: runs under asyncio and trio. httpx, which the package has anyway, is the one HTTP
client: providers' SDKs would add 90 MiB, two of them cannot run under trio, and a second HTTP library would
bring other certificate and proxy rules than the way to Supabase has.
"""
