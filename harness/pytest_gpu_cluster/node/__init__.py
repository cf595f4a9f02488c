"""The processes of a node that outlive a session, and the leases on those that do not."""
