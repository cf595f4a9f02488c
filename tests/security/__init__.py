"""What a store, a test or a pull request may not do to the people who read it."""
