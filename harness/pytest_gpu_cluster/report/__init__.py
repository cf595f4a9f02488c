"""The report of a session: events in, one `Report` out, and from it JUnit, JSON and Markdown."""
