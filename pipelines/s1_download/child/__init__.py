"""The child processes that fetch and decode, and what they and their parent say to each other."""
