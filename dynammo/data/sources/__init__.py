"""Where images are listed from, a file a source."""
