"""The asyncio drivers around the core: they move time and bytes, and ask the core what to do."""
