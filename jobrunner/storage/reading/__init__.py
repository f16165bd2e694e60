"""What people ask: status, why, what will be, whether all is in order."""
