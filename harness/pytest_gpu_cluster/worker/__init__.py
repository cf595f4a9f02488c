"""A pytest session in a process of its own: it selects tests, or runs those that it is given."""
