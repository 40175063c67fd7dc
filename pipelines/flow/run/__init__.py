"""Planning and running a graph: what is due and why, parts on Ray or in this process, events and progress."""
