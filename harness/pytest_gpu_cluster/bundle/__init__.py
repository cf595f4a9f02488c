"""The working tree on its way to the store."""
