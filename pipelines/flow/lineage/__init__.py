"""What was run, as MLflow shows it: events to a spool on disk, from there to MLflow, and back for checks."""
