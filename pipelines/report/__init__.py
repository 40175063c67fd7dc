"""What a run looks like to a person: the table at its end, the HTML page, its charts and text lengths."""
