"""Tree crowns in aerial photographs: cut tiles, train a network on Ray Train, run it over all tiles on Ray Data.

Plain functions and classes that know nothing of pytest or of the machine they run on: `tiles`, `network`, `train`
and `infer` can be copied into another repository as they are.
"""
