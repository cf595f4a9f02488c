"""The process of a session on the cluster: decides what runs where, commits each outcome once."""
