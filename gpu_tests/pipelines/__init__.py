"""Tree crowns in aerial photographs: cut tiles, train on Ray Train, infer on Ray Data.

Plain functions and classes without pytest and without assumptions about the machine: `tiles`,
`network`, `train` and `infer` can be copied into another repository as they are.
"""
