"""What tasks that answer questions share: scoring one answer per example, and several weighted answers a row."""
