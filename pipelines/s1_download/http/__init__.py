"""Our HTTP client for a hostile web: names, guarded connections, strict parsing, limits, crawler policy."""
