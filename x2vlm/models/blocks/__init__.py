"""What the towers and the fusion encoder are built of: attention blocks, packed rows, plans."""
