"""Clusters from the client's side: one for each session, held to its end, and swept when lost."""
