"""The way to the database: connections, drivers, what differs between the two, wake-ups."""
