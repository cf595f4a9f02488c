"""What both sides speak: nouns, store, journal, events. The standard library and obstore alone."""
