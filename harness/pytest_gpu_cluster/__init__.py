"""Run pytest on an ephemeral GPU Ray cluster and replay every result as plain pytest shows it.

PYTEST_DONT_REWRITE: it is imported before pytest decides which plugins' assertions to rewrite.
"""

from pkgutil import extend_path

__version__ = "0.1.0"

# On a cluster the code of the session stands before the installed package, which alone has
# `gpu_tests`.
__path__ = extend_path(__path__, __name__)
