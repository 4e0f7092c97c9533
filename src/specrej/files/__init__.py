"""Files that are read and written, so that nothing is lost."""
