"""Other people's networks and data."""
