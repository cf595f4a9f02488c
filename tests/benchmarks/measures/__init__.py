"""The measurements of the workloads' benchmark; each compares ours, a naive and a strong way.

The modules are imported after RAY_AUTH_MODE is set, which Ray reads when it is imported.
"""
