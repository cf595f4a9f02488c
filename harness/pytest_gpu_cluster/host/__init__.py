"""The local pytest: the run in the place of its loop, and the replay of every event."""
