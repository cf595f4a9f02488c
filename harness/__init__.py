"""Run pytest on an ephemeral GPU Ray cluster and replay every result locally as plain pytest would show it.

PYTEST_DONT_REWRITE: it is imported before pytest decides which plugins' assertions to rewrite.
"""

__version__ = "0.1.0"
