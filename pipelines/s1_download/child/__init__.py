"""The child processes that fetch and decode, and their protocol with the parent."""
