"""What a session came to, told to people and machines: events in, one `Report` out, and from it JUnit, JSON and Markdown."""
