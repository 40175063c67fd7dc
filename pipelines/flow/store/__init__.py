"""Where artifacts lie and what makes them trustworthy: records, blobs, commits, leases, upstream files."""
