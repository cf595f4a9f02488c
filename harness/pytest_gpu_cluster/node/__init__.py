"""The processes of a node that outlive a session: guard, keeper, fork server, and the leases on its processes."""
