"""What runs on the cluster. It travels with every session, so client and cluster never differ in version."""
