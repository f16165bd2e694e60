"""Floor 5: asyncio. The tick loop, executing handlers, a node's services."""
