"""Reports of a run: the table at its end, the HTML page, its charts and text lengths."""
