"""The process of a session on the cluster: it decides what runs where and commits every outcome once."""
