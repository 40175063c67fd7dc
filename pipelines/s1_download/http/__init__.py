"""An HTTP client for untrusted servers: name resolution, guarded connections, strict parsing, limits, policy."""
